"""Layer normalisation against NumPy."""

import jax.numpy as jnp
import numpy as np

from revmom.numerics import normalise, normalise_adjoint


def draw(seed, *shape, dtype=jnp.float64):
  return jnp.asarray(np.random.default_rng(seed).normal(size=shape), dtype)


def close(got, expected, tolerance=1e-13):
  np.testing.assert_allclose(got, expected, rtol=tolerance, atol=tolerance)


def test_normalise(x64):
  values = np.asarray(draw(0, 2, 3, 5)) * 7 + 3
  result, scale = normalise(jnp.asarray(values))
  deviation = np.sqrt(values.var(-1, keepdims=True) + 1e-5)
  close(result, (values - values.mean(-1, keepdims=True)) / deviation)
  close(scale, 1 / deviation)


def test_a_constant_has_a_finite_adjoint(x64):
  normalised = normalise(jnp.full((2, 4), 3.0))
  close(normalised.values, np.zeros((2, 4)))
  assert bool(
    jnp.all(jnp.isfinite(normalise_adjoint(normalised, draw(0, 2, 4))))
  )
