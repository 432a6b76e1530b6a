"""A NaN that says what went wrong.

A float32 NaN has 22 bits to spare: six mark it as one of this library, and
what is counted, and sixteen hold a number.  They survive further arithmetic on
a CPU; narrower types and most accelerators drop them.
"""

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.typing import ArrayLike

STEPS, LAYERS = 0x2B, 0x2C  # six bits each
EVERY = 16  # layers of which one is compared
# Instead of a number: a value left its grid, or a budget was too small.
LEFT_GRID, FULL = 2**16 - 1, 2**16 - 2
_QUIET = 0x7FC00000


def noted(
  mark: int,
  diverged_at: jax.Array,
  in_range: jax.Array,
  full: ArrayLike = False,
) -> jax.Array:
  """A NaN for a reversal that failed, float32 [].

  Args:
    mark: `STEPS` or `LAYERS`.
    diverged_at: int32 [], the last place known to be wrong, or -1.
    in_range: bool [], whether all values stayed on their grids.
    full: bool [], whether bits had no room.

  >>> nan = noted(LAYERS, jnp.array(48), jnp.array(True))
  >>> print(2 * nan, read(np.asarray(2 * nan), LAYERS))
  nan 49
  """
  place = jnp.clip(diverged_at + 1, 0, FULL - 1)
  number = jnp.where(in_range, jnp.where(full, FULL, place), LEFT_GRID)
  bits = _QUIET | (mark << 16) | number.astype(jnp.uint32)
  return lax.bitcast_convert_type(bits, jnp.float32)


def read(values: np.ndarray, mark: int) -> int | None:
  """The number in the first NaN of a mark: 1 + `diverged_at`, or another one.

  None where there is no such NaN.
  """
  if values.dtype not in (np.float32, np.float64):
    return None
  lost = values[np.isnan(values)].astype(np.float32).view(np.uint32)
  notes = lost[(lost & 0x7FFF0000) == (_QUIET | (mark << 16))] & 0xFFFF
  return int(notes[0]) if notes.size else None
