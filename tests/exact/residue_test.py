"""Rounded numbers are restored from anything that is close enough."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from revmom.exact import residue


def numbers(dtype="float32"):
  """Of all sizes and signs, with zeros, subnormals and ragged ends."""
  rng = np.random.default_rng(0)
  values = rng.normal(size=1_000_003) * np.exp(4 * rng.normal(size=1_000_003))
  values[:300] = 0
  values[300:450] = 1e-41
  values[-1] = -0.0
  return values.astype(dtype)


def exponents(values):
  """Of the power of two above the largest of each 128."""
  padded = np.pad(values, (0, -len(values) % 128)).reshape(-1, 128)
  return np.frexp(np.abs(padded).max(1))[1]


@pytest.mark.parametrize("bits", [1, 2, 4, 8])
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_the_bound_is_what_it_says(bits, dtype):
  """Restored up to just below the bound, and wrong just beyond it."""
  digits = 12  # so that noise in parts of a unit is exact
  with jax.enable_x64(dtype == "float64"):
    values = jnp.asarray(numbers(dtype))
    keep = jax.jit(lambda v: residue.keep(v, bits, digits))
    restore = jax.jit(lambda v, kept: residue.restore(v, kept, bits, digits))
    rounded, kept = keep(values)
    normal = slice(4, None)  # the blocks without subnormal numbers
    np.testing.assert_array_equal(
      kept.exponents[normal], exponents(numbers(dtype))[normal]
    )
    powers = 2.0 ** (np.asarray(kept.exponents, float) - digits)
    unit = jnp.asarray(np.repeat(powers, 128)[: len(values)], dtype)
    assert float(jnp.max(jnp.abs(rounded - values) / unit)) <= 0.5
    rng = np.random.default_rng(1)
    sign = jnp.asarray(rng.choice([-1.0, 1.0], len(values)), dtype)
    # Of the rounded number; the original one is half a unit nearer or further.
    most = 2.0 ** (bits - 1)
    again = restore(rounded + sign * (most - 1 / 64) * unit, kept)
    np.testing.assert_array_equal(again, rounded)
    beyond = restore(rounded + sign * (most + 1 / 64) * unit, kept)
    assert not np.any(np.asarray(beyond) == np.asarray(rounded))
    np.testing.assert_array_equal(restore(values, kept), rounded)


def test_what_is_not_finite_stays_so_block_by_block():
  values = jnp.asarray(numbers()[1000:1500]).at[130].set(jnp.nan)
  values = values.at[400].set(-jnp.inf)
  rounded, kept = residue.keep(values, 2, 19)
  lost = np.isnan(rounded)
  assert lost[128:256].all() and lost[384:].all()
  assert not lost[:128].any() and not lost[256:384].any()
  again = residue.restore(jnp.zeros_like(values), kept, 2, 19)
  np.testing.assert_array_equal(np.isnan(again), lost)


@pytest.mark.parametrize("shape", [(), (0,), (1,), (3, 5), (2, 64, 3)])
def test_shapes(shape):
  values = jnp.asarray(np.random.default_rng(2).normal(size=shape), "float32")
  rounded, kept = residue.keep(values, 4, 19)
  near = values * jnp.float32(1 + 1e-6)
  restored = residue.restore(near, kept, 4, 19)
  assert restored.shape == rounded.shape == shape
  np.testing.assert_array_equal(restored, rounded)
  held = sum(a.size for a in kept)
  assert held == residue.bytes_of(values.size, 4)
  assert jax.tree.map(jnp.shape, kept) == jax.tree.map(
    jnp.shape, residue.nothing(values.size, 4)
  )
