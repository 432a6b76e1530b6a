"""Proof that activations were restored, or between which layers they were not.

Before one layer of `note.EVERY` all integers are hashed on the way forward; on
the way back the hashes must be the same.  The first layer is one of these.
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from revmom.depth import gates
from revmom.steps import note
from revmom.steps.checksum import checksum
from revmom.steps.leaf import Leaf


class Kept(NamedTuple):
  """What the reverse pass needs of the forward pass."""

  leaf: Leaf  # after all layers
  hashes: jax.Array  # uint32 [depth, 2]


def hash_of(leaf: Leaf, t: jax.Array) -> jax.Array:
  """Of the integers before layer t, if it is one that is compared."""
  return lax.cond(
    t % note.EVERY == 0,
    lambda: checksum([leaf]) + gates.height(leaf).astype(jnp.uint32),
    lambda: jnp.zeros(2, jnp.uint32),
  )


def compare(
  kept: Kept, leaf: Leaf, t: jax.Array, diverged_at: jax.Array
) -> jax.Array:
  """The last layer before which integers are known to be wrong, or -1."""
  wrong = jnp.any(hash_of(leaf, t) != kept.hashes[t])
  return jnp.where(wrong & (diverged_at < 0), t, diverged_at)


def proven(
  leaf: Leaf, diverged_at: jax.Array
) -> Callable[[jax.Array], jax.Array]:
  """Makes NaN of the cotangents of a reversal that failed.

  It must not return a plausible number.

  Args:
    leaf: from which the reversal began.
    diverged_at: what `compare` found.
  """
  in_range, full = ~jnp.any(leaf.overflowed), gates.are_full(leaf)
  restored = (diverged_at < 0) & in_range & ~full
  nan = note.noted(note.LAYERS, diverged_at, in_range, full)
  return lambda bar: jnp.where(restored, bar, nan.astype(bar.dtype))
