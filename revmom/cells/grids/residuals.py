"""What a layer of cells on a grid keeps for its backward pass."""

from typing import Any

import jax

from revmom.cells.grids import grid
from revmom.cells.grids.equations import Seen
from revmom.exact.pytree import Pytree, static


class Residuals(Pytree):
  """What the backward pass needs to know of the forward pass.

  With several layers all but the inputs have a leading axis of layers.
  """

  inputs: jax.Array  # [S_1, ..., S_n, B, D]
  hidden: jax.Array  # [S_1, ..., S_n, B, H]
  memory: jax.Array | None  # [S_1, ..., S_n, B, H], float32 or wider
  gates: Any  # a NamedTuple of [S_1, ..., S_n, B, H], or None
  sizes: jax.Array | None  # [B, n]
  plan: grid.Plan = static()

  def seen(self) -> Seen:
    """What the adjoints of the cells read, at all positions."""
    memory, direction = self.memory, self.plan.direction
    if memory is None:
      return Seen(self.hidden, self.gates, None)
    first = memory.ndim - 2 - len(direction)  # behind the axis of layers
    previous = tuple(
      grid.previous(memory, first + axis, d) for axis, d in enumerate(direction)
    )
    return Seen(memory, self.gates, previous)
