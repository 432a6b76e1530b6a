"""Multiplication by a factor below one that loses nothing.

Heavy-ball momentum multiplies the velocity by beta, which throws log2(1/beta)
bits away.  Maclaurin, Duvenaud & Adams (2015, Algorithm 3) keep them: they
move the remainder of an integer division by d into an information buffer and
take a digit in base n out of it, for beta = n/d.  Here each element holds an
integer i and a remainder r of a mixed-radix number whose last digit has base
b (the capacity, one number for a whole array):

    N = i b + r,    -b/2 <= r < b/2,

so that N / b is the exact value in units of the grid, and i that value
rounded to nearest.  Multiplying by b / b' is then only a change of the base,

    i' = round(N / b'),    r' = N - i' b',                              (1)

which any b' undoes, without waste (the capacity grows by exactly
log2(b'/b) bits) and without noise (the discarded fraction stays in r').
The capacities approximate b_{t+1} = b_t / beta_t; each rounding error is
carried to the next step.  What float32 leaves out makes the factor of a step
differ from beta by some 2^-24 of it; reversals do not depend on it.

When the next capacity would pass 2^30, the low 8 bits of every remainder are
spilled to a row of `words`.  When that happens depends on the betas alone:
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
from jax.custom_batching import custom_vmap
from jax.typing import DTypeLike

from revmom.exact import fixed_point


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
  forward: Ratio
  inverse: Ratio


class BitBuffer(NamedTuple):
  """What multiplications took out of an array of integers."""

  remainder: jax.Array  # like the integers
  words: jax.Array  # [rows, *integers.shape], uint8 (uint32 for int64)


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


def schedule(forgetting: jax.Array, dtype: DTypeLike = jnp.int32) -> Schedule:
  """Capacities, ratios and spills of a run, from the betas alone.

  Args:
    forgetting: 1 - beta of every step and group, [steps, groups].  (Not beta:
      for the 1 - 1e-5 of a weight decay float32 would round 1e-5 by 0.3 %.)
    dtype: of the integers.

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
    carry = after, error, row + spill.astype(jnp.int32)
    return carry, (spill, row, before, after)

  _, (spill, row, before, after) = lax.scan(step, start, forgetting)
  return Schedule(
    spill, row, _ratio(before, after, layout_), _ratio(after, before, layout_)
  )


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


def init(integers: jax.Array, rows: int) -> BitBuffer:
  """An empty buffer for an array of integers, sharded like it."""
  words = jnp.zeros_like(integers, layout(integers.dtype).word_dtype)
  words = jnp.broadcast_to(words, (rows, *integers.shape))
  return BitBuffer(jnp.zeros_like(integers), words)


def is_empty(buffer: BitBuffer) -> jax.Array:
  """Whether nothing is left in the heads of the buffer."""
  return jnp.all(buffer.remainder == 0)


def rescale(
  integers: jax.Array, remainder: jax.Array, ratio: Ratio
) -> tuple[jax.Array, jax.Array]:
  """Equation (1): the same number N on another base, N = i b + r = i' b' + r'.

  `overflow` stays what it is.
  """
  quotient = _quotient(integers, remainder, ratio)
  return quotient, _rest(integers, remainder, quotient, ratio)


def _rest(integers, remainder, quotient, ratio):
  """r' = N - i' b', modulo the word size."""
  whole = remainder + integers * ratio.numerator
  return whole - quotient * ratio.denominator


def _quotient(integers, remainder, ratio):
  """i' = round(N / b').

  It is estimated from limbs of i and b / b', with an error of at most one; the
  remainder, computed modulo the word size, tells which way.
  """
  layout_ = layout(integers.dtype)
  limb, mask = layout_.limb, 2**layout_.limb - 1
  scale = 2.0**limb / ratio.denominator.astype(layout_.float_dtype)
  carry = jnp.round(remainder.astype(layout_.float_dtype) * scale)
  high, low = integers >> limb, integers & mask
  ratio_high, ratio_low = ratio.fraction >> limb, ratio.fraction & mask
  # low * ratio_low matters less than the error that is allowed.
  middle = high * ratio_low + low * ratio_high
  middle = middle + carry.astype(integers.dtype) + (1 << (limb - 1))
  estimate = integers * ratio.whole + high * ratio_high + (middle >> limb)
  rest = _rest(integers, remainder, estimate, ratio)
  half = ratio.denominator >> 1
  one = jnp.ones((), integers.dtype)
  quotient = jnp.where(
    rest >= ratio.denominator - half, estimate + one, estimate
  )
  quotient = jnp.where(rest < -half, estimate - one, quotient)
  return jnp.where(fixed_point.has_overflowed(integers), integers, quotient)


@custom_vmap
def _write_row(words, values, spill, row):
  """words[row] = values, in the words' type, if spill.

  On CPU a branch that is not taken costs nothing; elsewhere it would make the
  host wait for `spill`, so that a row is written at every step.
  """

  def write():
    low = values.astype(words.dtype)
    return lax.dynamic_update_index_in_dim(words, low, row, 0)

  return lax.platform_dependent(
    cpu=lambda: lax.cond(spill, write, lambda: words),
    default=lambda: _rewrite_row(words, values, spill, row),
  )


def _rewrite_row(words, values, spill, row):
  kept = lax.dynamic_index_in_dim(words, row, keepdims=False)
  values = jnp.where(spill, values.astype(words.dtype), kept)
  return lax.dynamic_update_index_in_dim(words, values, row, 0)


@_write_row.def_vmap
def _write_rows(axis_size, batched, words, values, spill, row):
  """A batched branch would copy all words at every step; rewrite a row."""
  words_batched, _, spill_batched, _ = batched
  if not words_batched:
    words = jnp.broadcast_to(words, (axis_size, *words.shape))
  axes = [0, *(0 if b else None for b in batched[1:])]
  write = _rewrite_row if spill_batched else _write_row.fun
  return jax.vmap(write, axes)(words, values, spill, row), True


def multiply_add(
  integers: jax.Array,
  buffer: BitBuffer,
  step: Schedule,
  increments: jax.Array,
  parts: jax.Array | None = None,
) -> tuple[jax.Array, BitBuffer]:
  """i <- round(beta i) + j, keeping in the buffer what rounding takes away.

  The remainder is the low digit of N, so that an increment may be finer than
  the grid: with `parts` N grows by j b' + parts.

  Args:
    integers: any shape, int32 or int64; `overflow` stays what it is.
    buffer: of the same shape.
    step: one step and group of a `schedule`, all scalars.
    increments: j, of the same shape and type.
    parts: of `step.forward.denominator`, at most that many; or None.
  """
  remainder, words = buffer
  if words.shape[0]:  # a narrow type takes the low bits
    words = _write_row(words, remainder, step.spill, step.row)
  remainder = spilled(remainder, step)
  if parts is not None:
    remainder = remainder + parts
  ratio = step.forward
  total = fixed_point.add(_quotient(integers, remainder, ratio), increments)
  # Not from the quotient, which compilers would compute a second time for it.
  remainder = _rest(integers, remainder, total - increments, ratio)
  return total, BitBuffer(remainder, words)


def spilled(remainder: jax.Array, step: Schedule) -> jax.Array:
  """The remainder without the word that is spilled before multiplying."""
  word = layout(remainder.dtype).word
  return jnp.where(step.spill, remainder >> word, remainder)


def subtract_divide(
  integers: jax.Array,
  buffer: BitBuffer,
  step: Schedule,
  increments: jax.Array,
  parts: jax.Array | None = None,
) -> tuple[jax.Array, jax.Array]:
  """Undoes `multiply_add`; returns the integers and the remainder.

  `overflow` stays what it is.  `words` is only read: see `erase`.
  """
  remainder, words = buffer
  if parts is not None:
    remainder = remainder - parts
  word = layout(integers.dtype).word
  difference = fixed_point.subtract(integers, increments)
  quotient, remainder = rescale(difference, remainder, step.inverse)
  if words.shape[0]:
    remainder = lax.cond(
      step.spill,
      lambda: (remainder << word) | _row(words, step).astype(remainder.dtype),
      lambda: remainder,
    )
  return quotient, remainder


def _row(words: jax.Array, step: Schedule) -> jax.Array:
  return lax.dynamic_index_in_dim(words, step.row, keepdims=False)


def erase(words: jax.Array, step: Schedule) -> jax.Array:
  """Zeroes the row that `multiply_add` wrote in this step, if it wrote one."""
  if not words.shape[0]:
    return words
  zeros = jnp.zeros(words.shape[1:], words.dtype)
  return _write_row(words, zeros, step.spill, step.row)
