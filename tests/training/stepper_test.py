"""The step-at-a-time driver reverses through its one compiled gradient."""

import functools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import revmom


def _convolution(params, batch):
  images, labels = batch
  hidden = jax.lax.conv_general_dilated(
    images, params["kernel"], (2, 2), "SAME",
    dimension_numbers=("NHWC", "HWIO", "NHWC"),
  )  # fmt: skip
  logits = jnp.tanh(hidden).reshape(len(images), -1) @ params["out"]
  return jnp.mean(
    optax.softmax_cross_entropy_with_integer_labels(logits, labels)
  )


def _batches(steps):
  """An iterator that can't be sliced, as a data loader would be."""
  rng = np.random.default_rng(1)
  for _ in range(steps):
    yield (
      rng.normal(size=(16, 8, 8, 1)).astype(np.float32),
      rng.integers(0, 5, 16, np.int32),
    )


@jax.jit
def _params():
  keys = jax.random.split(jax.random.key(0))
  return {
    "kernel": 0.3 * jax.random.normal(keys[0], (3, 3, 1, 6)),
    "out": 0.1 * jax.random.normal(keys[1], (96, 5)),
  }


def test_python_loop_reverses_bit_for_bit():
  steps = 60
  rates = np.linspace(0.2, 0.05, steps, dtype=np.float32)
  optimizer = revmom.preprocessed(
    revmom.sgd(rates, 0.9), optax.clip_by_global_norm(1.0)
  )
  stepper = revmom.Stepper(_convolution, optimizer)
  state = start = stepper.init(_params(), num_steps=steps)
  states, losses = [], []
  for batch in _batches(steps):
    states.append(state)
    state, loss = stepper.forward(state, batch)
    losses.append(float(loss))
  assert int(state.count) == steps
  for before, loss, batch in reversed(
    list(zip(states, losses, _batches(steps), strict=True))
  ):
    state, again = stepper.inverse(state, batch)
    assert float(again) == loss
    chex.assert_trees_all_equal(state, before)
  chex.assert_trees_all_equal(state, start)


def test_agrees_with_train():
  steps = 20
  optimizer = revmom.sgd(0.1, 0.9)
  stepper = revmom.Stepper(_convolution, optimizer)
  state = stepper.init(_params(), num_steps=steps)
  for batch in _batches(steps):
    state, _ = stepper.forward(state, batch)
  batches = jax.tree.map(lambda *a: np.stack(a), *_batches(steps))
  run = jax.jit(functools.partial(revmom.train, _convolution, optimizer))(
    _params(), batches
  )
  chex.assert_trees_all_close(stepper.params(state), run.params, atol=1e-5)
  np.testing.assert_allclose(
    optimizer.log_det(state), optimizer.log_det(run.state), rtol=1e-6
  )


def test_strings_are_no_data():
  stepper = revmom.Stepper(lambda x, batch: jnp.sum(x**2), revmom.sgd(0.1, 0.9))
  state = stepper.init(jnp.ones(2), num_steps=1)
  with pytest.raises(ValueError, match="batch.'name'. is the string 'a'"):
    stepper.forward(state, {"name": "a"})
