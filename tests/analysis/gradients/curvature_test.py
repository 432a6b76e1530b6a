"""Diagonal blocks of Hessians, against dense ones in float64."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from revmom.analysis import layer_curvature


def problem(dtype=jnp.float32):
  keys = jax.random.split(jax.random.key(0), 4)
  xs = jax.random.normal(keys[0], (20, 4), dtype)
  ys = jax.random.normal(keys[1], (20, 2), dtype)
  params = {
    "first": {
      "bias": jnp.zeros(5, dtype),
      "weights": jax.random.normal(keys[2], (4, 5), dtype),
    },
    "second": {"weights": jax.random.normal(keys[3], (5, 2), dtype)},
  }

  def loss(params):
    hidden = jnp.tanh(xs @ params["first"]["weights"] + params["first"]["bias"])
    return jnp.mean((hidden @ params["second"]["weights"] - ys) ** 2)

  return loss, params


def dense_blocks(loss, params):
  blocks = []
  for name, layer in params.items():
    flat, unravel = jax.flatten_util.ravel_pytree(layer)
    of_layer = lambda v, name=name, unravel=unravel: loss(
      {**params, name: unravel(v)}
    )
    blocks.append(np.asarray(jax.hessian(of_layer)(flat)))
  return blocks


@pytest.mark.slow
def test_all_directions_give_the_dense_figures(x64):
  loss, params = problem(jnp.float64)
  curvature = jax.jit(
    lambda params: layer_curvature(
      loss,
      params,
      jax.random.key(1),
      num_samples=25,
      num_steps=25,
      count=2,
    )
  )(params)
  assert curvature.names == ("first", "second")
  assert curvature.sizes == (25, 10)
  for i, block in enumerate(dense_blocks(loss, params)):
    values = np.linalg.eigvalsh(block)
    np.testing.assert_allclose(curvature.traces[i].value, np.trace(block))
    np.testing.assert_allclose(curvature.traces[i].stderr, 0, atol=1e-12)
    largest, smallest = curvature.largest[i], curvature.smallest[i]
    np.testing.assert_allclose(largest.values[0], values[-1], rtol=1e-9)
    np.testing.assert_allclose(smallest.values[0], values[0], atol=1e-9)
    density = curvature.densities[i]
    for power in (1, 2, 3):
      np.testing.assert_allclose(
        np.mean(np.sum(density.weights * density.nodes**power, 1)),
        np.mean(values**power),
        rtol=1e-6,
      )


@pytest.mark.slow
def test_intervals_cover():
  """200 traces of 4 directions; binomial chance of fewer is below 1e-3."""
  loss, params = problem()
  curvature = jax.jit(
    jax.vmap(
      lambda key: layer_curvature(loss, params, key, num_samples=4, num_steps=6)
    )
  )(jax.random.split(jax.random.key(2), 200))
  for i, block in enumerate(dense_blocks(loss, params)):
    values = np.linalg.eigvalsh(block)
    low, high = curvature.traces[i].interval.T
    covered = np.sum((low <= np.trace(block)) & (np.trace(block) <= high))
    assert covered >= 179
    for found in (curvature.largest[i], curvature.smallest[i]):
      distance = np.abs(found.values[:, :1] - values).min(1)
      assert np.all(distance <= found.errors[:, 0] + 1e-5)
    # A Ritz value is never outside of the spectrum.
    assert np.all(curvature.largest[i].values <= values[-1] + 1e-5)
    assert np.all(curvature.smallest[i].values >= values[0] - 1e-5)


@pytest.mark.slow
def test_layers_can_be_chosen():
  loss, params = problem()
  is_layer = lambda node: not isinstance(node, dict)
  curvature = jax.jit(
    lambda params: layer_curvature(
      loss,
      params,
      jax.random.key(0),
      is_layer=is_layer,
      num_samples=2,
      num_steps=2,
    )
  )(params)
  assert curvature.names == ("first.bias", "first.weights", "second.weights")
  assert "first.bias" in str(curvature) and "±" in str(curvature)
  with pytest.raises(ValueError, match="no layers"):
    layer_curvature(lambda p: jnp.zeros(()), {}, jax.random.key(0))
