"""Log-determinants and inverses of JAX functions."""

from revmom.jacobian.blocks import BlockReport
from revmom.jacobian.check import (
  BijectionError,
  BijectionReport,
  check_bijection,
)
from revmom.jacobian.custom_inverse import custom_inverse
from revmom.jacobian.estimate import Estimate
from revmom.jacobian.inverse import inverse, inverse_and_log_det
from revmom.jacobian.knowledge import NotInvertible
from revmom.jacobian.log_det import LogDet, custom_log_det, log_det
from revmom.jacobian.quadrature import (
  golub_kahan_quadrature,
  lanczos_quadrature,
)
from revmom.jacobian.series import power_series, russian_roulette
from revmom.jacobian.spectrum import (
  Eigenvalues,
  SpectralDensity,
  spectral_density,
  top_eigenvalues,
)
from revmom.jacobian.stochastic import stochastic_log_det
from revmom.jacobian.trace import hutchinson, xtrace

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
