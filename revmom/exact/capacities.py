"""The capacities of buffers over a run, from its factors alone.

A multiplication by beta makes the capacity of a buffer larger by 1 / beta.
The capacities approximate b_{t+1} = b_t / beta_t; each rounding error is
carried to the next step.  What float32 leaves out makes the factor of a step
differ from beta by some 2^-24 of it; reversals do not depend on it.

When the next capacity would pass 2^30, the low 8 bits of every remainder are
spilled to a row of `words`, and N becomes i b' + r / 2^8 for the smaller
capacity b' that is left.  When that happens depends on the betas alone:
`schedule` computes all steps ahead, shapes are static, and nothing waits for
the host.  With 64-bit integers the capacity stays below 2^62 and words have
32 bits.
"""

import dataclasses
import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.typing import DTypeLike


@dataclasses.dataclass(frozen=True)
class Layout:
  """How many bits of an integer type go where."""

  limb: int  # half a value, so that products of two limbs fit
  word: int  # spilled at a time
  word_dtype: DTypeLike
  float_dtype: DTypeLike  # computes capacities

  @property
  def largest_capacity(self) -> int:
    return 2 ** (2 * self.limb)

  @property
  def initial_capacity(self) -> int:
    return 2 ** (2 * self.limb - self.word)

  @property
  def smallest_factor(self) -> float:
    """A spill must make room for the growth of one step."""
    return 2.0 ** (1 - self.word)


def layout(dtype: DTypeLike) -> Layout:
  """The layout that belongs to int32 or int64."""
  if jnp.dtype(dtype) == jnp.int32:
    return Layout(15, 8, jnp.uint8, jnp.float32)
  if jnp.dtype(dtype) == jnp.int64:
    return Layout(31, 32, jnp.uint32, jnp.float64)
  raise ValueError(f"integers are {jnp.dtype(dtype)}; use int32 or int64.")


def check_integer(integer: DTypeLike) -> None:
  """Raises ValueError for integers of another type, or int64 without x64."""
  integer = np.dtype(integer)
  if integer not in (np.dtype("int32"), np.dtype("int64")):
    raise ValueError(f"integer={integer.name}; choose int32 or int64.")
  if jax.dtypes.canonicalize_dtype(integer) != integer:
    raise ValueError(
      'integer="int64" needs 64-bit types; set JAX_ENABLE_X64=1 or '
      'jax.config.update("jax_enable_x64", True) first, or use int32.'
    )


class Ratio(NamedTuple):
  """numerator / denominator = whole + fraction / 2^(2 limb), of capacities."""

  numerator: jax.Array
  denominator: jax.Array
  whole: jax.Array
  fraction: jax.Array


class Schedule(NamedTuple):
  """When to spill and by what to multiply, for every step of a run.

  All have shape [steps, ...]; one step's slice is what `multiply_add`
  and `subtract_divide` take.
  """

  spill: jax.Array  # bool: move a word out before multiplying
  row: jax.Array  # int32: of `words`, where it goes
  full: jax.Array  # the capacity before that
  before: jax.Array  # the capacity before multiplying
  after: jax.Array  # and after
  factor: jax.Array  # before / after, times 2^(2 limb), at most one
  whole: jax.Array  # of after / before
  fraction: jax.Array  # likewise, times 2^(2 limb)


def rows_needed(
  forgetting: np.ndarray,
  dtype: DTypeLike = jnp.int32,
  length: int | None = None,
) -> int:
  """Words an element spills at most, from the betas alone.

  Args:
    forgetting: 1 - beta of every step of a run, [steps].
    dtype: of the integers.
    length: of a segment anywhere in the run; by default the whole run, which
      starts with an empty buffer and so with room for one word more.

  >>> rows_needed(np.full(1000, 1 - 0.9))  # 152 bits, 8 of them in the head
  19
  """
  factors = 1 - np.asarray(forgetting, np.float64)
  # A spill rounds the capacity, at least 2^22 beta, up by at most two.
  word = layout(dtype).word - 2.0**-20 / np.min(factors, initial=1.0)
  words = np.concatenate([[0.0], np.cumsum(-np.log2(factors))]) / word
  if length is None or length >= len(factors):
    most = words[-1] - 1
  else:
    most = np.max(words[length:] - words[: len(words) - length])
  return max(0, math.ceil(most + 2.0**-16)) if length != 0 else 0


def largest_forgotten(floor: float) -> float:
  """1 - floor, and a little more, for a factor that rounding put below it.

  >>> 0.1 < largest_forgotten(0.9) < 0.1000003
  True
  """
  return 1 - floor + 2.0**-22


def check_invertible(
  role: str, forgetting: np.ndarray, integer: DTypeLike
) -> None:
  """Raises ValueError for a factor that has no inverse on the grid."""
  factors = 1 - forgetting
  smallest = layout(integer).smallest_factor
  if np.all(forgetting >= 0) and np.all(factors >= smallest):
    return
  bad = factors[~((forgetting >= 0) & (factors >= smallest))].flat[0]
  raise ValueError(
    f"{role!r} would be multiplied by {bad} in a step; a factor must lie in "
    f"[{smallest}, 1].  A step that multiplies by 0 forgets the value, so it "
    "has no inverse; a factor below the bound spills more than one word a "
    "step; one above 1 would need bits that were never stored."
  )


def schedule(
  forgetting: jax.Array,
  dtype: DTypeLike = jnp.int32,
  past: Schedule | None = None,
) -> Schedule:
  """Capacities, ratios and spills of a run, from the betas alone.

  Args:
    forgetting: 1 - beta of every step and group, [steps, groups].  (Not beta:
      for the 1 - 1e-5 of a weight decay float32 would round 1e-5 by 0.3 %.)
    dtype: of the integers.
    past: the schedule of the first steps, if they were taken: it stays as it
      is, and the others go on from it.

  Returns:
    A schedule whose arrays have shape [steps, groups].
  """
  layout_ = layout(dtype)
  groups = forgetting.shape[1:]
  forgetting = forgetting.astype(layout_.float_dtype)
  start = (
    jnp.full(groups, layout_.initial_capacity, dtype),
    jnp.zeros(groups, layout_.float_dtype),
    jnp.zeros(groups, jnp.int32),
  )

  def step(carry, forgotten):
    capacity, error, row = carry
    spill, before, after, error = _next_capacity(
      capacity, error, forgotten, layout_
    )
    now = spill, row, capacity, before, after
    return (after, error, row + spill.astype(jnp.int32)), now

  if past is not None and len(past.row):
    # Only what rounding has left out so far is computed once more.
    (_, error, _), _ = lax.scan(step, start, forgetting[: len(past.row)])
    row = past.row[-1] + past.spill[-1].astype(jnp.int32)
    start = past.after[-1], error, row
    forgetting = forgetting[len(past.row) :]
  _, (spill, row, full, before, after) = lax.scan(step, start, forgetting)
  product = _ratio(before, after, layout_)
  factor = (product.whole << 2 * layout_.limb) + product.fraction
  quotient = _ratio(after, before, layout_)
  own = Schedule(
    spill, row, full, before, after, factor, quotient.whole, quotient.fraction
  )
  if past is None:
    return own
  return jax.tree.map(lambda *both: jnp.concatenate(both), past, own)


def _next_capacity(capacity, error, forgotten, layout_):
  """b' = b / beta, rounded; `error` is what rounding has left out so far."""
  growth = forgotten / (1 - forgotten)
  real = capacity.astype(layout_.float_dtype)
  room = jnp.asarray(layout_.largest_capacity * (1 - 2.0**-20), real.dtype)
  spill = real + real * growth > room
  # One more than half the spilled capacity's need on either side of zero.
  spilled = (capacity >> layout_.word) + 2
  lost = (capacity & (2**layout_.word - 1)).astype(real.dtype) + error
  error = jnp.where(spill, lost * 2.0**-layout_.word - 2, error)
  before = jnp.where(spill, spilled, capacity)
  exact = before.astype(real.dtype) * growth + error
  rounded = jnp.round(exact)
  return spill, before, before + rounded.astype(before.dtype), exact - rounded


def _ratio(numerator, denominator, layout_) -> Ratio:
  """Long division in base 2, to 2 * limb bits after the point, rounded."""
  whole = numerator // denominator

  def digit(_, carry):
    rest, quotient = carry
    bit = 2 * rest >= denominator
    return 2 * rest - jnp.where(bit, denominator, 0), 2 * quotient + bit.astype(
      rest.dtype
    )

  rest = numerator - whole * denominator
  rest, fraction = lax.fori_loop(
    0, 2 * layout_.limb, digit, (rest, jnp.zeros_like(rest))
  )
  round_up = (2 * rest >= denominator).astype(rest.dtype)
  return Ratio(numerator, denominator, whole, fraction + round_up)
