"""Log-determinants and inverses of JAX functions.

The packages inside, each of which imports from those before it alone:

- `program`: functions as lists of equations, and what is known of primitives;
- `estimates`: traces, spectra and log-determinants from products with a matrix;
- `log_determinants`: `log_det`, by the structure of a program;
- `inverses`: `inverse`, equation by equation;
- `conformance`: `check_bijection`, which needs none of the others.
"""

from revmom.jacobian.conformance.check_bijection import (
  BijectionError,
  BijectionReport,
  check_bijection,
)
from revmom.jacobian.estimates.estimate import Estimate
from revmom.jacobian.estimates.quadrature import (
  golub_kahan_quadrature,
  lanczos_quadrature,
)
from revmom.jacobian.estimates.series import power_series, russian_roulette
from revmom.jacobian.estimates.spectrum import (
  Eigenvalues,
  SpectralDensity,
  spectral_density,
  top_eigenvalues,
)
from revmom.jacobian.estimates.stochastic import stochastic_log_det
from revmom.jacobian.estimates.trace import hutchinson, xtrace
from revmom.jacobian.inverses.inverse import inverse, inverse_and_log_det
from revmom.jacobian.inverses.knowledge import NotInvertible
from revmom.jacobian.log_determinants.blocks import BlockReport
from revmom.jacobian.log_determinants.log_det import LogDet, log_det
from revmom.jacobian.program.declarations import custom_inverse, custom_log_det

__all__ = [
  "BijectionError",
  "BijectionReport",
  "BlockReport",
  "Eigenvalues",
  "Estimate",
  "LogDet",
  "NotInvertible",
  "SpectralDensity",
  "check_bijection",
  "custom_inverse",
  "custom_log_det",
  "golub_kahan_quadrature",
  "hutchinson",
  "inverse",
  "inverse_and_log_det",
  "lanczos_quadrature",
  "log_det",
  "power_series",
  "russian_roulette",
  "spectral_density",
  "stochastic_log_det",
  "top_eigenvalues",
  "xtrace",
]
