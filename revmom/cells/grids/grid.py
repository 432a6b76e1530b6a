"""What is known of a grid before a sweep: directions, schedules, and masks.

A cell at position p of an n-dimensional grid sees its n neighbours p - d e_d,
where the direction d of an axis is +1 or -1 and e_d the axis' unit vector.

Schedules differ in order alone:

- "rows" nests one scan for each axis.  The products for all axes but the last
  are made for a whole slab of the grid at once.
- "wavefront" scans over the anti-diagonals p_1 + ... + p_n = k, all of whose
  cells are computed at once: S_1 + ... + S_n - n + 1 rounds for sizes S.
"""

import itertools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from revmom.exact.tracing import concrete

SCHEDULES = ("rows", "wavefront")
PIPELINED = "pipelined"  # of several layers: see `pipeline`


class Plan(NamedTuple):
  """The way that a sweep takes."""

  direction: tuple[int, ...]
  schedule: str

  def reversed(self) -> "Plan":
    """The way back, which adjoints take."""
    return Plan(tuple(-d for d in self.direction), self.schedule)


def plan(ndim: int, direction: Any = None, schedule: str | None = None) -> Plan:
  """Checks a direction and a schedule, and fills in the defaults.

  Args:
    ndim: the number of axes of the grid.
    direction: +1 or -1 for each axis; None is +1 for all.
    schedule: "rows", "wavefront", or "pipelined"; None is "rows" where JAX's
      default backend is the CPU, which gains nothing from large batches of
      cells, and "wavefront" elsewhere.

  Raises:
    ValueError: for anything else.

  >>> plan(2, (1, -1), "rows")
  Plan(direction=(1, -1), schedule='rows')
  """
  direction = (1,) * ndim if direction is None else tuple(direction)
  if len(direction) != ndim or any(d not in (1, -1) for d in direction):
    raise ValueError(
      f"direction={direction}; give +1 or -1 for each of the {ndim} axes, such "
      f"as {(1,) * ndim}."
    )
  if schedule is None:
    schedule = "rows" if jax.default_backend() == "cpu" else "wavefront"
  if schedule not in (*SCHEDULES, PIPELINED):
    raise ValueError(
      f"schedule={schedule!r}; choose one of {SCHEDULES}, or {PIPELINED!r} for "
      "several layers."
    )
  return Plan(direction, schedule)


def all_directions(ndim: int) -> tuple[tuple[int, ...], ...]:
  """The 2^n directions of a grid, one for each corner to start from.

  >>> all_directions(2)
  ((1, 1), (1, -1), (-1, 1), (-1, -1))
  """
  return tuple(itertools.product((1, -1), repeat=ndim))


def valid_cells(
  sizes: Any, shape: tuple[int, ...], batch: int
) -> jax.Array | None:
  """Which cells of a padded grid belong to each example.

  Args:
    sizes: int32 [B, n], the sizes of each example's own grid; or None.
    shape: of the padded grid, n sizes.
    batch: B.

  Returns:
    bool [S_1, ..., S_n, B, 1], or None without sizes.

  Raises:
    ValueError: sizes of another shape or type, or, if they are not traced,
      beyond the grid.  Traced ones are clipped to it.

  >>> valid_cells(jnp.array([[1, 2], [2, 0]]), (2, 2), 2)[..., 0].astype(int)
  Array([[[1, 0], [1, 0]],
         [[0, 0], [0, 0]]], dtype=int32)
  """
  if sizes is None:
    return None
  sizes = jnp.asarray(sizes)
  if sizes.shape != (batch, len(shape)):
    raise ValueError(
      f"sizes has the shape {sizes.shape}, but a batch of {batch} grids of "
      f"{len(shape)} axes needs {(batch, len(shape))}: one row per example."
    )
  if not jnp.issubdtype(sizes.dtype, jnp.integer):
    raise ValueError(f"sizes is {sizes.dtype}; give integers, such as int32.")
  _check_range(sizes, shape)
  valid: Any = True
  for axis, length in enumerate(shape):
    along = [1] * len(shape)
    along[axis] = length
    positions = jnp.arange(length, dtype=sizes.dtype).reshape(*along, 1)
    valid = valid & (positions < sizes[:, axis])
  return valid[..., None]


def _check_range(sizes: jax.Array, shape: tuple[int, ...]) -> None:
  values = concrete(sizes)
  if values is None:
    return
  wrong = np.argwhere((values < 0) | (values > np.asarray(shape)))
  if len(wrong):
    example, axis = wrong[0]
    raise ValueError(
      f"sizes[{example}, {axis}] is {values[example, axis]}, but this axis of "
      f"the grid has {shape[axis]} cells; give 0 to {shape[axis]}."
    )


def masked(valid: jax.Array | None, values: Any) -> Any:
  """Zero outside of the valid cells, whatever was there."""
  if valid is None:
    return values
  return jax.tree.map(lambda v: jnp.where(valid, v, jnp.zeros_like(v)), values)


def previous(values: jax.Array, axis: int, direction: int) -> jax.Array:
  """What the neighbours along an axis have; zero where there is none.

  >>> previous(jnp.array([1, 2, 3]), axis=0, direction=-1)
  Array([2, 3, 0], dtype=int32)
  """
  padding = [(0, 0, 0)] * values.ndim
  padding[axis] = (direction, -direction, 0)
  return lax.pad(values, jnp.zeros((), values.dtype), padding)
