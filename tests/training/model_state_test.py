"""What a loss returns beside its value: metrics, and a state of the model."""

import functools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

import revmom
from revmom.training import plans

STEPS = 12
RATE, MOMENTUM = 0.05, 0.8


class Again(plans.Policy):
  """Segments that are run again, though there is room for all words."""

  def make(self, steps, costs):
    return plans._split(steps, 3, "recompute", 1)


def normal(seed, *shape):
  return jnp.asarray(np.random.default_rng(seed).normal(size=shape))


def loss_fn(params, state, batch, scale):
  """A normalised layer, whose statistics move and enter the loss."""
  x, y = batch
  hidden = x @ params["w"]
  mean = jnp.mean(hidden, 0)
  moving = 0.8 * state["mean"] + 0.2 * mean
  out = jnp.tanh(hidden - mean + 0.3 * moving) @ params["v"]
  loss = scale * jnp.mean((out - y) ** 2)
  after = {"mean": moving, "count": state["count"] + 1}
  return loss, (after, {"norm": jnp.sum(out**2), "right": jnp.sum(out > y)})


def problem(dtype):
  cast = functools.partial(jax.tree.map, lambda a: a.astype(dtype))
  params = {"w": 0.5 * normal(0, 3, 5), "v": 0.5 * normal(1, 5, 2)}
  state = {"mean": 0.1 * normal(2, 5), "count": jnp.zeros((), jnp.int32)}
  state["mean"] = state["mean"].astype(dtype)
  batches = normal(3, STEPS, 7, 3), normal(4, STEPS, 7, 2)
  return cast(params), state, cast(batches), jnp.asarray(1.3, dtype)


def ours(rate, params, mean, batches, scale, **kwargs):
  grid = revmom.Grid(integer="int64") if mean.dtype == jnp.float64 else None
  return revmom.train(
    loss_fn,
    revmom.sgd(rate, MOMENTUM, grid=grid),
    params,
    batches,
    scale,
    has_aux=True,
    model_state={"mean": mean, "count": jnp.zeros((), jnp.int32)},
    **kwargs,
  )


def stored(rate, params, mean, batches, scale):
  """The same in floats, which autodiff stores."""

  def step(carry, batch):
    params, velocity, state = carry
    (value, (state, aux)), grads = jax.value_and_grad(loss_fn, has_aux=True)(
      params, state, batch, scale
    )
    velocity = jax.tree.map(
      lambda v, g: MOMENTUM * v - rate * g, velocity, grads
    )
    params = jax.tree.map(jnp.add, params, velocity)
    return (params, velocity, state), (value, aux)

  state = {"mean": mean, "count": jnp.zeros((), jnp.int32)}
  start = params, jax.tree.map(jnp.zeros_like, params), state
  (params, _, state), (losses, aux) = lax.scan(step, start, batches)
  return revmom.Run(params, losses, None, None, None, aux, state)


def objective(run):
  return (
    jnp.sum(run.params["v"] ** 3)
    + jnp.sum(jnp.sin(run.model_state["mean"]))
    + jnp.vdot(jnp.linspace(0, 1, STEPS), run.losses)
    + jnp.sum(jnp.cos(run.aux["norm"]))
  )


@pytest.mark.parametrize(
  "kwargs",
  [
    {},
    {"second_order_mode": "reverse_over_reverse"},
    pytest.param({"plan": Again()}, marks=pytest.mark.slow),
  ],
  ids=["auto", "reverse", "recompute"],
)
def test_values_and_gradients_are_those_of_the_stored_run(x64, kwargs):
  params, state, batches, scale = problem("float64")
  inputs = jnp.asarray(RATE), params, state["mean"], batches, scale

  def both(*inputs):
    of = lambda train: jax.value_and_grad(
      lambda *inputs: (lambda run: (objective(run), run))(train(*inputs)),
      (0, 1, 2, 3, 4),
      has_aux=True,
    )(*inputs)
    return of(functools.partial(ours, **kwargs)), of(stored)

  ((_, run), got), ((_, expected_run), expected) = jax.jit(both)(*inputs)
  beside = lambda run: (run.params, run.losses, run.aux, run.model_state)
  chex.assert_trees_all_close(beside(run), beside(expected_run), rtol=1e-9)
  assert int(run.model_state["count"]) == STEPS
  chex.assert_trees_all_close(got, expected, rtol=1e-7)
  assert run.state.plan.depth == ("plan" in kwargs)


def test_a_rewind_restores_the_first_state():
  params, state, batches, scale = problem("float32")

  @jax.jit
  def there_and_back(mean):
    run = ours(RATE, params, mean, batches, scale)
    back = revmom.rewind(
      loss_fn,
      revmom.sgd(RATE, MOMENTUM),
      run.state,
      batches,
      scale,
      has_aux=True,
      model_state=run.model_state,
    )
    return run, back

  run, back = there_and_back(state["mean"])
  assert bool(back.receipt.ok)
  chex.assert_trees_all_equal(back.params, run.initial_params)
  chex.assert_trees_all_equal(back.model_state, state)
  with pytest.raises(ValueError, match=r"int32\[\], .*but was now given no"):
    revmom.rewind(
      lambda p, b: 0.0, revmom.sgd(RATE, MOMENTUM), run.state, batches
    )


def test_metrics_alone_and_a_state_of_keys():
  """Without a state; and a state that holds nothing but a random key."""

  def with_aux(x, batch):
    return jnp.sum((x - batch) ** 2), {"x": x}

  batches = jnp.ones((5, 2))
  run = revmom.train(
    with_aux, revmom.sgd(0.1, 0.9), jnp.zeros(2), batches, has_aux=True
  )
  assert run.aux["x"].shape == (5, 2) and run.model_state is None
  np.testing.assert_array_equal(run.aux["x"][0], 0)

  def noisy(x, key, batch):
    key, own = jax.random.split(key)
    noise = jax.random.normal(own, x.shape)
    return jnp.sum((x + 0.1 * noise - batch) ** 2), key

  def final(rate):
    run = revmom.train(
      noisy,
      revmom.sgd(rate, 0.9),
      jnp.zeros(2),
      batches,
      model_state=jax.random.key(0),
    )
    return jnp.sum(run.params), run

  (_, run), bar = jax.jit(jax.value_and_grad(final, has_aux=True))(0.1)
  assert jnp.isfinite(bar)
  expected = jax.random.key(0)
  for _ in range(5):
    expected = jax.random.split(expected)[0]
  assert bool(run.model_state == expected)


def test_no_steps():
  params, state, batches, scale = problem("float32")
  none = jax.tree.map(lambda a: a[:0], batches)
  run = ours(RATE, params, state["mean"], none, scale)
  assert run.aux["norm"].shape == (0,) and run.aux["right"].dtype == jnp.int32
  chex.assert_trees_all_equal(run.model_state, state)


@pytest.mark.parametrize(
  ("loss", "kwargs", "message"),
  [
    (lambda x, b: (jnp.sum(x), x), {}, "needs has_aux=True or model_state"),
    (lambda x, b: jnp.sum(x), {"has_aux": True}, r"return \(loss, aux\)"),
    (
      lambda x, s, b: jnp.sum(x),
      {"model_state": 1.0},
      r"return \(loss, model_state\)",
    ),
    (
      lambda x, s, b: (jnp.sum(x), s),
      {"model_state": 1.0, "has_aux": True},
      r"return \(loss, \(model_state, aux\)\)",
    ),
    (
      lambda x, s, b: (jnp.sum(x), {"a": jnp.zeros(3)}),
      {"model_state": {"a": jnp.zeros(2)}},
      r"\['a'\] is float32\[2\] before a step, but float32\[3\]",
    ),
    (
      lambda x, s, b: (jnp.sum(x), [s]),
      {"model_state": jnp.zeros(2)},
      "same structure",
    ),
  ],
  ids=["tuple", "no aux", "no state", "no pair", "shape", "structure"],
)
def test_other_forms_of_losses(loss, kwargs, message):
  with pytest.raises(ValueError, match=message):
    revmom.train(
      loss, revmom.sgd(0.1, 0.9), jnp.zeros(2), jnp.ones((3, 2)), **kwargs
    )
