"""Initializers, measured forward and backward."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.nn import initializers as standard

from revmom.analysis import gradient_flow
from revmom.analysis.closed_forms.initializers import (
  calibrate,
  fixup,
  orthogonal_gates,
  residual_filter,
)
from revmom.cells import lstm

WIDTH, DRAWS = 64, 200


def passes(initializer, phi, reverse=False):
  """Mean square of W^T phi(z) or of its adjoint, over draws of W."""
  x = phi(jax.random.normal(jax.random.key(0), (WIDTH,)))
  x = x / jnp.sqrt(jnp.mean(x * x)) * jnp.sqrt(phi_power(phi))
  bar = jnp.sign(jax.random.normal(jax.random.key(1), (WIDTH,)))

  def measure(key):
    weights = initializer(key, (WIDTH, WIDTH), jnp.float32)
    result = weights @ bar if reverse else x @ weights
    return jnp.mean(result**2)

  keys = jax.random.split(jax.random.key(2), DRAWS)
  return np.asarray(jax.vmap(measure)(keys), np.float64)


def phi_power(phi):
  return 0.5 if phi is jax.nn.relu else 1.0


@pytest.mark.parametrize("reverse", [False, True])
@pytest.mark.parametrize(
  ("initializer", "phi", "forward", "backward"),
  [
    (standard.lecun_normal(), lambda x: x, 1, 1),
    (standard.orthogonal(), lambda x: x, 1, 1),
    (standard.glorot_normal(), lambda x: x, 1, 1),
    (standard.he_normal(), jax.nn.relu, 1, 2),  # relu' halves it again
    (residual_filter(20), lambda x: x, np.log(2) / 20, np.log(2) / 20),
    (fixup(25, 0, 2), jax.nn.relu, 1 / 25, 2 / 25),
    (fixup(16, 1, 3), jax.nn.relu, 1 / 4, 2 / 4),
  ],
)
def test_power_in_a_layer(initializer, phi, forward, backward, reverse):
  """Within 4 standard errors over 200 draws."""
  values = passes(initializer, phi, reverse)
  expected = backward if reverse else forward
  stderr = values.std(ddof=1) / DRAWS**0.5
  assert abs(values.mean() - expected) < 4 * stderr + 1e-5 * expected


@pytest.mark.parametrize("num_gates", [1, 4])
def test_gates_are_orthogonal_each(num_gates):
  weights = orthogonal_gates(num_gates, 0.7)(
    jax.random.key(0), (2, 5, 5 * num_gates), jnp.float32
  )
  for layer in weights:
    for block in jnp.split(layer, num_gates, -1):
      np.testing.assert_allclose(block @ block.T, 0.49 * np.eye(5), atol=1e-6)
  assert not np.allclose(weights[0], weights[1])


@pytest.mark.slow
def test_gates_of_a_cell():
  """An LSTM with open gates carries h back over time by orthogonal blocks."""
  params = lstm.init(jax.random.key(0), 3, 6)
  shape, dtype = params.recurrent_weights.shape, params.recurrent_weights.dtype
  weights = orthogonal_gates(4)(jax.random.key(1), shape, dtype)
  drive = params._replace(recurrent_weights=weights).recurrent_weights
  of_gate = drive[:, :6]
  np.testing.assert_allclose(
    np.linalg.svd(of_gate, compute_uv=False), 1, atol=1e-6
  )
  # The whole array, drawn at once, has singular values of 1 but its blocks not.
  whole = standard.orthogonal()(jax.random.key(1), shape, dtype)
  assert np.linalg.svd(whole[:, :6], compute_uv=False).min() < 0.9


def test_fixup_ends_in_zeros_and_scales_with_depth():
  key = jax.random.key(0)
  assert not fixup(10, 0, 1)(key, (4, 4), jnp.float32).any()
  assert not fixup(10, 2, 3)(key, (4, 4), jnp.float32).any()
  one = fixup(1, 0, 3)(key, (4, 4), jnp.float32)
  many = fixup(81, 0, 3)(key, (4, 4), jnp.float32)
  np.testing.assert_allclose(many, one / 3, rtol=1e-6)  # 81^(-1/4)
  he = standard.he_normal()(key, (500, 500), jnp.float32)
  np.testing.assert_allclose(
    fixup(1, 0, 2)(key, (500, 500), jnp.float32).std(), he.std(), rtol=1e-2
  )


def relu_layer(params, x):
  return jnp.maximum(x @ params["w"] + params["b"], 0)


def stack(depth):
  keys = jax.random.split(jax.random.key(0), depth)
  return [
    {"w": 3 * jax.random.normal(key, (8, 8)), "b": jnp.zeros(8)} for key in keys
  ]


@pytest.mark.parametrize("gain", [0.5, 1.0, 1.5])
def test_calibration_reaches_any_gain(gain):
  depth = 5
  x = jax.random.normal(jax.random.key(1), (64, 8))
  targets = [gain ** (1 + number) for number in range(depth)]
  params = stack(depth)
  scaled = calibrate([relu_layer] * depth, params, x, target=targets)
  for before, after, target in zip(params, scaled, targets, strict=True):
    x = relu_layer(after, x)
    np.testing.assert_allclose(x.std(), target, rtol=1e-3)
    ratio = after["w"] / before["w"]
    np.testing.assert_allclose(ratio, ratio[0, 0], rtol=1e-5)
    np.testing.assert_array_equal(after["b"], before["b"])


def test_calibration_in_bfloat16():
  half = lambda tree: jax.tree.map(lambda a: a.astype(jnp.bfloat16), tree)
  x = half(jax.random.normal(jax.random.key(1), (64, 8)))
  scaled = calibrate([relu_layer] * 3, half(stack(3)), x, target=0.3)
  for params in scaled:
    x = relu_layer(params, x)
    assert params["w"].dtype == x.dtype == jnp.bfloat16
    np.testing.assert_allclose(np.asarray(x, float).std(), 0.3, rtol=2**-7)


@pytest.mark.sampled(1)
@pytest.mark.parametrize("gain", [0.5, 1.5])
def test_calibrated_gradients_have_that_gain_too(gain):
  """Of what has passed a relu, forward and backward gains agree.

  Both are sqrt(N / 2) sigma_W; to 1 / sqrt(N), as N is finite.
  The first layer is left out: its inputs have not passed one.
  """
  depth, width = 5, 256
  keys = jax.random.split(jax.random.key(0), depth + 2)
  layer = lambda w, x: jnp.maximum(x @ w, 0)
  weights = [jax.random.normal(key, (width, width)) for key in keys[2:]]
  x, bar = (jax.random.normal(key, (64, width)) for key in keys[:2])
  targets = [gain ** (1 + number) for number in range(depth)]
  weights = calibrate([layer] * depth, weights, x, target=targets)
  flow = gradient_flow(
    [layer] * depth, weights, x, loss=lambda y: jnp.sum(y * bar)
  )
  backward = flow.gradients.norm[1:-1] / flow.gradients.norm[2:]
  np.testing.assert_allclose(backward, gain, rtol=1 / width**0.5)


def test_calibration_of_layers_that_saturate():
  """Their spread is no multiple of that of the weights."""
  layer = lambda w, x: jnp.tanh(x @ w)
  x = jax.random.normal(jax.random.key(1), (64, 8))
  weights = [jnp.eye(8)] * 2
  scaled = calibrate([layer] * 2, weights, x, target=[0.9, 0.3])
  for w, target in zip(scaled, (0.9, 0.3), strict=True):
    x = layer(w, x)
    np.testing.assert_allclose(x.std(), target, rtol=1e-3)


@pytest.mark.parametrize(
  ("layer", "target", "message"),
  [
    (lambda w, x: jnp.tanh(x @ w), 1.5, "may be out of reach"),
    (lambda w, x: 0 * (x @ w), 1.0, "layer 0 have a standard deviation of 0.0"),
    (lambda w, x: x @ w / 0, 1.0, "which no scale of its weights"),
    (lambda w, x: x @ w, -1.0, "target of layer 0 is -1.0"),
    (lambda w, x: x @ w, [1.0, 1.0], "1 parameters and 2 targets"),
  ],
)
def test_calibration_that_cannot_be(layer, target, message):
  x = jax.random.normal(jax.random.key(1), (16, 4))
  with pytest.raises(ValueError, match=message):
    calibrate([layer], [jnp.eye(4)], x, target=target)


def test_calibration_needs_weights():
  with pytest.raises(ValueError, match="layer 1 has no array of two axes"):
    calibrate(
      [lambda w, x: x @ w, lambda b, x: x + b],
      [jnp.eye(2), jnp.ones(2)],
      jnp.array([[1.0, -1.0]]),
    )


def test_wrong_input():
  with pytest.raises(ValueError, match=r"4 gates need \[H, 4 H\]"):
    orthogonal_gates(4)(jax.random.key(0), (5, 15))
  with pytest.raises(ValueError, match="depth=0"):
    residual_filter(0)
  with pytest.raises(ValueError, match="from 0 to layers_per_branch - 1"):
    fixup(10, 2, 2)
