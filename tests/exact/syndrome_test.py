"""Integers come back from numbers near them and a hash of their parities."""

import jax
import jax.numpy as jnp
import numpy as np

from revmom.exact import syndrome

BLOCKS = 400


def numbers(seed):
  """Numbers on either side of zero, and the integers they round to."""
  rng = np.random.default_rng(seed)
  values = rng.normal(size=(BLOCKS, syndrome.BLOCK)) * 2.0**13
  values = values.astype("float32")
  return values, np.rint(values)


def decode(near, integers):
  packed = syndrome.of(jnp.asarray(integers, jnp.int32))
  return jax.jit(syndrome.decode)(jnp.asarray(near), packed)


def test_any_subset_of_the_most_ambiguous_is_found():
  """Up to eight of them moved across, on all kinds of borders."""
  values, integers = numbers(0)
  rng = np.random.default_rng(1)
  near = integers.copy() + 0.25 * rng.choice([-1, 1], integers.shape)
  for block in range(BLOCKS):
    # Those that are nearest to a border are the ones that may be wrong.
    some = rng.choice(syndrome.BLOCK, block % 9, replace=False)
    side = rng.choice([-1, 1], len(some))
    near[block, some] = integers[block, some] + side * (0.5 + 1 / 64)
  restored, distance, bound = decode(near.astype("float32"), integers)
  np.testing.assert_array_equal(restored, integers)
  moved = np.arange(BLOCKS) % 9 > 0
  np.testing.assert_allclose(distance, np.where(moved, 1 / 64, 0))
  assert (np.asarray(distance) <= np.asarray(bound)).all()


def test_small_noise_is_forgiven():
  values, integers = numbers(2)
  rng = np.random.default_rng(3)
  near = values + rng.uniform(-0.002, 0.002, values.shape)
  assert (np.rint(near) != integers).any(1).mean() > 0.2
  restored, distance, bound = decode(near.astype("float32"), integers)
  np.testing.assert_array_equal(restored, integers)
  assert float(jnp.max(distance)) < 0.01


def test_large_noise_is_lost_and_hardly_ever_taken_for_something_else():
  values, integers = numbers(4)
  rng = np.random.default_rng(5)
  near = values + rng.uniform(-0.3, 0.3, values.shape)
  restored, distance, _ = decode(near.astype("float32"), integers)
  lost = np.isnan(np.asarray(restored))
  assert (lost.all(1) == lost.any(1)).all()
  assert np.isinf(np.asarray(distance)[lost.all(1)]).all()
  # Once in 2^16, for the checksums of a run.
  assert lost.all(1).sum() >= BLOCKS - 1
