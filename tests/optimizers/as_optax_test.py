"""as_optax stays exact through optax.apply_updates."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

import revmom


def _problem():
  keys = jax.random.split(jax.random.key(0), 3)
  params = {
    "w": jax.random.normal(keys[0], (6, 4)),
    "b": jnp.linspace(-2.0, 2.0, 4),
  }
  x, y = (
    jax.random.normal(keys[1], (30, 6)),
    jax.random.normal(keys[2], (30, 4)),
  )
  loss = lambda p: jnp.mean((jnp.tanh(x @ p["w"] + p["b"]) - y) ** 2)
  return params, jax.jit(jax.grad(loss)), loss


@pytest.mark.sampled(1)
@pytest.mark.parametrize("form", ["heavy_ball", "ema", "trace"])
def test_forward_and_back_bit_for_bit(form):
  params, gradient, loss = _problem()
  optimizer = revmom.sgd(0.1, 0.9, form=form, weight_decay=1e-3)
  transformation = revmom.as_optax(optimizer, num_steps=200)
  first = state = transformation.init(params)
  params = start = transformation.params(state)
  update = jax.jit(transformation.update)
  inverse = jax.jit(lambda state: transformation.inverse(state, gradient))
  seen = []
  for _ in range(200):
    seen.append(params)
    updates, state = update(gradient(params), state, params)
    params = optax.apply_updates(params, updates)
    chex.assert_trees_all_equal(params, transformation.params(state))
  assert float(loss(params)) < float(loss(start))
  for before in reversed(seen):
    params, state = inverse(state)
    chex.assert_trees_all_equal(params, before)
  chex.assert_trees_all_equal(state, first)


def test_float_updates_would_not_be_exact():
  """The counter-test: off the grid p + (q - p) is not q."""
  p, q = jax.random.normal(jax.random.key(1), (2, 10_000))
  assert bool(jnp.any(optax.apply_updates(p, q - p) != q))
  grid = jnp.round(jnp.stack([p, q]) * 2**18) / 2**18
  updates = grid[1] - grid[0]
  np.testing.assert_array_equal(optax.apply_updates(grid[0], updates), grid[1])


def test_low_bits_stay_in_the_state():
  """Updates far below the shown resolution accumulate."""
  transformation = revmom.as_optax(revmom.sgd(1.0, 0.5), num_steps=1000)
  state = transformation.init(jnp.zeros(1))
  params = transformation.params(state)
  gradients = jnp.full(1, -(2.0**-22))  # shown: multiples of 2^-18
  update = jax.jit(transformation.update)
  for _ in range(900):
    updates, state = update(gradients, state, params)
    params = optax.apply_updates(params, updates)
  np.testing.assert_allclose(params, 900 * 2.0**-22 / 0.5, rtol=0.02)


def test_follows_optax_sgd():
  params, gradient, _ = _problem()
  transformation = revmom.as_optax(revmom.sgd(0.05, 0.9), num_steps=200)
  plain = optax.sgd(0.05, 0.9)
  state = transformation.init(params)
  ours = params = transformation.params(state)
  plain_state = plain.init(params)
  update = jax.jit(transformation.update)
  for _ in range(200):
    updates, state = update(gradient(ours), state, ours)
    ours = optax.apply_updates(ours, updates)
    updates, plain_state = plain.update(gradient(params), plain_state, params)
    params = optax.apply_updates(params, updates)
  # The shown grid is 2^-18 wide; the problem contracts, so errors don't grow.
  chex.assert_trees_all_close(ours, params, atol=20 * 2.0**-18)


def test_works_inside_an_optax_chain_of_itself_and_scan():
  params, gradient, _ = _problem()
  transformation = optax.chain(revmom.as_optax(revmom.sgd(0.1, 0.9), 50))
  inner = revmom.as_optax(revmom.sgd(0.1, 0.9), 50)
  params = inner.params(inner.init(params))

  def step(carry, _):
    params, state = carry
    updates, state = transformation.update(gradient(params), state, params)
    return (optax.apply_updates(params, updates), state), None

  start = params, transformation.init(params)
  (params, (state,)), _ = jax.lax.scan(step, start, length=50)
  chex.assert_trees_all_equal(params, inner.params(state))


def test_errors():
  transformation = revmom.as_optax(revmom.sgd(0.1, 0.9))
  with pytest.raises(ValueError, match="bfloat16.*cast"):
    transformation.init({"w": jnp.zeros(3, jnp.bfloat16)})
  params = {"w": jnp.array([0.1, 0.2])}  # not on the grid
  state = transformation.init(params)
  with pytest.raises(ValueError, match=r"start from\s+transformation.params"):
    transformation.update(params, state, params)
  with pytest.raises(ValueError, match="params"):
    transformation.update(params, state)
  updates, _ = jax.jit(transformation.update)(params, state, params)
  assert bool(jnp.all(jnp.isnan(updates["w"])))


@pytest.mark.parametrize("params", [{}, {"w": optax.MaskedNode()}])
def test_nothing_to_do(params):
  transformation = revmom.as_optax(revmom.adam(0.1), 3)
  state = transformation.init(params)
  updates, state = transformation.update(params, state, params)
  assert updates == params
  params, state = transformation.inverse(state, lambda p: p)
  assert updates == params and int(state.count) == 0


def test_a_label_that_no_array_has():
  transformation = optax.partition(
    {
      "ours": revmom.as_optax(revmom.sgd(0.125, 0.5), 3),
      "none": revmom.as_optax(revmom.adam(0.1), 3),
    },
    lambda params: jax.tree.map(lambda _: "ours", params),
  )
  params = {"w": jnp.ones(2)}
  updates, _ = transformation.update(
    params, transformation.init(params), params
  )
  np.testing.assert_array_equal(updates["w"], -0.125)


@pytest.mark.parametrize(
  "compile", [lambda f: f, nnx.jit], ids=["eager", "jit"]
)
def test_in_an_nnx_optimizer(compile):
  model = nnx.Linear(3, 2, rngs=nnx.Rngs(0))
  transformation = revmom.as_optax(revmom.sgd(0.125, 0.5), 3)
  nnx.update(
    model,
    transformation.params(transformation.init(nnx.state(model, nnx.Param))),
  )
  start = jax.tree.map(jnp.copy, nnx.as_pure(nnx.state(model, nnx.Param)))
  optimizer = nnx.Optimizer(model, transformation, wrt=nnx.Param)
  loss = lambda model: jnp.sum(model(jnp.ones((1, 3))) ** 2)

  def step(model, optimizer):
    optimizer.update(model, nnx.grad(loss)(model))

  before = float(loss(model))
  for _ in range(3):
    compile(step)(model, optimizer)
  assert float(loss(model)) < before
  graph = nnx.graphdef(model)
  gradient = jax.jit(jax.grad(lambda params: loss(nnx.merge(graph, params))))
  state = optimizer.opt_state
  chex.assert_trees_all_equal(
    jax.tree.leaves(transformation.params(state)),
    jax.tree.leaves(nnx.state(model, nnx.Param)),
  )
  for _ in range(3):
    params, state = transformation.inverse(state, gradient)
  assert int(state.count) == 0
  np.testing.assert_allclose(params["kernel"], start["kernel"], atol=2.0**-16)


def test_map_params_says_what_to_map():
  transformation = revmom.as_optax(revmom.adam(0.1), 3)
  state = transformation.init({"w": jnp.ones((2, 3)), "b": jnp.ones(2)})
  with pytest.raises(ValueError, match=r"state\.leaves"):
    optax.tree.map_params(transformation, lambda a: 2 * a, state)


def test_injected_hyperparameters():
  make = lambda learning_rate: revmom.as_optax(
    revmom.sgd(learning_rate, 0.5), 3
  )
  transformation = optax.inject_hyperparams(make)(
    learning_rate=lambda count: 0.25 / (1 + jnp.float32(count))
  )
  params = {"w": jnp.ones(2)}
  state = transformation.init(params)
  update = jax.jit(transformation.update)
  p, v = 1.0, 0.0
  for count in range(3):
    updates, state = update(params, state, params)
    p, v = (
      p + 0.5 * v - 0.25 / (1 + count) * p,
      0.5 * v - 0.25 / (1 + count) * p,
    )
    params = optax.apply_updates(params, updates)
  np.testing.assert_allclose(params["w"], p, atol=2.0**-17)


def test_a_model_of_equinox():
  equinox = pytest.importorskip("equinox")
  model = equinox.nn.MLP(2, 1, 4, 1, key=jax.random.key(0))
  transformation = revmom.as_optax(revmom.sgd(0.1, 0.9))
  with pytest.raises(ValueError, match="activation.*is no array.*partition"):
    transformation.init(model)
  params, static = equinox.partition(model, equinox.is_inexact_array)
  shown = jax.eval_shape(
    lambda params: transformation.params(transformation.init(params)), params
  )
  assert equinox.combine(shown, static).activation is model.activation
