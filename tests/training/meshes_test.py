"""Runs on many devices, whatever a mesh and `shard_map` know of them."""

import collections
import re

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

import revmom

pytestmark = pytest.mark.sharded
STEPS = 5


def normal(seed, *shape):
  return np.random.default_rng(seed).normal(size=shape).astype("float32")


def loss_fn(params, batch):
  x, y = batch
  hidden = jnp.tanh(x @ params["w"] + params["b"][None])
  return jnp.mean((hidden @ params["v"] - y) ** 2)


def problem(mesh, *axes):
  """Parameters spread over these axes, and batches over the devices."""
  put = lambda array, *spec: jax.device_put(
    array, NamedSharding(mesh, P(*spec))
  )
  params = {
    "w": put(normal(0, 8, 16), *axes),
    "b": put(normal(1, 16)),
    "v": put(normal(2, 16, 8), *axes),
  }
  batches = normal(3, STEPS, 16, 8), normal(4, STEPS, 16, 8)
  return params, tuple(put(array, None, "data") for array in batches)


def both_ways(optimizer, params, batches):
  def objective(params, batches):
    run = revmom.train(loss_fn, optimizer, params, batches)
    return jnp.sum(run.params["w"] ** 2), run

  # What is closed over would be spread otherwise, as a constant.
  gradient, run = jax.jit(jax.grad(objective, has_aux=True))(params, batches)
  back = jax.jit(
    lambda state, batches: revmom.rewind(loss_fn, optimizer, state, batches)
  )(run.state, batches)
  assert back.receipt.ok
  jax.tree.map(np.testing.assert_array_equal, back.params, run.initial_params)
  return gradient, run.state


@pytest.mark.parametrize("axes", [("data",), ()], ids=["sharded", "replicated"])
def test_explicit_axes_are_as_automatic_ones(axes):
  optimizer = revmom.clipped(revmom.adamw(0.01), 1.0)
  found = []
  for kind in (AxisType.Auto, AxisType.Explicit):
    mesh = jax.make_mesh((8,), ("data",), axis_types=(kind,))
    with jax.set_mesh(mesh):
      gradient, state = both_ways(optimizer, *problem(mesh, *axes))
    for leaf in state.leaves:
      for array in leaf.integers.values():
        assert array.sharding.is_fully_replicated == (
          array.ndim == 1 or not axes
        )
    found.append(gradient)
  for auto, explicit in zip(*map(jax.tree.leaves, found), strict=True):
    np.testing.assert_allclose(auto, explicit, rtol=1e-4, atol=1e-6)


def test_a_run_inside_of_shard_map():
  """Sums over devices are the loss's; what varies is checked, by default."""
  mesh = jax.make_mesh((8,), ("data",), axis_types=(AxisType.Auto,))
  optimizer = revmom.adamw(0.01)
  params, batches = problem(mesh)

  def gradient(params, batches):
    shared = lambda params, batch: jax.lax.pmean(loss_fn(params, batch), "data")
    objective = lambda params: jnp.sum(
      revmom.train(shared, optimizer, params, batches).params["w"] ** 2
    )
    return jax.grad(objective)(params)

  spread = jax.shard_map(
    gradient, mesh=mesh, in_specs=(P(), P(None, "data")), out_specs=P()
  )
  expected, _ = both_ways(optimizer, params, batches)
  for ours, own in zip(
    jax.tree.leaves(jax.jit(spread)(params, batches)),
    jax.tree.leaves(expected),
    strict=True,
  ):
    np.testing.assert_allclose(ours, own, rtol=1e-4, atol=1e-6)


def test_each_device_a_run_of_its_own_inside_of_shard_map():
  mesh = jax.make_mesh((8,), ("data",), axis_types=(AxisType.Auto,))
  optimizer = revmom.sgd(0.1, 0.9)
  starts = jnp.asarray(normal(5, 8, 3))
  targets = jnp.asarray(normal(6, STEPS, 3))
  loss = lambda x, target: jnp.sum((x - target) ** 2)

  end = lambda start: revmom.train(loss, optimizer, start, targets).params
  spread = jax.shard_map(
    lambda start: end(start[0])[None],
    mesh=mesh,
    in_specs=P("data"),
    out_specs=P("data"),
  )
  expected = jax.vmap(end)(starts)
  np.testing.assert_allclose(jax.jit(spread)(starts), expected, rtol=1e-5)


@pytest.mark.parametrize("axes", [("data",), ()], ids=["sharded", "replicated"])
def test_a_step_sends_what_a_step_of_optax_sends(axes):
  mesh = jax.make_mesh((8,), ("data",), axis_types=(AxisType.Auto,))
  params, batches = problem(mesh, *axes)

  def by_optax(params, batches):
    optimizer = optax.sgd(0.1, 0.9)

    def step(carry, batch):
      params, slots = carry
      loss, gradients = jax.value_and_grad(loss_fn)(params, batch)
      updates, slots = optimizer.update(gradients, slots, params)
      return (optax.apply_updates(params, updates), slots), loss

    return jax.lax.scan(step, (params, optimizer.init(params)), batches)

  ours = lambda params, batches: revmom.train(
    loss_fn, revmom.sgd(0.1, 0.9), params, batches
  )
  assert sent_in_loops(ours, params, batches) == sent_in_loops(
    by_optax, params, batches
  )


def sent_in_loops(function, *args):
  """Communications outside of the entry of a program, by their kinds."""
  text = jax.jit(function).lower(*args).compile().as_text()
  inner = text[: text.index("\nENTRY ")]
  kinds = "all-reduce|all-gather|all-to-all|reduce-scatter|collective-permute"
  return collections.Counter(re.findall(rf" ({kinds})(?:-start)?\(", inner))


def test_a_state_is_spread_as_its_parameters_are():
  mesh = jax.make_mesh((8,), ("data",), axis_types=(AxisType.Auto,))
  params, _ = problem(mesh, "data")
  state = jax.jit(lambda params: revmom.adamw(0.01).init(params, 300))(params)
  for leaf in state.leaves:
    alone = leaf.integers["params"].ndim < 2
    for array in jax.tree.leaves(leaf):
      assert array.sharding.is_fully_replicated == alone
