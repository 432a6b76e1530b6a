"""Fixed point: floats on a grid of integers, where sums lose nothing.

A float x is held as the integer i nearest to x * 2^b, b being the number of
fraction bits.  Integer sums are associative and have exact inverses; float
sums have neither.  Whatever leaves the range of the grid becomes `overflow`,
an integer that no later sum can leave again: the flag is sticky, needs no
memory of its own and no communication between devices.
"""

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.typing import ArrayLike, DTypeLike


def limit(dtype: DTypeLike) -> int:
  """The largest magnitude an integer on a grid may have.

  Two bits of headroom keep the sum of two values, and the 15-bit (31-bit)
  limbs of `bit_buffer.rescale`, free of wrap-around: 2^30 - 2^16 for int32,
  2^62 - 2^32 for int64.

  >>> limit(jnp.int32)
  1073676288
  """
  bits = jnp.iinfo(dtype).bits
  return 2 ** (bits - 2) - 2 ** (bits // 2)


def overflow(dtype: DTypeLike) -> int:
  """The integer that stands for a value that left its grid, or was NaN."""
  return int(jnp.iinfo(dtype).min)


def largest(fraction_bits: int, dtype: DTypeLike) -> float:
  """The largest magnitude of a float on the grid.

  >>> largest(24, jnp.int32)
  63.99609375
  """
  return limit(dtype) * 2.0**-fraction_bits


def to_fixed(
  values: ArrayLike, fraction_bits: int, dtype: DTypeLike = jnp.int32
) -> jax.Array:
  """Rounds floats to the grid: i = round(x * 2^fraction_bits).

  Args:
    values: floats of any shape.
    fraction_bits: the grid's resolution is 2^-fraction_bits.
    dtype: int32, or int64 where x64 is on.

  Returns:
    Integers of the same shape; NaN, infinities and magnitudes beyond
    `largest` become `overflow`.

  >>> to_fixed(jnp.array([0.75, -0.75, 1e9]), 2)
  Array([          3,          -3, -2147483648], dtype=int32)
  """
  values = jnp.asarray(values)
  scaled = values * jnp.asarray(2.0**fraction_bits, values.dtype)
  inside = jnp.abs(scaled) <= _limit_as_float(dtype, scaled.dtype)
  rounded = jnp.round(scaled).astype(dtype)
  return jnp.where(inside, rounded, jnp.asarray(overflow(dtype), dtype))


def to_increment(
  values: jax.Array, fraction_bits: int, dtype: DTypeLike = jnp.int32
) -> jax.Array:
  """Rounds floats to the grid, for `add` and `subtract`.

  What is too large, or not a number, becomes half a turn or one less, and any
  sum with it leaves the grid.

  >>> to_increment(jnp.array([0.75, -0.75, jnp.nan]), 2)
  Array([         3,         -3, 2147483647], dtype=int32)
  """
  scaled = values * jnp.asarray(2.0**fraction_bits, values.dtype)
  return _saturated(jnp.round(scaled), dtype)


def to_fine(
  values: jax.Array, fraction_bits: int, base: jax.Array, positive: bool = False
) -> tuple[jax.Array, jax.Array]:
  """Rounds floats to a grid that is `base` times finer, like `to_increment`.

  Args:
    values: floats of any shape that no compiler can see a product in: see
      `fence`.
    fraction_bits: of the coarse grid.
    base: parts of a unit of the coarse grid, int32 or int64 [].
    positive: round parts up, so that nothing positive becomes zero.

  Returns:
    Integers (i, f) of the type of `base`, for i + f / base; |f| <= base / 2
    (and one part more where it is rounded up).

  >>> to_fine(jnp.array([0.8, -0.8]), 2, jnp.array(100))
  (Array([ 3, -3], dtype=int32), Array([ 20, -20], dtype=int32))
  """
  scaled = values * jnp.asarray(2.0**fraction_bits, values.dtype)
  whole = jnp.round(scaled)
  parts = (scaled - whole) * base.astype(values.dtype)
  parts = jnp.ceil(parts) if positive else jnp.round(parts)
  return _saturated(whole, base.dtype), parts.astype(base.dtype)


def _saturated(whole: jax.Array, dtype: DTypeLike) -> jax.Array:
  """As integers, an extreme one for what is too large or not a number.

  One operand all along: compilers compute that where they need it, instead of
  once for all in a program of its own.
  """
  signed, unsigned = (
    (jnp.int64, jnp.uint64)
    if whole.dtype.itemsize == 8
    else (jnp.int32, jnp.uint32)
  )
  extreme = 2.0 ** (jnp.iinfo(dtype).bits - 1)
  # The bits of a NaN are more than those of any number of the same sign.
  for kind, bound in (signed, extreme), (unsigned, -extreme):
    limits = lax.bitcast_convert_type(jnp.asarray(bound, whole.dtype), kind)
    bits = jnp.minimum(lax.bitcast_convert_type(whole, kind), limits)
    whole = lax.bitcast_convert_type(bits, whole.dtype)
  return whole.astype(dtype)


def from_fine(
  integers: jax.Array,
  parts: jax.Array,
  base: jax.Array,
  fraction_bits: int,
  dtype: DTypeLike = jnp.float32,
) -> jax.Array:
  """The floats of i + parts / base, with 24 bits more than `fraction_bits`.

  >>> from_fine(jnp.array([3]), jnp.array([20]), jnp.array(100), 2)
  Array([0.8], dtype=float32)
  """
  # Rounded, because a sum of rounded numbers has no product to be fused with.
  scale = 2.0**24 / base.astype(dtype)
  parts = jnp.round(parts.astype(dtype) * scale) * jnp.asarray(2.0**-24, dtype)
  unit = jnp.asarray(2.0**-fraction_bits, dtype)
  values = (integers.astype(dtype) + parts) * unit
  return jnp.where(has_overflowed(integers), jnp.nan, values)


def _limit_as_float(dtype: DTypeLike, float_dtype: DTypeLike) -> np.ndarray:
  """The largest float that is no larger than the limit."""
  bound = np.asarray(limit(dtype), float_dtype)
  if int(bound) > limit(dtype):
    bound = np.nextafter(bound, np.zeros_like(bound))
  return bound


def from_fixed(
  integers: jax.Array, fraction_bits: int, dtype: DTypeLike = jnp.float32
) -> jax.Array:
  """The floats of the integers: x = i * 2^-fraction_bits, rounded to `dtype`.

  NaN for what has left its grid, so that all that is computed from it is, too.

  >>> from_fixed(jnp.array([3, -3, overflow(jnp.int32)]), 2)
  Array([ 0.75, -0.75,   nan], dtype=float32)
  """
  values = integers.astype(dtype) * jnp.asarray(2.0**-fraction_bits, dtype)
  return jnp.where(has_overflowed(integers), jnp.nan, values)


def has_overflowed(integers: jax.Array) -> jax.Array:
  """Where a value left its grid, now or at any time before."""
  return integers < -limit(integers.dtype)


def add(integers: jax.Array, increments: jax.Array) -> jax.Array:
  """The exact sum, or `overflow` where a term or the sum leaves the grid.

  >>> add(jnp.array([1, 2**29]), jnp.array([2, 2**29]))
  Array([          3, -2147483648], dtype=int32)
  """
  return mark(integers + increments, integers)


def subtract(integers: jax.Array, increments: jax.Array) -> jax.Array:
  """Undoes `add`: subtract(add(i, j), j) == i wherever nothing overflowed.

  >>> subtract(jnp.array([3, overflow(jnp.int32)]), jnp.array([2, 2**29]))
  Array([          1, -2147483648], dtype=int32)
  """
  return mark(integers - increments, integers)


def mark(result: jax.Array, integers: jax.Array) -> jax.Array:
  """`overflow` where a sum or one of its terms is not on the grid.

  Where only the increment is `overflow`, which is half a turn, or one less,
  the result wraps around to a place outside of the grid and needs no test of
  its own.
  """
  outside = has_overflowed(jnp.minimum(integers, result)) | (
    result > limit(result.dtype)
  )
  return jnp.where(outside, jnp.asarray(overflow(result.dtype)), result)
