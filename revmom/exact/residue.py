"""Rounded numbers that come back although they are computed otherwise.

A number g is rounded to a grid, j = round(g / u), and only k low bits of the
integer j are kept.  Another computation of g, in another order or on another
device, gives g~; then j is the integer nearest to g~ / u with those low bits,

    j = r + 2^k round((g~ / u - r) / 2^k),   r = j mod 2^k,

exactly as long as |g~ - g| < (2^(k - 1) - 1/2) u: j is no further than half of
2^k from g~ / u then, and all others with the same low bits are.

Where few numbers round otherwise, a bit of each is more than is needed (Slepian
& Wolf 1973): see `revmom.exact.syndrome`.

The unit u is a power of two below the largest magnitude of a block of numbers,
which is kept, too, in a byte, so that small numbers keep their digits wherever
they are not beside large ones.
"""

import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.typing import DTypeLike

from revmom.exact import syndrome

SYNDROMES = "syndromes"
BITS = (0, 1, 2, 4, 8, SYNDROMES)
_BLOCK = 512  # numbers
_LEAST, _MOST, _LOST = -100, 126, 127  # exponents, and of what is not a number

_NEAR = 0.9  # of the bound: a margin that is narrower is a warning

Bits = int | str  # of `BITS`


class Residues(NamedTuple):
  """What is kept of an array of n numbers."""

  digits: jax.Array  # uint8 [ceil(n / 8) bits], or syndromes
  exponents: jax.Array  # int8 [blocks]


class Margin(NamedTuple):
  """How far a number that was computed again is from what was kept of it.

  Syndromes: how far beyond the border between two integers, among as many
  numbers as were tried.
  """

  distance: jax.Array  # float32 [], in units of the grid; infinite if lost
  bound: jax.Array  # float32 [], what is certain to be restored
  step: jax.Array  # int32 []

  @property
  def is_narrow(self) -> jax.Array:
    """Whether it is a warning."""
    return self.distance > _NEAR * self.bound

  def describe(self) -> str:
    """What was seen, in words; outside of `jit`."""
    distance, bound = float(self.distance), float(self.bound)
    step = int(self.step)
    if step < 0:
      return "Its residues were not needed: all numbers were on the grid."
    if math.isinf(distance):
      return (
        f"What was computed again in step {step} is none of what its residues "
        "stand for: it differs by more than they forgive."
      )
    said = (
      f"What was computed again was at most {distance:.3g} units of the grid "
      f"from what residues restored, in step {step}; up to {bound:.3g} are "
      "forgiven"
    )
    if bool(self.is_narrow):
      said += (
        ".  That is near the bound: keep more bits, or compute gradients more "
        "like those of the run"
      )
    return f"{said}."

  def nearer(self, other: "Margin") -> "Margin":
    """That of the two which is nearer to its bound."""
    swap = other.distance * self.bound > self.distance * other.bound
    return jax.tree.map(lambda a, b: jnp.where(swap, b, a), self, other)


def margin(distance: object = 0.0, bound: object = 1.0) -> Margin:
  """A margin that was seen before the first step, by default the widest."""
  as_float = lambda number: jnp.asarray(number, jnp.float32)
  return Margin(as_float(distance), as_float(bound), jnp.int32(-1))


def block_of(bits: Bits) -> int:
  """How many numbers share an exponent."""
  return syndrome.BLOCK if bits == SYNDROMES else _BLOCK


def digits_of(dtype: DTypeLike, bits: Bits) -> int:
  """Binary digits that gradients of a type are rounded to, of the largest.

  Up to four bits are for the same arithmetic in another order: five digits less
  than the type has, so that k = 2 forgives errors of 48 units in the last
  place of the largest.  Ten less for eight bits, which are for another
  precision and forgive 0.8 % of the largest; twelve less for syndromes, which
  forgive some hundredth of a unit.  Narrow types have to do with all they have.

  Raises:
    ValueError: syndromes of a type that has no digits to spare.

  >>> [digits_of(jnp.float32, bits) for bits in (2, 8, "syndromes")]
  [19, 14, 12]
  >>> digits_of(jnp.bfloat16, 2)
  8
  """
  own = jnp.finfo(dtype).nmant + 1
  if own > 16:
    return own - {8: 10, SYNDROMES: 12}.get(bits, 5)
  if bits != SYNDROMES:
    return min(own, 8)
  raise ValueError(
    f"residue_bits={bits!r} with gradients of {jnp.dtype(dtype)}, which have "
    f"{own} binary digits, none to spare; choose 2 or 4, or float32."
  )


def bytes_of(size: int, bits: Bits) -> int:
  """Bytes that are kept of an array.

  >>> bytes_of(1000, 2), bytes_of(1024, "syndromes")
  (252, 16)
  """
  return sum(math.prod(shape) for shape in _shapes(size, bits))


def _shapes(size: int, bits: Bits) -> tuple[tuple[int, ...], tuple[int, ...]]:
  blocks = math.ceil(size / block_of(bits))
  if bits == SYNDROMES:
    return (blocks, syndrome.BYTES), (blocks,)
  assert not isinstance(bits, str)
  return (math.ceil(size / 8) * bits,), (blocks,)


def nothing(size: int, bits: Bits) -> Residues:
  """Zeros in the shape of the residues of an array."""
  digits, exponents = _shapes(size, bits)
  return Residues(jnp.zeros(digits, jnp.uint8), jnp.zeros(exponents, jnp.int8))


def keep(
  values: jax.Array, bits: Bits, digits: int
) -> tuple[jax.Array, Residues]:
  """Rounds numbers, and keeps what tells them from their neighbours.

  Args:
    values: float32 or float64 of any shape.
    bits: k, or "syndromes"; not 0.
    digits: u is 2^-digits of the power of two above a block's largest.

  Returns:
    The rounded numbers, all of a block NaN if one of them is not finite, and
    their residues.

  >>> values = jnp.array([0.3, -1.7, 1e-4])
  >>> rounded, kept = keep(values, 2, 10)
  >>> again, _ = restore(values * 1.0005, kept, 2, 10)
  >>> print(rounded, again == rounded)
  [ 0.30078125 -1.6992188   0.        ] [ True  True  True]
  """
  blocks = _blocks(values, block_of(bits))
  peaks = jnp.max(jnp.abs(blocks), 1)
  finite = jnp.isfinite(peaks)
  _, exponents = jnp.frexp(jnp.where(finite, peaks, 1))
  exponents = jnp.clip(exponents, _LEAST, _MOST)
  exponents = jnp.where(finite, exponents, _LOST).astype(jnp.int8)
  unit = _unit(exponents, digits, blocks.dtype)
  rounded = jnp.round(jnp.where(finite[:, None], blocks, 0) / unit)
  integers = rounded.astype(_integer(blocks.dtype))
  if isinstance(bits, str):
    kept = syndrome.of(integers)
  else:
    kept = _packed(integers & (2**bits - 1), bits, values.size)
  found = _values(rounded, exponents, digits, values)
  return found, Residues(kept, exponents)


def restore(
  near: jax.Array, kept: Residues, bits: Bits, digits: int
) -> tuple[jax.Array, Margin]:
  """The rounded numbers of `keep`, from ones that are close enough."""
  blocks = _blocks(near, block_of(bits))
  unit = _unit(kept.exponents, digits, blocks.dtype)
  scaled = blocks / unit
  if isinstance(bits, str):
    integers, distances, bounds = syndrome.decode(scaled, kept.digits)
  else:
    low = _unpacked(kept.digits, bits, blocks.size)
    low = low.reshape(blocks.shape).astype(blocks.dtype)
    turns = jnp.round((scaled - low) * 2.0**-bits)
    integers = low + 2.0**bits * turns
    distances = jnp.max(jnp.abs(scaled - integers), 1)
    bounds = jnp.full_like(distances, 2.0 ** (bits - 1))
  lost = kept.exponents == _LOST
  distances = jnp.where(jnp.isnan(distances), jnp.inf, distances)
  distances = jnp.where(lost, 0, distances)
  found = _values(integers, kept.exponents, digits, near)
  return found, _least(distances, bounds)


def _least(distances: jax.Array, bounds: jax.Array) -> Margin:
  """The margin of the block that is nearest to its bound."""
  if not distances.size:
    return margin()
  bounds = jnp.maximum(bounds, jnp.finfo(bounds.dtype).tiny)
  at = jnp.argmax(distances / bounds)
  return margin(distances[at], bounds[at])


def _packed(low: jax.Array, bits: int, size: int) -> jax.Array:
  """Low bits of so many integers, 8 / bits of them in a byte.

  They are as many integers apart as there are bytes, so that bytes are made
  and read side by side.
  """
  count = math.ceil(size / 8) * 8
  parts = low.astype(jnp.uint8).reshape(-1)[:count].reshape(8 // bits, -1)
  packed = parts[0]
  for i in range(1, 8 // bits):
    packed = packed | (parts[i] << (i * bits))
  return packed


def _unpacked(packed: jax.Array, bits: int, count: int) -> jax.Array:
  parts = [packed >> i for i in range(0, 8, bits)]
  low = jnp.concatenate(parts) & (2**bits - 1)
  return jnp.pad(low, (0, count - low.size))


def _blocks(values: jax.Array, block: int) -> jax.Array:
  flat = values.reshape(-1)
  flat = jnp.pad(flat, (0, -flat.size % block))
  return flat.reshape(flat.size // block, block)


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
