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
  state = stepper.init(_params(), num_steps=steps)
  kept = lambda state: jax.tree.map(np.array, state.replace(checksums=None))
  states, losses = [], []
  for batch in _batches(steps):
    states.append(kept(state))
    state, loss = stepper.forward(state, batch)
    losses.append(float(loss))
  assert int(state.count) == steps
  for before, loss, batch in reversed(
    list(zip(states, losses, _batches(steps), strict=True))
  ):
    state, again = stepper.inverse(state, batch)
    assert float(again) == loss
    chex.assert_trees_all_equal(kept(state), before)
  receipt = stepper.receipt(state)
  assert bool(receipt.ok) and int(receipt.diverged_at) == -1


@pytest.mark.parametrize(("every", "found"), [(1, 12), (5, 10)])
def test_another_batch_is_noticed(every, found):
  stepper = revmom.Stepper(
    lambda x, batch: jnp.sum(jnp.cos(x - batch)),
    revmom.sgd(0.1, 0.9),
    checksum_every=every,
  )
  state = stepper.init(jnp.zeros(2), num_steps=20)
  batches = np.random.default_rng(0).normal(size=(20, 2)).astype(np.float32)
  for batch in batches:
    state, _ = stepper.forward(state, batch)
  stepper.check(state)
  for step in range(19, found - 1, -1):
    stepper.check(state)
    state, _ = stepper.inverse(state, batches[step] * (1 + 1e-5 * (step == 12)))
  for _ in range(2):  # there and then
    receipt = stepper.receipt(state)
    assert not bool(receipt.ok) and bool(receipt.in_range)
    assert int(receipt.diverged_at) == found
    assert bool(jnp.all(jnp.isnan(stepper.params(state))))
    with pytest.raises(RuntimeError, match=f"integers at step {found} are not"):
      stepper.check(state)
    state, _ = stepper.forward(state, batches[0])


def test_a_step_costs_the_same_in_a_long_run():
  """No program of a step holds another copy of the words."""
  optimizer = revmom.sgd(0.1, 0.5)  # a bit for each step

  def programs(steps):
    stepper = revmom.Stepper(lambda x, batch: jnp.sum(x * batch), optimizer)
    params = jnp.zeros(1000)
    state = jax.eval_shape(lambda: stepper.init(params, steps))
    bars = jax.eval_shape(lambda s: stepper.cotangents(s, params), state)
    here = params, []
    out, gradients = jax.eval_shape(stepper._at, here, params, ())
    between, words, _ = jax.eval_shape(stepper._undo_update, state)
    lowered = (
      stepper._forward.lower(state, gradients, []),
      stepper._undo_update.lower(state),
      stepper._undo_increments.lower(state, between, [], gradients),
      stepper._backward.lower(
        state, bars, words, params, (), out, gradients, None, wants_batch=True
      ),
    )
    words = sum(
      leaf.size * leaf.dtype.itemsize
      for leaf in jax.tree.leaves(state)
      if leaf.ndim == 2
    )
    return words, [program.compile().memory_analysis() for program in lowered]

  words, short = programs(16)
  more_words, long = programs(4000)
  more = more_words - words
  assert more > 400_000
  for before, after in zip(short, long, strict=True):
    assert after.temp_size_in_bytes - before.temp_size_in_bytes < more / 10
    new = after.output_size_in_bytes - after.alias_size_in_bytes
    assert new < more / 10


def test_a_model_with_statistics_metrics_and_residues():
  """They come back; with residues another program may take the way back."""

  def loss_fn(x, mean, batch, scale):
    mean = 0.9 * mean + 0.1 * jnp.mean(batch)
    return scale * jnp.sum(jnp.cos(x - batch - mean)), (mean, {"mean": mean})

  def otherwise(x, mean, batch, scale):
    loss, beside = loss_fn(x, mean, batch, scale)
    return loss * (1 + 1e-6), beside

  def stepper_of(loss_fn):
    return revmom.Stepper(
      loss_fn,
      revmom.sgd(0.1, 0.9),
      has_aux=True,
      model_state=jnp.ones(()),
      residue_bits=2,
    )

  stepper, other = stepper_of(loss_fn), stepper_of(otherwise)
  batches = np.random.default_rng(0).normal(size=(10, 3)).astype(np.float32)
  start = jnp.asarray(batches[0])

  def run(scale, mean, batches):
    run = revmom.train(
      loss_fn, stepper.optimizer, start, batches, scale, has_aux=True,
      model_state=mean, residue_bits=2,
    )  # fmt: skip
    return jnp.sum(run.params**2) + run.model_state, run

  gradients, run = jax.jit(jax.grad(run, (0, 1, 2), has_aux=True))(
    jnp.asarray(0.7), jnp.ones(()), batches
  )
  state = stepper.init(start, num_steps=10)
  for step, batch in enumerate(batches):
    state, (loss, aux) = stepper.forward(state, batch, 0.7)
    np.testing.assert_allclose(loss, run.losses[step], atol=1e-4)
    np.testing.assert_allclose(aux["mean"], run.aux["mean"][step], 1e-5)
  np.testing.assert_allclose(stepper.model_state(state), run.model_state, 1e-6)
  end = stepper.params(state)
  bars = other.cotangents(
    state, 2 * end, jnp.asarray(0.7), model_state_bar=jnp.ones(())
  )
  for batch in batches[::-1]:
    state, bars, _ = other.backward(state, bars, batch, jnp.asarray(0.7))
  other.check(state)
  np.testing.assert_array_equal(stepper.model_state(state), 1)
  got = other.gradients(state, bars)
  np.testing.assert_allclose(got.args[0], gradients[0], rtol=1e-3)
  np.testing.assert_allclose(got.model_state, gradients[1], rtol=1e-3)


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


@pytest.mark.parametrize(
  ("bits", "adjoint"),
  [
    (2, False),
    pytest.param(2, True, marks=pytest.mark.slow),
    pytest.param("syndromes", True, marks=pytest.mark.slow),
  ],
)
def test_residues_of_muons_update_and_their_margin(bits, adjoint):
  """Another program restores it, too, and says how near it was."""

  def loss_fn(x, batch, turned=False):
    rows, target = batch[:, :-1], batch[:, -1:]
    if turned:
      rows, target = rows[::-1], target[::-1]
    return jnp.mean((jnp.tanh(rows @ x["w"]) - target) ** 2)

  of = lambda loss_fn: revmom.Stepper(
    loss_fn, revmom.muon(0.01, 0.8), residue_bits=bits
  )
  other = of(lambda x, batch: loss_fn(x, batch, True) * (1 + 4e-7))
  draw = np.random.default_rng(0).normal
  start = {"w": jnp.asarray(draw(size=(4, 6)), "float32")}
  batches = draw(size=(5, 32, 5)).astype(np.float32)
  stepper = of(loss_fn)
  state = stepper.init(start, num_steps=5)
  first = jax.tree.map(np.asarray, stepper.params(state))
  assert int(stepper.receipt(state).margin.step) == -1
  for batch in batches:
    state, _ = stepper.forward(state, batch)
  if adjoint:
    bars = other.cotangents(state, stepper.params(state))
  for batch in batches[::-1]:
    if adjoint:
      state, bars, _ = other.backward(state, bars, batch)
    else:
      state, _ = other.inverse(state, batch)
  other.check(state)
  margin = other.receipt(state).margin
  assert 0 <= float(margin.distance) < float(margin.bound)
  assert bits != 2 or float(margin.distance) > 0.1
  jax.tree.map(np.testing.assert_array_equal, other.params(state), first)
  if adjoint:
    gradients = other.gradients(state, bars)
    assert all(np.isfinite(g).all() for g in jax.tree.leaves(gradients))
