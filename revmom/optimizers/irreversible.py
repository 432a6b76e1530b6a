"""Optimizers whose steps have no explicit inverse, and why.

A step can be undone if whatever it adds to the parameters is computed from
quantities that are known after it (`revmom.optimizers.reversible`).  These
add, scale by or keep something that is not.
"""

from typing import Any, NoReturn

_AT_THETA = (
  "its step adds a function of the gradient at theta to theta itself, so that "
  "going back means to solve theta = theta' - u(g(theta)) for theta, which no "
  "formula does and no iteration does bit for bit"
)
_NORM = (
  "its step is scaled by the norm of the parameters before it, which the "
  "parameters after it give only through an equation whose rounded solution is "
  "not unique"
)
_MAXIMUM = (
  "it keeps the larger of two numbers and forgets the other, so that two "
  "states lead to the same one"
)


def _refuse(name: str, reason: str, instead: str) -> NoReturn:
  raise ValueError(f"{name} has no explicit inverse: {reason}.  {instead}")


def nesterov(*args: Any, **kwargs: Any) -> NoReturn:
  """Nesterov momentum in the form of gradients at the lookahead point."""
  _refuse("nesterov", _AT_THETA, "Use revmom.sgd.")


def lion(*args: Any, **kwargs: Any) -> NoReturn:
  """Lion (Chen et al. 2023)."""
  _refuse("lion", _AT_THETA, "Use revmom.signum, which is Lion with b1 = b2.")


def lars(*args: Any, **kwargs: Any) -> NoReturn:
  """LARS (You et al. 2017)."""
  _refuse("lars", _NORM, "Use revmom.sgd, or revmom.muon.")


def lamb(*args: Any, **kwargs: Any) -> NoReturn:
  """LAMB (You et al. 2020)."""
  _refuse("lamb", _NORM, "Use revmom.adamw.")


def adamax(*args: Any, **kwargs: Any) -> NoReturn:
  """Adamax (Kingma & Ba 2015, Algorithm 2)."""
  _refuse("adamax", _MAXIMUM, "Use revmom.adam.")


def amsgrad(*args: Any, **kwargs: Any) -> NoReturn:
  """AMSGrad (Reddi et al. 2018)."""
  _refuse("amsgrad", _MAXIMUM, "Use revmom.adam.")
