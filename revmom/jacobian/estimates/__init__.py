"""Estimates, with error bars, of matrices that are known by their products.

`estimate` holds the result and the random directions.  `trace` needs nothing
else; `lanczos` builds Krylov spaces, from which `spectrum` takes eigenvalues
and `log_action` products with log|A|.  `log_forms` makes quadratic forms of
these that differentiate, `quadrature` and `series` estimates of log|det A|,
and `stochastic` those of log|det J| of a function.
"""
