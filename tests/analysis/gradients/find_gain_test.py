"""The edge of chaos of networks whose edge is known."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.special import psi

from revmom.analysis import edge_of_chaos, find_gain, perturbation_growth

DEPTH = 30


def stack(weights, phi, bias=0.0):
  """h_{l+1} = gain W phi(h_l) + b."""

  def network(gain, h):
    def step(h, w):
      h = gain * phi(h) @ w + bias
      return h, h

    return jax.lax.scan(step, h, weights)[1]

  return network


def gaussian(key, width, depth=DEPTH):
  return jax.random.normal(key, (depth, width, width)) / width**0.5


@pytest.mark.parametrize("width", [4, pytest.param(50, marks=pytest.mark.slow)])
def test_linear_networks(width):
  """E log |W v| = (psi(N/2) - log(N/2)) / 2, exactly, for Gaussian W.

  Within 4 standard errors over 50 networks; at N = 4 it is not near 0.
  """
  x = jnp.ones((1, width))

  def gain(key):
    network = stack(gaussian(key, width), lambda h: h)
    return find_gain(network, x, key, low=0.5, high=4.0).value

  gains = jax.jit(jax.vmap(gain))(jax.random.split(jax.random.key(0), 50))
  logs = np.log(np.asarray(gains, np.float64))
  expected = -(psi(width / 2) - np.log(width / 2)) / 2
  assert abs(logs.mean() - expected) < 4 * logs.std(ddof=1) / 50**0.5


@pytest.mark.slow
def test_tanh_networks_and_their_theory():
  """Within 4 standard errors and 1 / N, as theory is of infinite width."""
  width, sigma_b = 200, 0.3
  seeds = 6

  def gain(key):
    keys = jax.random.split(key, 3)
    bias = sigma_b * jax.random.normal(keys[1], (width,))
    network = stack(gaussian(keys[0], width), jnp.tanh, bias)
    x = jax.random.normal(keys[2], (2, width))
    return find_gain(network, x, key, low=0.5, high=3.0, skip=5).value

  gains = np.asarray(
    jax.jit(jax.vmap(gain))(jax.random.split(jax.random.key(0), seeds))
  )
  stderr = gains.std(ddof=1) / seeds**0.5
  expected = float(edge_of_chaos(jnp.tanh, sigma_b))
  assert expected > 1.1
  assert abs(gains.mean() - expected) < 4 * stderr + 1 / width


@pytest.mark.slow
def test_growth_is_that_of_plain_differences(x64):
  weights = gaussian(jax.random.key(0), 6, depth=4)
  network, x = stack(weights, jnp.tanh), jnp.eye(6)[:2]
  key, step = jax.random.key(1), 1e-6
  mean, stderr = perturbation_growth(network, 1.2, x, key, skip=1)
  direction = jax.random.normal(key, x.shape, x.dtype)
  change = network(1.2, x + step * direction) - network(
    1.2, x - step * direction
  )
  sizes = np.linalg.norm(change / (2 * step), axis=-1)  # [L, B]
  growth = np.log(sizes[3] / sizes[1]) / 2
  np.testing.assert_allclose(mean, growth.mean(), rtol=1e-6)
  np.testing.assert_allclose(stderr, abs(growth[0] - growth[1]) / 2, rtol=1e-5)


@pytest.mark.parametrize("gain", [1e-4, 1e4])
def test_growth_beyond_what_floats_hold(gain):
  orthogonal = jax.random.orthogonal(jax.random.key(0), 4, (100,))
  network = stack(orthogonal, lambda h: h)
  mean, _ = perturbation_growth(
    network, gain, jnp.ones((2, 4)), jax.random.key(0)
  )
  np.testing.assert_allclose(mean, np.log(gain), rtol=1e-4)


@pytest.mark.slow
def test_a_list_of_layers_of_different_shapes():
  def network(gain, x):
    images = gain * x
    flat = images.reshape(len(x), -1)
    return [images, flat[:, :3], 2 * gain * flat[:, :3]]

  x = jnp.ones((3, 2, 2, 1))
  # A perturbation loses one of its four numbers on the way, of about a quarter.
  found = find_gain(network, x, jax.random.key(0), low=0.1, high=3.0, skip=1)
  np.testing.assert_allclose(found.value, 0.5, rtol=1e-4)
  np.testing.assert_allclose(found.log_growth, 0, atol=1e-4)


@pytest.mark.slow
def test_no_edge_in_between():
  network = stack(jnp.broadcast_to(jnp.eye(3), (5, 3, 3)), lambda h: h)
  arguments = network, jnp.ones((2, 3)), jax.random.key(0)
  with pytest.raises(ValueError, match="Choose other values of low and high"):
    find_gain(*arguments, low=2.0, high=4.0)
  traced = jax.jit(lambda x: find_gain(network, x, arguments[2], low=2.0).value)
  assert np.isnan(traced(arguments[1]))
  with pytest.raises(ValueError, match="expected 0 < low < high"):
    find_gain(*arguments, low=-1.0)
  with pytest.raises(ValueError, match="growth needs 2 or more"):
    perturbation_growth(network, 1.0, *arguments[1:], skip=4)
