"""What WaveNet computes, what it sees, and that its queues hold it."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from revmom.models.autoregressive.autoregressive import Autoregressive
from revmom.models.autoregressive.conditional import categorical
from revmom.models.autoregressive.wavenet import wavenet

# Dilations, kernel size, channels.
CASES = [
  ((1,), 2, 1),
  ((1, 1, 1), 2, 1),
  ((1, 2, 4), 2, 1),
  ((4, 1), 3, 2),
  ((3, 5), 2, 1),
]


def random_params(network, event, num_outputs):
  x = jax.ShapeDtypeStruct((1, *event), jnp.float32)
  init = lambda key, x: network.init(key, x, num_outputs)
  like = jax.eval_shape(init, jax.random.key(0), x)
  rng = np.random.default_rng(0)
  return jax.tree.map(lambda leaf: rng.normal(size=leaf.shape) * 0.5, like)


def plain_wavenet(params, dilations, xs, label=None):
  """The equations in NumPy, a sample [C] at a time: [T, C P]."""
  sigmoid = lambda a: 1 / (1 + np.exp(-a))
  at = lambda h, t: h[t] if 0 <= t < len(h) else np.zeros_like(h[0])
  weights, bias = params.first
  taps = len(weights)
  h = np.array(
    [
      bias + sum(at(xs, t - taps + j) @ weights[j] for j in range(taps))
      for t in range(len(xs))
    ]
  )
  total = 0
  for dilation, block in zip(dilations, params.blocks, strict=True):
    outs = []
    for t in range(len(xs)):
      a = block.gated.bias.copy()
      if label is not None:
        a += block.classes[label]
      for j in range(taps):
        a += at(h, t - (taps - 1 - j) * dilation) @ block.gated.weights[j]
      filtered, gate = np.split(a, 2)
      z = np.tanh(filtered) * sigmoid(gate)
      outs.append(z @ block.out.weights + block.out.bias)
    out, skip = np.array(outs), params.hidden.weights.shape[0]
    total = total + out[:, -skip:]
    if block is not params.blocks[-1]:
      h = h + out[:, :-skip]
  relu = lambda a: np.maximum(a, 0)
  hidden = relu(relu(total) @ params.hidden.weights + params.hidden.bias)
  return hidden @ params.last.weights + params.last.bias


@pytest.mark.parametrize(("dilations", "kernel_size", "channels"), CASES)
def test_what_it_computes_and_what_it_sees(
  x64, dilations, kernel_size, channels
):
  """Forward and steps are the plain loops; the Jacobian has the support."""
  network = wavenet(dilations, kernel_size, 6, 7, num_classes=2)
  length = 14
  params = random_params(network, (length, channels), 2)
  rng = np.random.default_rng(1)
  inputs = rng.normal(size=(3, length, channels))
  label = np.array([1, 0, 1])

  def steps(params, inputs):
    def step(cache, position):
      outputs, cache = network.step(params, cache, inputs, position)
      return cache, outputs

    cache = network.start(params, inputs.shape, label)
    outputs = jax.lax.scan(step, cache, jnp.arange(length))[1]
    return jnp.moveaxis(outputs, 0, 1)

  @jax.jit
  def run(params, inputs):
    of_all = lambda inputs: network.forward(params, inputs, label).sum(0)
    jacobian = jax.jacrev(of_all)(inputs)  # each event only sees itself
    forward = network.forward(params, inputs, label)
    return forward, steps(params, inputs), jacobian

  forward, cached, jacobian = run(params, inputs)
  expected = np.stack(
    [
      plain_wavenet(params, dilations, *one)
      for one in zip(inputs, label, strict=True)
    ]
  ).reshape(3, length, channels, 2)
  np.testing.assert_allclose(forward, expected, rtol=1e-10, atol=1e-12)
  np.testing.assert_allclose(cached, forward, rtol=1e-10, atol=1e-12)

  # [T, C, P, B, T, C]: of outputs by inputs.
  seen = (np.asarray(jacobian) != 0).any((2, 3))
  lags = {
    -1 - first - sum(lag)
    for first in range(kernel_size)
    for lag in all_lags(dilations, kernel_size)
  }
  allowed = np.array(
    [[s - t in lags for s in range(length)] for t in range(length)]
  )
  for one in range(channels):
    for other in range(channels):
      np.testing.assert_array_equal(seen[:, one, :, other], allowed)
  assert network.receptive_field == {(lag,) for lag in lags}


def all_lags(dilations, kernel_size):
  grids = np.meshgrid(
    *[np.arange(kernel_size) * dilation for dilation in dilations]
  )
  return np.stack([grid.ravel() for grid in grids], 1)


def test_doubling_sees_as_far_as_it_says():
  seen = wavenet().receptive_field
  assert seen == {(-lag,) for lag in range(1, 1026)}


def test_every_parameter_has_a_gradient():
  model = Autoregressive(
    wavenet((1, 2), 2, 6, 8, num_classes=3), categorical(5)
  )
  x = np.random.default_rng(0).integers(5, size=(6, 9, 1)).astype(np.int32)
  params = random_params(model.network, (9, 1), 5)
  params = jax.tree.map(np.float32, params)
  label = np.arange(6, dtype=np.int32) % 3
  loss = lambda params: -model.log_prob(params, x, label).sum()
  for leaf in jax.tree.leaves(jax.jit(jax.grad(loss))(params)):
    assert np.isfinite(leaf).all() and (np.asarray(leaf) != 0).any()


@pytest.mark.slow
def test_initial_activations_are_of_size_one():
  network = wavenet((1, 2, 4), residual=32, skip=64)
  inputs = jax.random.normal(jax.random.key(0), (4, 50, 1))

  @jax.jit
  def run(key, inputs):
    params = network.init(key, inputs, 32)
    return network.forward(params, inputs, None)

  outputs = run(jax.random.key(1), inputs)
  assert outputs.shape == (4, 50, 1, 32)
  assert 0.05 < np.std(outputs) < 2


@pytest.mark.parametrize(
  ("arguments", "message"),
  [
    ({"dilations": ()}, "dilations=()"),
    ({"dilations": (1, 0)}, "each 1 or more"),
    ({"kernel_size": 1}, "kernel_size=1"),
    ({"residual": 0}, "residual=0"),
    ({"num_classes": -1}, "num_classes=-1"),
  ],
)
def test_wrong_sizes(arguments, message):
  with pytest.raises(ValueError, match=message.replace("()", r"\(\)")):
    wavenet(**arguments)


def test_wrong_shapes():
  network = wavenet((1,))
  params = random_params(network, (4, 2), 3)
  for shape in ((1, 4, 1), (4, 2)):
    with pytest.raises(ValueError, match=r"expected \[B, T, 2\]"):
      jax.eval_shape(network.forward, params, np.zeros(shape), None)
