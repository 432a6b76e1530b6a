"""as_optax stays exact through optax.apply_updates."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

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
  inverse = jax.jit(lambda state: transformation.inverse(gradient, state))
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
