"""Deep supervision: its losses, its gradients and what they cost."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from revmom.analysis import cost
from revmom.models.layers.deep_supervision import (
  deeply_supervised,
  squared_losses,
)
from revmom.models.layers.layer import dense, repeated
from revmom.models.layers.nnx import DeepSupervision
from revmom.models.layers.residual import residual

WIDTH, BATCH = 8, 4


def problem(depth, layer=None, dtype=jnp.float32):
  keys = jax.random.split(jax.random.key(0), 3)
  x = jax.random.normal(keys[0], (BATCH, WIDTH), dtype)
  y = jax.random.normal(keys[1], (BATCH, 2), dtype)
  net = deeply_supervised(layer or dense(), depth, outputs=2)
  return net, net.init(keys[2], x), x, y


def total(net, x, y):
  return lambda params: squared_losses(net.apply(params, x), y).sum()


@pytest.mark.slow
def test_losses_and_gradients_of_a_plain_loop(x64):
  net, params, x, y = problem(7, dtype=jnp.float64)

  def plain(params):
    h, losses = x, 0.0
    for number in range(7):
      one = jax.tree.map(lambda leaf, n=number: leaf[n], params)
      h = jnp.tanh(h @ one.layers.weights + one.layers.bias)
      error = h @ one.heads.weights + one.heads.bias - y
      losses += sum((e**2).sum() for e in error) / (2 * BATCH)
    return losses

  expected = jax.value_and_grad(plain)(params)
  got = jax.value_and_grad(total(net, x, y))(params)
  jax.tree.map(
    lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-10, atol=1e-13),
    got,
    expected,
  )


@pytest.mark.slow
@pytest.mark.parametrize("gain", [0.3, 1.0])
def test_gradients_reach_the_lowest_layers(gain):
  """D8, at depth 60: beside the plain network and its residual rewrite."""
  depth = 60

  def first_and_last(layer, supervised):
    net, params, x, y = problem(depth, layer)
    layers = params.layers._replace(weights=gain * params.layers.weights)
    params = params._replace(layers=layers)
    counted = jnp.ones(depth) if supervised else jnp.eye(depth)[-1]
    loss = lambda params: squared_losses(net.apply(params, x), y) @ counted
    bars = jax.grad(loss)(params).layers.weights
    return np.linalg.norm(bars[0]), np.linalg.norm(bars[-1])

  plain = first_and_last(dense(), False)
  supervised = first_and_last(dense(), True)
  rewritten = first_and_last(residual(dense()), False)
  if gain < 1:
    # Each layer takes gain or more off; floats end at 1e-38.
    assert plain[0] <= plain[1] * gain ** (depth - 10)
  assert supervised[0] > 0.1 * supervised[1] and supervised[0] > 1e-3
  assert rewritten[0] > 0.1 * rewritten[1]


def backward_flops(loss, params):
  return cost(loss, params, context=False).backward.flops


@pytest.mark.slow
def test_the_backward_pass_is_linear_in_depth():
  """D8, in counted FLOPs: each layer more costs the same.

  A backward pass for the loss of each layer by itself would cost O(L^2).
  """
  net, params, x, y = problem(4)
  plain, residuals = (
    repeated(layer, 4) for layer in (dense(), residual(dense()))
  )
  losses = {
    "together": lambda p: squared_losses(net.apply(p, x), y).sum(),
    "alone": lambda p: plain.apply(p.layers, x).sum(),
    "rewritten": lambda p: residuals.apply(p.layers, x).sum(),
  }
  together, alone, rewritten = (
    [
      backward_flops(loss, jax.tree.map(lambda leaf, n=n: leaf[:n], params))
      for n in range(1, 5)  # layers
    ]
    for loss in losses.values()
  )
  for counts in (together, alone, rewritten):
    assert set(np.diff(counts, 2)) == {0} and np.diff(counts)[0] > 0
  one_by_one = np.cumsum(alone)
  assert (np.diff(one_by_one, 2) == np.diff(alone)[0]).all()
  # A head of 2 outputs on 8 units costs less than the layer below it.
  assert np.diff(alone)[0] < np.diff(together)[0] < 2 * np.diff(alone)[0]


@pytest.mark.slow
def test_images_are_flattened():
  images = jnp.ones((BATCH, 2, 2, 3))
  shift = dense(activation=lambda x: x)
  net = deeply_supervised(shift, 3, outputs=5)
  params = net.init(jax.random.key(0), images)
  assert params.heads.weights.shape == (3, 12, 5)
  assert net.apply(params, images).shape == (3, BATCH, 5)


@pytest.mark.slow
def test_the_module_is_the_function():
  net, params, x, _ = problem(3)
  rngs = nnx.Rngs(0)
  layers = [nnx.Linear(WIDTH, WIDTH, rngs=rngs) for _ in range(3)]
  module = DeepSupervision(layers, [WIDTH] * 3, 2, rngs=rngs)
  predictions = module(x)
  h = x
  for layer, head, got in zip(layers, module.heads, predictions, strict=True):
    h = layer(h)
    np.testing.assert_allclose(got, head(h), rtol=1e-6)
  with pytest.raises(ValueError, match="got 3 layers and 1 sizes"):
    DeepSupervision(layers, [WIDTH], 2, rngs=rngs)


@pytest.mark.slow
def test_wrong_input():
  net, params, x, y = problem(2)
  with pytest.raises(ValueError, match=r"expected \[L, B, O\] and \[B, O\]"):
    squared_losses(net.apply(params, x), y[:, :1])
  with pytest.raises(ValueError, match="depth=0"):
    deeply_supervised(dense(), 0, outputs=1)
