"""Clipping at the ends of the range: zero, and very large gradients."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import revmom
from revmom.optimizers import packing
from revmom.optimizers.gradients import clip, consumed


@pytest.mark.parametrize("size", [0.0, 1e-30, 1e-3, 10.0, 1e20, 1e38])
def test_clips_whatever_the_size(size):
  direction = np.array([0.6, -0.8], np.float32)
  (clipped,) = clip([jnp.asarray(size * direction)], [jnp.array(1.0)])
  expected = min(size, 1.0) * direction
  np.testing.assert_allclose(clipped, expected, rtol=1e-6)


def test_an_overflowing_norm_of_many():
  (clipped,) = clip([jnp.full(100, 3e38)], [jnp.array(1.0)])
  np.testing.assert_allclose(clipped, 0.1, rtol=1e-6)


def hypergradient(clipping):
  """Of a run with a step whose gradient is zero."""

  def final(rate):
    optimizer = clipping(revmom.sgd(rate, 0.9))
    loss = lambda p, w: w * jnp.sum(0.1 * p["a"] ** 2) + 0 * jnp.sum(p["b"])
    params = {"a": jnp.ones(2), "b": jnp.ones(3)}
    batches = jnp.array([1.0, 0.0, 1.0])
    run = revmom.train(loss, optimizer, params, batches)
    return jnp.sum(run.params["a"])

  return jax.jit(jax.grad(final))(0.1)


@pytest.fixture(scope="module")
def unclipped():
  return hypergradient(lambda optimizer: optimizer)


@pytest.mark.parametrize(
  "clipping",
  [
    lambda o: revmom.clipped(o, 1.0),
    lambda o: revmom.clipped(o, {"a": 1.0, "b": 1.0}),
    lambda o: revmom.preprocessed(o, optax.clip_by_global_norm(1.0)),
    lambda o: revmom.preprocessed(o, optax.clip_by_block_rms(1.0)),
  ],
)
def test_hypergradients_with_a_gradient_of_zero(clipping, unclipped):
  """Where nothing is clipped, as without clipping."""
  np.testing.assert_allclose(hypergradient(clipping), unclipped, rtol=1e-5)


def test_preprocessing_keeps_its_values():
  gradients = {"a": jnp.array([0.0, 3.0]), "b": jnp.array([-4.0, -0.0])}
  leaves, structure = jax.tree.flatten(gradients)
  alone = packing.make(leaves, [None, None])
  changed = consumed(
    optax.chain(optax.clip_by_global_norm(1.0)),
    structure,
    alone,
    leaves,
    leaves,
    [],
    jnp.zeros((), jnp.int32),
  )
  np.testing.assert_array_equal(changed[0], np.float32([0.0, 0.6]))
  np.testing.assert_array_equal(changed[1], np.float32([-0.8, 0.0]))
