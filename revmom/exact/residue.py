"""Rounded numbers that come back although they are computed otherwise.

A number g is rounded to a grid, j = round(g / u), and only k low bits of the
integer j are kept.  Another computation of g, in another order or on another
device, gives g~; then j is the integer nearest to g~ / u with those low bits,

    j = r + 2^k round((g~ / u - r) / 2^k),   r = j mod 2^k,

exactly as long as |g~ - g| < (2^(k - 1) - 1/2) u: j is no further than half of
2^k from g~ / u then, and all others with the same low bits are.

The unit u is a power of two below the largest magnitude of a block of 128
numbers, which is kept, too, in a byte, so that small numbers keep their digits
wherever they are not beside large ones.
"""

import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.typing import DTypeLike

BLOCK = 128  # numbers
BITS = (0, 1, 2, 4, 8)
_LEAST, _MOST, _LOST = -100, 126, 127  # exponents, and of what is not a number


class Residues(NamedTuple):
  """What is kept of an array of n numbers."""

  digits: jax.Array  # uint8 [blocks, BLOCK * bits / 8]
  exponents: jax.Array  # int8 [blocks]


def digits_of(dtype: DTypeLike) -> int:
  """Binary digits that numbers of a type are rounded to, of a block's largest.

  Five less than the type has, so that k = 2 bits forgive errors of 48 units in
  the last place of the largest; narrow types have to do with all they have.

  >>> digits_of(jnp.float32), digits_of(jnp.bfloat16)
  (19, 8)
  """
  own = jnp.finfo(dtype).nmant + 1
  return own - 5 if own > 16 else min(own, 8)


def bytes_of(size: int, bits: int) -> float:
  """Bytes that are kept of an array.

  >>> bytes_of(1000, 2)
  264.0
  """
  return math.ceil(size / BLOCK) * (BLOCK * bits / 8 + 1)


def keep(
  values: jax.Array, bits: int, digits: int
) -> tuple[jax.Array, Residues]:
  """Rounds numbers, and keeps what tells them from their neighbours.

  Args:
    values: float32 or float64 of any shape.
    bits: k, of `BITS` and not 0.
    digits: u is 2^-digits of the power of two above a block's largest.

  Returns:
    The rounded numbers, all of a block NaN if one of them is not finite, and
    their residues.

  >>> values = jnp.array([0.3, -1.7, 1e-4])
  >>> rounded, kept = keep(values, 2, 10)
  >>> print(rounded, restore(values * 1.0005, kept, 2, 10) == rounded)
  [ 0.30078125 -1.6992188   0.        ] [ True  True  True]
  """
  blocks = _blocks(values)
  peaks = jnp.max(jnp.abs(blocks), 1)
  finite = jnp.isfinite(peaks)
  _, exponents = jnp.frexp(jnp.where(finite, peaks, 1))
  exponents = jnp.clip(exponents, _LEAST, _MOST)
  exponents = jnp.where(finite, exponents, _LOST).astype(jnp.int8)
  unit = _unit(exponents, digits, blocks.dtype)
  integers = jnp.round(jnp.where(finite[:, None], blocks, 0) / unit)
  low = integers.astype(_integer(blocks.dtype)) & (2**bits - 1)
  each = low.astype(jnp.uint8).reshape(
    len(blocks), BLOCK * bits // 8, 8 // bits
  )
  shifts = jnp.arange(0, 8, bits, dtype=jnp.uint8)
  packed = jnp.sum(each << shifts, 2, dtype=jnp.uint8)
  rounded = _values(integers, exponents, digits, values)
  return rounded, Residues(packed, exponents)


def restore(
  near: jax.Array, kept: Residues, bits: int, digits: int
) -> jax.Array:
  """The rounded numbers of `keep`, from ones that are close enough."""
  blocks = _blocks(near)
  unit = _unit(kept.exponents, digits, blocks.dtype)
  shifts = jnp.arange(0, 8, bits, dtype=jnp.uint8)
  low = (kept.digits[:, :, None] >> shifts) & jnp.uint8(2**bits - 1)
  low = low.reshape(blocks.shape).astype(blocks.dtype)
  turns = jnp.round((blocks / unit - low) * 2.0**-bits)
  return _values(low + 2.0**bits * turns, kept.exponents, digits, near)


def nothing(size: int, bits: int) -> Residues:
  """Zeros in the shape of the residues of an array."""
  blocks = math.ceil(size / BLOCK)
  return Residues(
    jnp.zeros((blocks, BLOCK * bits // 8), jnp.uint8),
    jnp.zeros(blocks, jnp.int8),
  )


def _blocks(values: jax.Array) -> jax.Array:
  flat = values.reshape(-1)
  flat = jnp.pad(flat, (0, -flat.size % BLOCK))
  return flat.reshape(flat.size // BLOCK, BLOCK)


def _integer(dtype: DTypeLike) -> DTypeLike:
  return jnp.int64 if jnp.dtype(dtype).itemsize == 8 else jnp.int32


def _unit(exponents: jax.Array, digits: int, dtype: DTypeLike) -> jax.Array:
  power = exponents.astype(jnp.int32) - digits
  return jnp.ldexp(jnp.ones((), dtype), power)[:, None]


def _values(
  integers: jax.Array, exponents: jax.Array, digits: int, like: jax.Array
) -> jax.Array:
  """Integers times the unit, which is exact, as an array like another."""
  found = integers * _unit(exponents, digits, integers.dtype)
  found = jnp.where((exponents == _LOST)[:, None], jnp.nan, found)
  return found.reshape(-1)[: like.size].reshape(like.shape)
