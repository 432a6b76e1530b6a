"""The table in which an optimizer declares what it keeps."""

from collections.abc import Callable
from typing import Any, NamedTuple

PARAMS, AVERAGE = "params", "average"


class Slot(NamedTuple):
  """z' = rho z + phi(g, z_1', ..., t), for one of an optimizer's arrays."""

  name: str
  # phi: (optimizer, gradient, the slots changed before, step) -> increment; the
  # optimizer holds scalars.
  increment: Callable[[Any, Any, dict[str, Any], Any], Any]
  decay: str | None = None  # the hyperparameter that is rho; None is 1
  bits: int = 24  # the resolution is 2^-bits
  fine: bool = False  # see `revmom.steps.leaf.Role`
  nonnegative: bool = False
