"""Gradients of runs that are taken and undone step by step."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import revmom

STEPS = 12


def loss_fn(params, batch, scale):
  x, y = batch
  return scale * jnp.mean((jnp.tanh(x @ params["w"]) @ params["v"] - y) ** 2)


def problem():
  rng = np.random.default_rng(0)
  params = {"w": 0.5 * rng.normal(size=(3, 4)), "v": rng.normal(size=(4, 2))}
  return params, (
    rng.normal(size=(STEPS, 5, 3)),
    rng.normal(size=(STEPS, 5, 2)),
  )


def validation(params):
  return jnp.sum(jnp.sin(params["w"])) + jnp.sum(params["v"] ** 3)


RATES = np.linspace(0.05, 0.02, STEPS)
grid = lambda: revmom.Grid(integer="int64")
slow = lambda *values: pytest.param(*values, marks=pytest.mark.slow)
sgd = lambda: revmom.sgd(RATES, 0.8, weight_decay=0.01, grid=grid())
adamw = lambda: revmom.adamw(RATES, b1=0.7, grid=grid())
muon = lambda: revmom.muon(RATES, 0.8, grid=grid())


@pytest.mark.parametrize(
  ("make", "clip"),
  [
    (sgd, 0.5),
    slow(sgd, None),
    slow(adamw, None),
    slow(adamw, 0.5),
    slow(muon, None),
    slow(muon, 0.5),
  ],
)
def test_gradients_are_those_of_train(x64, make, clip):
  params, batches = problem()
  optimizer = make() if clip is None else revmom.clipped(make(), clip)
  scale = jnp.asarray(1.3)
  weights = np.linspace(0, 1, STEPS)

  def objective(*inputs):
    optimizer, params, batches, scale = inputs
    run = revmom.train(loss_fn, optimizer, params, batches, scale)
    return validation(run.params) + jnp.vdot(weights, run.losses), run

  inputs = optimizer, params, batches, scale
  inputs = jax.tree.map(lambda a: jnp.asarray(a, float), inputs)
  expected, run = jax.jit(jax.grad(objective, (0, 1, 2, 3), has_aux=True))(
    *inputs
  )
  stepper = revmom.Stepper(loss_fn, optimizer)
  state = stepper.init(params, STEPS)
  items = [tuple(array[t] for array in batches) for t in range(STEPS)]
  for item in iter(items):
    state, _ = stepper.forward(state, item, scale)
  end = stepper.params(state)
  chex.assert_trees_all_close(end, run.params, rtol=1e-12)
  bars = stepper.cotangents(state, jax.grad(validation)(end), scale)
  batches_bar = []
  for t in reversed(range(STEPS)):
    state, bars, item_bar = stepper.backward(
      state, bars, items[t], scale, loss_bar=weights[t], batch_bar=True
    )
    batches_bar.append(item_bar)
  stepper.check(state)
  chex.assert_trees_all_equal(stepper.params(state), run.initial_params)
  got = stepper.gradients(state, bars)
  stacked = jax.tree.map(lambda *a: jnp.stack(a[::-1]), *batches_bar)
  chex.assert_trees_all_close(
    (got.optimizer, got.params, stacked, got.args[0]), expected, rtol=1e-9,
    atol=1e-14,
  )  # fmt: skip


def test_cotangents_of_another_step_give_no_number():
  loss_fn = lambda x, batch, scale: scale * jnp.sum(jnp.cos(x - batch))
  stepper = revmom.Stepper(loss_fn, revmom.sgd(0.1, 0.9))
  state = stepper.init(jnp.zeros(2), num_steps=3)
  for t in range(3):
    state, _ = stepper.forward(state, jnp.full(2, float(t)), 1.0)
  bars = stepper.cotangents(state, jnp.ones(2), 1.0)
  with pytest.raises(ValueError, match="give both those that the steps had"):
    stepper.backward(state, bars, jnp.full(2, 2.0))
  state, _ = stepper.inverse(state, jnp.full(2, 2.0), 1.0)
  state, bars, _ = stepper.backward(state, bars, jnp.full(2, 1.0), 1.0)
  stepper.check(state)
  gradients = stepper.gradients(state, bars)
  assert all(jnp.all(jnp.isnan(a)) for a in jax.tree.leaves(gradients))
