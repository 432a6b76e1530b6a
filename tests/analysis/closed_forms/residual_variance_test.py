"""Variances of residual stacks against draws of their filters."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from revmom.analysis import (
  residual_backward_variance,
  residual_forward_variance,
  residual_sigma,
)
from revmom.analysis.closed_forms.initializers import residual_filter


def wrapped(images, filters):
  """Linear filters [D, D, J, G] on images that wrap around."""
  size = filters.shape[0] // 2
  padded = jnp.pad(
    images, [(0, 0), (size, size), (size, size), (0, 0)], mode="wrap"
  )
  return jax.lax.conv_general_dilated(
    padded, filters, (1, 1), "VALID", dimension_numbers=("NHWC", "HWIO", "NHWC")
  )


@pytest.mark.parametrize(
  ("depth", "kernel", "channels"),
  [(1, 1, 4), pytest.param(20, 3, 8, marks=pytest.mark.slow)],
)
def test_forward_and_backward(depth, kernel, channels):
  """At every layer, within 4 standard errors over 200 networks."""
  fan, draws = kernel**2 * channels, 200
  sigma = residual_sigma(depth, fan)
  shape = 1, 5, 5, channels
  images, adjoint = jax.random.normal(jax.random.key(0), (2, *shape))
  square = lambda z: jnp.mean(z * z)

  def network(key):
    shape_of_one = kernel, kernel, channels, channels
    filters = jax.vmap(lambda key: residual_filter(depth)(key, shape_of_one))(
      jax.random.split(key, depth)
    )

    def step(z, row):
      weights, tap = row
      z = z + wrapped(z, weights) + tap
      return z, square(z)

    def loss(taps):
      z, variances = jax.lax.scan(step, images, (filters, taps))
      return jnp.sum(z * adjoint), variances

    bars, variances = jax.grad(loss, has_aux=True)(jnp.zeros((depth, *shape)))
    return variances, jax.vmap(square)(bars)

  forward, backward = jax.jit(jax.vmap(network))(
    jax.random.split(jax.random.key(1), draws)
  )
  layers = jnp.arange(1, depth + 1)
  predicted = (
    residual_forward_variance(layers, sigma, fan) * square(images),
    residual_backward_variance(layers, depth, sigma, fan) * square(adjoint),
  )
  for values, expected in zip((forward, backward), predicted, strict=True):
    values = np.asarray(values, np.float64)
    stderr = values.std(0, ddof=1) / draws**0.5
    rounding = 1e-5 * expected  # the last adjoint has no spread
    assert (np.abs(values.mean(0) - expected) < 4 * stderr + rounding).all()


@pytest.mark.parametrize("depth", [1, 10, 1000])
def test_the_variance_doubles(depth):
  sigma = residual_sigma(depth, 72)
  got = residual_forward_variance(depth, sigma, 72)
  np.testing.assert_allclose(got, (1 + np.log(2) / depth) ** depth, rtol=1e-5)
  assert 2 - 0.5 / depth < got < 2


def test_wrong_input():
  with pytest.raises(ValueError, match="expected both to be 1 or more"):
    residual_sigma(0, 9)
  with pytest.raises(ValueError, match="got fan=0"):
    residual_forward_variance(1, 0.1, 0)
