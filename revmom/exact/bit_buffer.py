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
log2(b'/b) bits) and without noise (the discarded fraction stays in r').  N
itself stays, so the buffer holds N, modulo the size of an integer; with i it
determines r.

When which capacity is due is in `revmom.exact.capacities`.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jax.custom_batching import custom_vmap
from jax.typing import ArrayLike, DTypeLike

from revmom.exact import fixed_point
from revmom.exact.capacities import Ratio, Schedule, layout
from revmom.exact.fence import origin


class BitBuffer(NamedTuple):
  """What multiplications took out of an array of integers."""

  number: jax.Array  # N, modulo the size of an integer, like the integers
  # [rows, *integers.shape], uint8 (uint32 for int64); None if no row is needed.
  words: jax.Array | None


def init(integers: jax.Array, rows: int) -> BitBuffer:
  """An empty buffer for an array of integers, sharded like it."""
  number = integers * layout(integers.dtype).initial_capacity
  return BitBuffer(number, empty_words(integers, rows))


def empty_words(integers: jax.Array, rows: int) -> jax.Array | None:
  """Words for integers on a grid, all zero; None for no rows.

  They are spread over devices as the integers are, which inside of `jit` only
  arithmetic on those can tell a compiler.
  """
  if not rows:
    return None
  zeros = integers * origin([integers]).astype(integers.dtype)
  words = zeros.astype(layout(integers.dtype).word_dtype)
  return jnp.broadcast_to(words, (rows, *integers.shape))


def is_empty(integers: jax.Array, buffer: BitBuffer) -> jax.Array:
  """Whether nothing is left in the heads of a buffer, as before a run."""
  capacity = layout(integers.dtype).initial_capacity
  return jnp.all(remainder(integers, buffer.number, capacity) == 0)


def remainder(
  integers: jax.Array, number: jax.Array, capacity: ArrayLike
) -> jax.Array:
  """r = N - i b, of N modulo the size of an integer."""
  return number - integers * capacity


def rescale(integers: jax.Array, number: jax.Array, ratio: Ratio) -> jax.Array:
  """Equation (1): the integers of the same number N on another base.

  `overflow` stays what it is.
  """
  rest = remainder(integers, number, ratio.numerator)
  whole = integers * ratio.whole
  nearest = _nearest(
    integers, rest, number, ratio.denominator, ratio.fraction, whole
  )
  return jnp.where(fixed_point.has_overflowed(integers), integers, nearest)


def _nearest(integers, rest, number, capacity, fraction, summand):
  """round(N / b') for N = i b + rest + j b', `number` being N modulo.

  It is estimated as the product of i and `fraction`, in limbs, plus `summand`
  (j, and what `fraction` leaves out of b / b'), with an error of at most one:
  half from the last digit of the fraction, half from rounding the sum, and far
  less than half from floats.  What N leaves beside it tells which way.
  """
  layout_ = layout(integers.dtype)
  limb, mask = layout_.limb, 2**layout_.limb - 1
  real = lambda values: values.astype(layout_.float_dtype)
  high, low = integers >> limb, integers & mask
  # Below 2^(limb + 2), where floats resolve a fraction of one.
  small = real(high) * (real(fraction & mask) * 2.0**-limb)
  small = small + real(low) * (real(fraction) * 4.0**-limb)
  small = small + real(rest) * (1 / real(capacity))
  estimate = high * (fraction >> limb) + summand
  estimate = estimate + _round_small(small, integers.dtype)
  beside = number - estimate * capacity
  half = capacity >> 1
  above = beside >= capacity - half
  below = beside < -half
  return estimate + above.astype(number.dtype) - below.astype(number.dtype)


def _round_small(values: jax.Array, dtype: DTypeLike) -> jax.Array:
  """The nearest integers of floats that leave two bits of their mantissa.

  One sum and one difference, where a conversion would look for values that no
  integer can hold.
  """
  mantissa = jnp.finfo(values.dtype).nmant
  shift = jnp.asarray(1.5 * 2.0**mantissa, values.dtype)
  bits = lambda array: lax.bitcast_convert_type(array, dtype)
  return bits(values + shift) - bits(shift)


@custom_vmap
def _write_row(words, integers, number, step):
  """The low words of all remainders, if step.spill; and a number >= 0 then.

  On CPU a branch that is not taken costs nothing; elsewhere it would make the
  host wait for `spill`, so that a row is written at every step.
  """
  write = lambda: _rewrite_row(words, integers, number, step)
  keep = lambda: (words, jnp.zeros_like(step.row))
  return lax.platform_dependent(
    cpu=lambda: lax.cond(step.spill, write, keep), default=write
  )


def _rewrite_row(words, integers, number, step):
  # A narrow type takes the low bits.
  low = remainder(integers, number, step.full).astype(words.dtype)
  low = jnp.where(step.spill, low, _row(words, step))
  return lax.dynamic_update_index_in_dim(words, low, step.row, 0), step.row


@_write_row.def_vmap
def _write_rows(axis_size, batched, words, integers, number, step):
  """A batched branch would copy all words at every step; rewrite a row."""
  words_batched, *others_batched = batched
  if not words_batched:
    words = jnp.broadcast_to(words, (axis_size, *words.shape))
  axes = jax.tree.map(lambda own: 0 if own else None, tuple(others_batched))
  write = _rewrite_row if others_batched[2].spill else _write_row.fun
  args = words, integers, number, step
  return jax.vmap(write, (0, *axes))(*args), (True, True)


def _spill(integers, buffer: BitBuffer, step: Schedule) -> BitBuffer:
  """Moves the low word of every remainder to a row."""
  number, words = buffer
  words, written = _write_row(words, integers, number, step)
  # Zero, but not to a compiler: had it the choice, it would overwrite the
  # number before the row is written, and copy it first.
  zero = (written >> 31).astype(number.dtype)
  shifted = remainder(integers, number, step.full)
  shifted = shifted >> layout(number.dtype).word
  shifted = shifted + integers * step.before
  return BitBuffer(jnp.where(step.spill, shifted, number) ^ zero, words)


def _row(words: jax.Array, step: Schedule) -> jax.Array:
  return lax.dynamic_index_in_dim(words, step.row, keepdims=False)


def multiply_add(
  integers: jax.Array,
  buffer: BitBuffer,
  step: Schedule,
  increments: jax.Array,
  parts: ArrayLike = 0,
) -> tuple[jax.Array, BitBuffer]:
  """i <- round(beta i) + j, keeping in the buffer what rounding takes away.

  The remainder is the low digit of N, so that an increment may be finer than
  the grid: N grows by j b' + parts.

  Args:
    integers: any shape, int32 or int64; `overflow` stays what it is.
    buffer: of the same shape.
    step: one step and group of a `schedule`, all scalars.
    increments: j, of the same shape and type.
    parts: of `step.after`, at most that many.
  """
  if buffer.words is not None:  # else no step spills
    buffer = _spill(integers, buffer, step)
  number, words = buffer
  number = number + increments * step.after + parts
  # Not from the parts: compilers would compute them once more.
  rest = remainder(integers, number, step.before) - increments * step.after
  total = _nearest(integers, rest, number, step.after, step.factor, increments)
  return fixed_point.mark(total, integers), BitBuffer(number, words)


def subtract_divide(
  integers: jax.Array,
  buffer: BitBuffer,
  step: Schedule,
  increments: jax.Array,
  parts: ArrayLike = 0,
) -> tuple[jax.Array, jax.Array]:
  """Undoes `multiply_add`; returns the integers and the number.

  `overflow` stays what it is.  `words` is only read: see `erase`.
  """
  number, words = buffer
  number = number - increments * step.after - parts
  difference = fixed_point.subtract(integers, increments)
  ratio = Ratio(step.after, step.before, step.whole, step.fraction)
  quotient = rescale(difference, number, ratio)
  if words is None:
    return quotient, number
  rest = remainder(quotient, number, step.before)
  low = _row(words, step).astype(rest.dtype)
  rest = (rest << layout(rest.dtype).word) | low
  restored = quotient * step.full + rest
  return quotient, jnp.where(step.spill, restored, number)


def erase(words: jax.Array | None, step: Schedule) -> jax.Array | None:
  """Zeroes the row that `multiply_add` wrote in this step, if it wrote one."""
  if words is None:
    return None
  zeros = jnp.zeros(words.shape[1:], step.full.dtype)
  return _write_row(words, zeros, zeros, step)[0]
