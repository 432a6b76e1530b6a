"""The grids on which an optimizer's state lives, as a user chooses them."""

import dataclasses
from collections.abc import Mapping
from typing import Any

import numpy as np

from revmom.exact.capacities import check_integer
from revmom.optimizers.hyperparameters import is_real


@dataclasses.dataclass(frozen=True)
class Grid:
  """How finely an optimizer keeps its state.

  The resolution of a role, which is "params" or one that the optimizer's
  docstring names, is 2^-b for b fraction bits, and its values reach 2^(30 - b)
  with int32.

  Attributes:
    fraction_bits: role -> b, where it should not be the optimizer's own.  With
      int64 it is 48 for all roles.
    floors: role -> the smallest factor that its buffer has room for if the
      factor is traced; by default twice the bits of the factor that the
      optimizer is built with, or 0.5 (0.99 for "params" under weight decay) if
      that is traced already.
    integer: "int32", or "int64" where x64 is on.  With int64 a step multiplies
      by a factor that is within some 2^-30 of itself of the one given (2^-22
      with int32) and carries the rest to the next step, so that runs with a
      weight decay follow float64 to some 1e-9.

  Raises:
    ValueError: an unknown type of integers, int64 without x64, or a value of
      the wrong kind.

  >>> import revmom
  >>> revmom.sgd(0.1, 0.9, grid=revmom.Grid({"params": 20})).role("params").bits
  20
  """

  fraction_bits: Mapping[str, int] = dataclasses.field(default_factory=dict)
  floors: Mapping[str, float] = dataclasses.field(default_factory=dict)
  integer: Any = "int32"

  def __post_init__(self) -> None:
    check_integer(self.integer)
    for name in ("fraction_bits", "floors"):
      if not isinstance(getattr(self, name), Mapping):
        raise ValueError(
          f"{name}={getattr(self, name)!r}; give a dict by role, as in "
          'revmom.Grid({"params": 20}).'
        )
    for role, bits in self.fraction_bits.items():
      if not isinstance(bits, int | np.integer):
        raise ValueError(
          f"fraction_bits[{role!r}] is {bits!r}; it must be a whole number."
        )
    for role, floor in self.floors.items():
      if not (is_real(floor) and 0 < floor <= 1):
        raise ValueError(
          f"floors[{role!r}] is {floor!r}; it must be in (0, 1]."
        )

  def check_roles(self, bits: Mapping[str, int], floors: Any) -> None:
    """Raises ValueError for roles that an optimizer does not have."""
    for name, own, known in (
      ("fraction_bits", self.fraction_bits, bits),
      ("floors", self.floors, floors),
    ):
      unknown = set(own) - set(known)
      if unknown:
        raise ValueError(
          f"{name} has roles {sorted(unknown)}; choose from {sorted(known)}."
        )
