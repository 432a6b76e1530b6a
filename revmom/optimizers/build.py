"""An optimizer from what its user chose."""

import math
from collections.abc import Mapping
from typing import Any, TypeVar

import numpy as np

from revmom.exact.pytree import is_static
from revmom.optimizers import hyperparameters
from revmom.optimizers.grid import Grid
from revmom.optimizers.reversible import ReversibleOptimizer
from revmom.optimizers.slot import PARAMS
from revmom.steps.leaf import Role

_BITS = 24  # of parameters
_BITS_INT64 = 48  # of everything

Optimizer = TypeVar("Optimizer", bound=ReversibleOptimizer)


def build(
  kind: type[Optimizer],
  grid: Grid | None,
  *,
  bits: Mapping[str, int] | None = None,
  **fields: Any,
) -> Optimizer:
  """The optimizer of a kind with these hyperparameters, on a grid.

  Args:
    kind: with a table of its slots.
    grid: None for the defaults of the table.
    bits: role -> fraction bits, where the table's depend on other fields.
    **fields: of the optimizer, as the user gave them.

  Raises:
    ValueError: a factor outside (0, 1], an argument of the wrong kind, or a
      grid with roles that the optimizer does not have.
  """
  if grid is None:
    grid = Grid()
  if not isinstance(grid, Grid):
    raise ValueError(
      f"grid={grid!r}; pass revmom.Grid(fraction_bits, floors, integer)."
    )
  known = kind.__dataclass_fields__
  for slot in kind.slots:
    if slot.decay is not None:
      check_factor(slot.decay, fields[slot.decay])
  values = {
    name: value if is_static(known[name]) else hyperparameters.wrap(name, value)
    for name, value in fields.items()
  }
  floors = {
    slot.name: 1.0 if slot.decay is None else floor(values[slot.decay])
    for slot in kind.slots
    if slot.decay is not None or slot.fine
  }
  if values.get("weight_decay") is not None:
    floors[PARAMS] = _decay_floor(
      values["learning_rate"], values["weight_decay"]
    )
  own = {slot.name: slot.bits for slot in kind.slots} | {PARAMS: _BITS}
  own |= bits or {}
  integer = np.dtype(grid.integer)
  if integer == np.dtype("int64"):
    own = dict.fromkeys(own, _BITS_INT64)
  grid.check_roles(own, floors)
  own |= grid.fraction_bits
  floors |= grid.floors
  fine = {slot.name for slot in kind.slots if slot.fine}
  nonnegative = {slot.name for slot in kind.slots if slot.nonnegative}
  roles = tuple(
    Role(
      name,
      own[name],
      floors.get(name),
      name in fine,
      name in nonnegative,
      integer,
    )
    for name in own
  )
  return kind(roles=roles, **values)


def check_factor(name: str, value: Any) -> None:
  """Raises ValueError for no factor, or a known one outside (0, 1]."""
  hyperparameters.check_kind(name, value)
  smallest = hyperparameters.extreme(value, np.min)
  largest = hyperparameters.extreme(value, np.max)
  if smallest is None or largest is None:
    return
  if not (smallest > 0 and largest <= 1):
    bad = largest if smallest > 0 else smallest
    raise ValueError(
      f"{name}={bad}, but it must lie in (0, 1].  A step multiplies a part of "
      f"its state by {name}; with 0 it forgets that part, so two states lead "
      "to the same one and no inverse exists, and a negative or larger factor "
      "is not a decay that a buffer of known size can undo."
    )


def floor(factor: Any) -> float:
  """Room for twice the bits of a factor; 0.5 if it is traced or a function."""
  smallest = hyperparameters.extreme(factor, np.min)
  return 0.5 if smallest is None else roomy_floor(smallest)


def _decay_floor(learning_rate: Any, weight_decay: Any) -> float:
  """Likewise for 1 - learning_rate * weight_decay, by default 0.99."""
  rate = hyperparameters.extreme(learning_rate, np.max)
  decay = hyperparameters.extreme(weight_decay, np.max)
  if rate is None or decay is None or not 0 <= rate * decay < 1:
    return 0.99
  return roomy_floor(1 - rate * decay)


def roomy_floor(factor: float) -> float:
  """A floor that leaves room for twice the bits of a factor, rounded up.

  Quarter octaves, so that nearby factors share a floor and a compilation.

  >>> round(roomy_floor(0.9), 3)
  0.783
  """
  bits = -2 * math.log2(factor)
  if bits == 0:
    return 1.0
  return 2.0 ** -(2.0 ** (math.ceil(4 * math.log2(bits)) / 4))
