"""Networks of Flax and Equinox with batch statistics and dropout, trained.

Each is one call of `revmom.train`, beside the same loop by optax.
"""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import linen, nnx

import revmom

STEPS, RATE = 8, 0.05


def batches():
  rng = np.random.default_rng(0)
  x = rng.normal(size=(STEPS, 16, 5)).astype(np.float32)
  return jnp.asarray(x), jnp.asarray(np.sin(x.sum(-1, keepdims=True)))


class NnxNet(nnx.Module):
  def __init__(self, rngs):
    self.first = nnx.Linear(5, 8, rngs=rngs)
    self.norm = nnx.BatchNorm(8, rngs=rngs)
    self.drop = nnx.Dropout(0.3, rngs=rngs)
    self.last = nnx.Linear(8, 1, rngs=rngs)

  def __call__(self, x):
    return self.last(self.drop(nnx.gelu(self.norm(self.first(x)))))


def with_nnx():
  model = NnxNet(nnx.Rngs(0))
  graph, params, state = nnx.split(model, nnx.Param, ...)

  def loss_fn(params, state, batch):
    model = nnx.merge(graph, params, state)
    loss = jnp.mean((model(batch[0]) - batch[1]) ** 2)
    return loss, nnx.state(model, nnx.Not(nnx.Param))

  return loss_fn, params, state


class LinenNet(linen.Module):
  @linen.compact
  def __call__(self, x):
    x = linen.BatchNorm(use_running_average=False)(linen.Dense(8)(x))
    x = linen.Dropout(0.3, deterministic=False)(linen.gelu(x))
    return linen.Dense(1)(x)


def with_linen():
  model, key = LinenNet(), jax.random.key(0)
  variables = model.init({"params": key, "dropout": key}, batches()[0][0])

  def loss_fn(params, state, batch):
    key, own = jax.random.split(state["key"])
    out, changed = model.apply(
      {"params": params, "batch_stats": state["batch_stats"]},
      batch[0],
      mutable=["batch_stats"],
      rngs={"dropout": own},
    )
    return jnp.mean((out - batch[1]) ** 2), {"key": key, **changed}

  state = {"key": key, "batch_stats": variables["batch_stats"]}
  return loss_fn, variables["params"], state


def with_equinox():
  eqx = pytest.importorskip("equinox")
  keys = jax.random.split(jax.random.key(0), 2)
  model = {
    "first": eqx.nn.Linear(5, 8, key=keys[0]),
    "last": eqx.nn.Linear(8, 1, key=keys[1]),
    "norm": eqx.nn.BatchNorm(8, axis_name="batch", mode="batch"),
    "drop": eqx.nn.Dropout(0.3),
  }
  state = eqx.nn.State(model)
  params, static = eqx.partition(model, eqx.is_inexact_array)

  def loss_fn(params, model_state, batch):
    net, (key, state) = eqx.combine(params, static), model_state
    key, own = jax.random.split(key)

    def one(x, key):
      hidden, after = net["norm"](net["first"](x), state)
      hidden = net["drop"](jax.nn.gelu(hidden), key=key)
      return net["last"](hidden), after

    keys = jax.random.split(own, len(batch[0]))
    out, after = jax.vmap(one, axis_name="batch", out_axes=(0, None))(
      batch[0], keys
    )
    return jnp.mean((out - batch[1]) ** 2), (key, after)

  return loss_fn, params, (jax.random.key(1), state)


@pytest.mark.sampled(1)
@pytest.mark.parametrize("build", [with_nnx, with_linen, with_equinox])
def test_a_network_with_statistics_and_dropout(build):
  with jax.numpy_dtype_promotion("standard"):
    loss_fn, params, state = build()
    data = batches()

    def by_optax(params, state):
      optimizer = optax.sgd(RATE, 0.9)

      def step(carry, batch):
        params, slots, state = carry
        # Variables of NNX may be changed only where they were made.
        fresh = lambda params: loss_fn(
          params, jax.tree.map(lambda a: a, state), batch
        )
        (value, state), grads = jax.value_and_grad(fresh, has_aux=True)(params)
        updates, slots = optimizer.update(grads, slots, params)
        return (optax.apply_updates(params, updates), slots, state), value

      start = params, optimizer.init(params), state
      (params, _, state), losses = jax.lax.scan(step, start, data)
      return params, state, losses

    def objective(rate):
      run = revmom.train(
        loss_fn, revmom.sgd(rate, 0.9), params, data, model_state=state
      )
      return run.losses[-1], run

    def everything(rate):
      (_, run), bar = jax.value_and_grad(objective, has_aux=True)(rate)
      back = revmom.rewind(
        loss_fn, revmom.sgd(rate, 0.9), run.state, data, model_state=state
      )
      return run, bar, back

    run, bar, back = jax.jit(everything)(RATE)
    theirs = jax.jit(by_optax)(params, state)
  assert bool(back.receipt.ok) and bool(jnp.isfinite(bar)) and bar != 0
  chex.assert_trees_all_equal(back.params, run.initial_params)
  numbers = lambda tree: [
    leaf
    if jnp.issubdtype(leaf.dtype, jnp.number)
    else jax.random.key_data(leaf)
    for leaf in jax.tree.leaves(tree)
  ]
  chex.assert_trees_all_equal(numbers(back.model_state), numbers(state))
  ours = run.params, run.model_state, run.losses
  chex.assert_trees_all_close(numbers(ours), numbers(theirs), atol=2e-4)
