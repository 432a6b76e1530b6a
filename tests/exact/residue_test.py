"""Rounded numbers are restored from anything that is close enough."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from revmom.exact import residue

BLOCK = residue.block_of(2)


def numbers(dtype="float32"):
  """Of all sizes and signs, with zeros, subnormals and ragged ends."""
  rng = np.random.default_rng(0)
  values = rng.normal(size=1_000_003) * np.exp(4 * rng.normal(size=1_000_003))
  values[:1200] = 0
  values[1200:1700] = 1e-41
  values[-1] = -0.0
  return values.astype(dtype)


def exponents(values):
  """Of the power of two above the largest of each block."""
  padded = np.pad(values, (0, -len(values) % BLOCK)).reshape(-1, BLOCK)
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
    unit = jnp.asarray(np.repeat(powers, BLOCK)[: len(values)], dtype)
    assert float(jnp.max(jnp.abs(rounded - values) / unit)) <= 0.5
    rng = np.random.default_rng(1)
    sign = jnp.asarray(rng.choice([-1.0, 1.0], len(values)), dtype)
    # Of the rounded number; the original one is half a unit nearer or further.
    most = 2.0 ** (bits - 1)
    again, margin = restore(rounded + sign * (most - 1 / 64) * unit, kept)
    np.testing.assert_array_equal(again, rounded)
    assert (margin.distance, margin.bound) == (most - 1 / 64, most)
    beyond, _ = restore(rounded + sign * (most + 1 / 64) * unit, kept)
    assert not np.any(np.asarray(beyond) == np.asarray(rounded))
    np.testing.assert_array_equal(restore(values, kept)[0], rounded)


def test_what_is_not_finite_stays_so_block_by_block():
  values = jnp.asarray(numbers()[2000:4000]).at[520].set(jnp.nan)
  values = values.at[1600].set(-jnp.inf)
  rounded, kept = residue.keep(values, 2, 19)
  lost = np.isnan(rounded)
  assert lost[512:1024].all() and lost[1536:].all()
  assert not lost[:512].any() and not lost[1024:1536].any()
  again, _ = residue.restore(jnp.zeros_like(values), kept, 2, 19)
  np.testing.assert_array_equal(np.isnan(again), lost)


@pytest.mark.parametrize("shape", [(), (0,), (1,), (3, 5), (2, 5, 3, 40)])
def test_shapes(shape):
  values = jnp.asarray(np.random.default_rng(2).normal(size=shape), "float32")
  bits = len(shape) or "syndromes"
  rounded, kept = residue.keep(values, bits, 14)
  near = values * jnp.float32(1 + 1e-7)
  restored, _ = residue.restore(near, kept, bits, 14)
  assert restored.shape == rounded.shape == shape
  np.testing.assert_array_equal(restored, rounded)
  held = sum(a.size for a in kept)
  assert held == residue.bytes_of(values.size, bits)
  assert jax.tree.map(jnp.shape, kept) == jax.tree.map(
    jnp.shape, residue.nothing(values.size, bits)
  )
