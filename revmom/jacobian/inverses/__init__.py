"""Inverses of functions.

`inverse` traces a function, `verification` tries the inverse on known numbers,
and `propagation` solves the program for its inputs, equation by equation, by
the `rules` of primitives, by `movement` and `scatters` where elements only
change places, and by `loops`.  `knowledge` is what is known of a value so far.
"""
