"""A hash of integers, by which a reversal is compared with what it undoes."""

import math

import jax
import jax.numpy as jnp
from jax import lax

from revmom.steps.leaf import Leaf, exact


def checksum(leaves: list[Leaf]) -> jax.Array:
  """A hash of all integers and of where they stand, uint32 [2].

  Two sums over hashed elements, so that sharding can't matter.  An element's
  hash takes in, one after the other, the number of its leaf, its place in it
  and the integers it has there.  Every one of
  these steps is one to one, so that no single change is lost, and the last ones
  are those of a finaliser (https://github.com/skeeto/hash-prospector), in which
  every bit of the result depends on every bit of what went in.

  A change of the top bit alone comes through a step as it is, so that changes
  of two integers of an element could undo each other.  The second sum knows
  them in another way, too, in which the same ones can't: 3 (3 a + b) + c.
  """
  totals = jnp.zeros(2, jnp.uint32)
  for number, leaf in enumerate(leaves):
    numbers = [leaf.buffers[name].number for name in exact(leaf.buffers)]
    integers = [leaf.integers[name] for name in exact(leaf.integers)]
    mixed = jnp.full((), number * 0x9E3779B1 % 2**32, jnp.uint32)
    plain = jnp.zeros((), jnp.uint32)
    for values in [_places(integers[0].shape), *integers, *numbers]:
      for part in _parts(values):
        mixed = mixed ^ part
        mixed = (mixed ^ (mixed >> 16)) * jnp.uint32(0x21F0AAAD)
        plain = 3 * plain + part
    early = mixed ^ (mixed >> 15)
    late = (early ^ plain) * jnp.uint32(0x735A2D97)
    late = late ^ (late >> 15)
    totals = totals + jnp.stack(_sums(early, late))
  return totals


def _places(shape: tuple[int, ...]) -> jax.Array:
  """The flat index of every element, modulo 2^32."""
  places = jnp.zeros(shape, jnp.uint32)
  for axis in range(len(shape)):
    stride = jnp.uint32(math.prod(shape[axis + 1 :]) % 2**32)
    places = places + lax.broadcasted_iota(jnp.uint32, shape, axis) * stride
  return places


def _parts(integers: jax.Array) -> list[jax.Array]:
  """Integers as 32 bits each."""
  low = integers.astype(jnp.uint32)
  if integers.dtype == jnp.int64:
    return [low, (integers >> 32).astype(jnp.uint32)]
  return [low]


def _sums(*arrays: jax.Array) -> list[jax.Array]:
  """The sum of each, all in one pass over memory."""
  zeros = tuple(jnp.zeros((), jnp.uint32) for _ in arrays)
  add = lambda a, b: tuple(x + y for x, y in zip(a, b, strict=True))
  return lax.reduce(arrays, zeros, add, tuple(range(arrays[0].ndim)))
