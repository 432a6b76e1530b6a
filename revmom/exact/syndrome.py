"""Parities of a block of integers, from a hash of them.

Of a block of integers nothing is kept but a linear hash of their parities, the
sum modulo 2 of a fixed word for each odd one: its syndrome.  Whoever has
numbers near the integers rounds them.  Those few that were near a border
between two integers may have become the neighbour, so the syndrome of the
result differs by the sum of their words.  All subsets of the most ambiguous
numbers are tried; of those that explain the syndrome that one is taken which
has to move the numbers least (Slepian & Wolf 1973; Fossorier & Lin 1995).

A block of which no subset explains its syndrome is lost, and is NaN.  Another
subset explains it by chance once in 2^24: that is a wrong integer, for the
checksums of a run to find.
"""

import jax
import jax.numpy as jnp
import numpy as np

BLOCK = 256  # integers
BYTES = 3  # of a syndrome
_TRIED = 8  # ambiguous numbers, in all 2^8 subsets
_SEED = 20


def _words() -> np.ndarray:
  """Different ones of 24 bits, one for each integer of a block."""
  # The older generator gives the same numbers in all versions of NumPy.
  random = np.random.RandomState(_SEED)
  return random.randint(1, 2**24, BLOCK, dtype=np.uint32)


def of(integers: jax.Array) -> jax.Array:
  """The syndromes of blocks of integers [n, BLOCK]: uint8 [n, BYTES].

  >>> of(jnp.zeros((1, 256), jnp.int32))
  Array([[0, 0, 0]], dtype=uint8)
  """
  return _as_bytes(_sums(integers))


def _sums(integers: jax.Array) -> jax.Array:
  """The syndromes as words, uint32 [n]."""
  # As a product, which is exact whatever the precision and can be spread over
  # devices: zeros and ones, and no sum is larger than a block.
  places = np.arange(8 * BYTES, dtype=np.uint32)
  digits = ((_words()[:, None] >> places) & 1).astype(np.float32)
  counts = (integers & 1).astype(jnp.float32) @ digits
  odd = counts.astype(jnp.uint32) & 1
  return jnp.sum(odd << places, 1, dtype=jnp.uint32)


def _as_bytes(words: jax.Array) -> jax.Array:
  shifts = jnp.arange(0, 8 * BYTES, 8, dtype=jnp.uint32)
  return (words[:, None] >> shifts).astype(jnp.uint8)


def _as_words(packed: jax.Array) -> jax.Array:
  shifts = jnp.arange(0, 8 * BYTES, 8, dtype=jnp.uint32)
  return jnp.sum(packed.astype(jnp.uint32) << shifts, 1, dtype=jnp.uint32)


def decode(
  near: jax.Array, packed: jax.Array
) -> tuple[jax.Array, jax.Array, jax.Array]:
  """The integers of `of`, from numbers near them.

  Args:
    near: [n, BLOCK].
    packed: syndromes, [n, BYTES].

  Returns:
    Integers as floats [n, BLOCK], NaN in blocks that are lost; how far beyond
    a border the furthest number was, [n], infinite if a block is lost; and how
    near to a border a number had to be in order to be tried.
  """
  rounded = jnp.round(near)
  beside = near - rounded
  to_border = 0.5 - jnp.abs(beside)
  nearest, index = jax.lax.top_k(-to_border, _TRIED)
  integers = rounded.astype(jnp.int64 if near.dtype.itemsize == 8 else "int32")
  wanted = _as_words(packed) ^ _sums(integers)
  chosen = _cheapest(jnp.asarray(_words())[index], -nearest, wanted)
  found = chosen >= 0
  moved = (chosen[:, None] >> jnp.arange(_TRIED)) & 1
  moved = moved.astype(bool) & found[:, None]
  at = index[:, :, None] == jnp.arange(BLOCK)
  flips = jnp.any(at & moved[:, :, None], 1)
  sign = jnp.where(beside >= 0, 1, -1).astype(near.dtype)
  restored = rounded + jnp.where(flips, sign, 0)
  restored = jnp.where(found[:, None], restored, jnp.nan)
  furthest = jnp.max(jnp.where(moved, -nearest, 0), 1)
  return (
    restored,
    jnp.where(found, furthest, jnp.inf),
    jnp.max(-nearest, 1),
  )


def _cheapest(
  words: jax.Array, costs: jax.Array, wanted: jax.Array
) -> jax.Array:
  """The subset of least cost whose words add up to what is wanted.

  Args:
    words: uint32 [n, _TRIED].
    costs: of each, [n, _TRIED].
    wanted: uint32 [n].

  Returns:
    int32 [n], with a bit for each word; -1 if there is none.
  """
  sums = jnp.zeros((len(words), 1), words.dtype)
  totals = jnp.zeros((len(words), 1), costs.dtype)
  for i in range(_TRIED):
    sums = jnp.concatenate([sums, sums ^ words[:, i, None]], 1)
    totals = jnp.concatenate([totals, totals + costs[:, i, None]], 1)
  fits = sums == wanted[:, None]
  best = jnp.argmin(jnp.where(fits, totals, jnp.inf), 1)
  return jnp.where(jnp.any(fits, 1), best, -1).astype(jnp.int32)
