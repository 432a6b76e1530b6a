"""The Jacobian of batch normalisation against autodiff in float64."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from revmom.analysis import batch_norm_jacobian, batch_norm_product
from revmom.models.layers.layer import batch_norm


def plain(x, gamma, epsilon):
  """As Ioffe & Szegedy 2015 write it, in sums."""
  mean = sum(x) / len(x)
  variance = sum((x - mean) ** 2) / len(x)
  return gamma * (x - mean) / jnp.sqrt(variance + epsilon)


@pytest.mark.sampled(3)
@pytest.mark.parametrize("size", [1, 2, 3, 17])
@pytest.mark.parametrize("epsilon", [1e-5, 1.0])
def test_a_feature(x64, size, epsilon):
  x = jax.random.normal(jax.random.key(size), (size,)) * 3 + 7
  expected = jax.jacobian(lambda x: plain(x, 1.7, epsilon))(x)
  got = batch_norm_jacobian(x, 1.7, epsilon)
  np.testing.assert_allclose(got, expected, atol=1e-12)
  np.testing.assert_array_equal(got, got.T)


@pytest.mark.slow
def test_features_and_their_products(x64):
  keys = jax.random.split(jax.random.key(0), 3)
  x = jax.random.normal(keys[0], (6, 4)) * jnp.array([1e-3, 1.0, 10.0, 1e3])
  gamma = jax.random.normal(keys[1], (4,))
  vector = jax.random.normal(keys[2], x.shape)
  f = lambda x: plain(x, gamma, 1e-5)
  whole = jax.jacobian(f)(x)  # [m, D, m, D]
  blocks = batch_norm_jacobian(x, gamma)
  for row in range(4):
    for column in range(4):
      block = blocks[row] if row == column else np.zeros((6, 6))
      np.testing.assert_allclose(
        whole[:, row, :, column], block, rtol=1e-9, atol=1e-12
      )
  got = batch_norm_product(x, vector, gamma)
  np.testing.assert_allclose(
    got, jax.jvp(f, (x,), (vector,))[1], rtol=1e-9, atol=1e-12
  )
  np.testing.assert_allclose(
    got, jax.vjp(f, x)[1](vector)[0], rtol=1e-9, atol=1e-12
  )


def test_what_a_batch_passes_on(x64):
  """Of the mean nothing, of the scale epsilon / (var + epsilon), else all."""
  x = jax.random.normal(jax.random.key(0), (8,))
  epsilon, gamma = 0.3, 2.0
  values = np.linalg.svd(
    batch_norm_jacobian(x, gamma, epsilon), compute_uv=False
  )
  total = x.var() + epsilon
  expected = np.array([1] * 6 + [epsilon / total, 0]) * gamma / total**0.5
  np.testing.assert_allclose(values, expected, atol=1e-12)


def test_a_constant_batch_has_a_derivative():
  jacobian = batch_norm_jacobian(jnp.full(4, 3.0))
  np.testing.assert_allclose(
    jacobian, (np.eye(4) - 0.25) / np.sqrt(1e-5), rtol=1e-5
  )


def test_the_layer_normalises_all_axes_but_the_last():
  x = jax.random.normal(jax.random.key(0), (4, 3, 2, 5)) * 3 + 7
  layer = batch_norm()
  params = layer.init(jax.random.key(1), x)
  params = params._replace(gamma=jnp.arange(5.0), beta=jnp.ones(5))
  y = layer.apply(params, x)
  np.testing.assert_allclose(y.mean((0, 1, 2)), np.ones(5), atol=1e-5)
  np.testing.assert_allclose(y.std((0, 1, 2)), np.arange(5.0), atol=1e-4)


def test_wrong_shapes():
  with pytest.raises(ValueError, match=r"expected a mini-batch \[m\] or"):
    batch_norm_jacobian(jnp.ones((2, 3, 4)))
  with pytest.raises(ValueError, match="expected that of x"):
    batch_norm_product(jnp.ones(3), jnp.ones(1))
  with pytest.raises(ValueError, match="one example or more"):
    batch_norm_jacobian(jnp.ones((0, 2)))
