"""Clipping at the ends of the range: zero, and very large gradients."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import revmom
from revmom.optimizers.dynamics import clip


@pytest.mark.parametrize("size", [0.0, 1e-30, 1e-3, 10.0, 1e20, 1e38])
def test_clips_whatever_the_size(size):
  direction = np.array([0.6, -0.8], np.float32)
  (clipped,) = clip([jnp.asarray(size * direction)], [jnp.array(1.0)])
  expected = min(size, 1.0) * direction
  np.testing.assert_allclose(clipped, expected, rtol=1e-6)


def test_an_overflowing_norm_of_many():
  (clipped,) = clip([jnp.full(100, 3e38)], [jnp.array(1.0)])
  np.testing.assert_allclose(clipped, 0.1, rtol=1e-6)


@pytest.mark.parametrize("limit", [1.0, {"a": 1.0, "b": 1.0}])
def test_hypergradients_with_a_gradient_of_zero(limit):
  """Where nothing is clipped, as without clipping."""

  def final(rate, limit):
    optimizer = revmom.sgd(rate, 0.9, clip=limit)
    loss = lambda p, w: w * jnp.sum(0.1 * p["a"] ** 2) + 0 * jnp.sum(p["b"])
    params = {"a": jnp.ones(2), "b": jnp.ones(3)}
    batches = jnp.array([1.0, 0.0, 1.0])
    run = revmom.train(loss, optimizer, params, batches)
    return jnp.sum(run.params["a"])

  own = jax.jit(jax.grad(lambda rate: final(rate, limit)))(0.1)
  free = jax.jit(jax.grad(lambda rate: final(rate, None)))(0.1)
  np.testing.assert_allclose(own, free, rtol=1e-5)
