"""The ways to train, and to differentiate through training.

A forward contender maps (params, learning rate, momentum, batches) to a tree
with `params`.  A hypergradient contender maps (params, learning rate, momentum,
batches, held-out batch) to a dict of the held-out loss after training, `value`,
and its `gradient` with respect to the learning rate, the momentum and the
initial parameters.  All take the same heavy-ball steps, in float32 or on
revmom's grid.
"""

import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jax import lax
from workloads import Workload, batch_at

import revmom

# A traced momentum needs a floor for the size of its buffer.  float32 rounds
# 1 - 0.9 up by 2e-8, so the floor is just below.
FLOOR_MARGIN = 1e-6


def grid(momentum: float) -> revmom.Grid:
  """Room for a momentum, and nothing to speak of beyond it."""
  return revmom.Grid(floors={"velocity": momentum - FLOOR_MARGIN})


def plain(workload: Workload, steps: int, momentum: float) -> Callable:
  """`optax.sgd` in a scan, keeping nothing."""
  del momentum

  def train(params, learning_rate, momentum, batches):
    optimizer = optax.sgd(learning_rate, momentum)

    def step(carry, t):
      params, state = carry
      value, gradient = jax.value_and_grad(workload.loss)(
        params, batch_at(batches, t)
      )
      update, state = optimizer.update(gradient, state, params)
      return (optax.apply_updates(params, update), state), value

    start = params, optimizer.init(params)
    (params, _), losses = lax.scan(step, start, jnp.arange(steps))
    return {"params": params, "losses": losses}

  return train


def reversible(workload: Workload, steps: int, momentum: float) -> Callable:
  """`revmom.train`: returns the run, from which it can be reversed."""

  def train(params, learning_rate, traced_momentum, batches):
    optimizer = revmom.sgd(learning_rate, traced_momentum, grid=grid(momentum))
    run = revmom.train(
      workload.loss,
      optimizer,
      params,
      lambda t: batch_at(batches, t),
      num_steps=steps,
    )
    return {"params": run.params, "losses": run.losses, "state": run.state}

  return train


def rewind(workload: Workload, momentum: float) -> Callable:
  """(state, learning rate, momentum, batches) -> receipt and parameters."""

  def undo(state, learning_rate, traced_momentum, batches):
    optimizer = revmom.sgd(learning_rate, traced_momentum, grid=grid(momentum))
    rewound = revmom.rewind(
      workload.loss, optimizer, state, lambda t: batch_at(batches, t)
    )
    return {"ok": rewound.receipt.ok, "params": rewound.params}

  return undo


def reversible_gradient(mode: str) -> Callable:
  """`jax.grad` through `revmom.train`."""

  def make(workload: Workload, steps: int, momentum: float) -> Callable:
    def objective(
      params, learning_rate, traced_momentum, batches, held_out
    ) -> jax.Array:
      optimizer = revmom.sgd(
        learning_rate, traced_momentum, grid=grid(momentum)
      )
      run = revmom.train(
        workload.loss,
        optimizer,
        params,
        lambda t: batch_at(batches, t),
        num_steps=steps,
        second_order_mode=mode,
      )
      return workload.loss(run.params, held_out)

    return _gradient_of(objective)

  return make


def unrolled_gradient(loop: Callable) -> Callable:
  """`jax.grad` through float32 training; `loop` decides what is stored.

  Args:
    loop: (step, start, steps) -> final carry, where step is (carry, t) ->
      carry.
  """

  def make(workload: Workload, steps: int, momentum: float) -> Callable:
    del momentum

    def objective(params, learning_rate, momentum, batches, held_out):
      def step(carry, t):
        params, velocity = carry
        gradient = jax.grad(workload.loss)(params, batch_at(batches, t))
        velocity = jax.tree.map(
          lambda v, g: momentum * v - learning_rate * g, velocity, gradient
        )
        return jax.tree.map(jnp.add, params, velocity), velocity

      start = params, jax.tree.map(jnp.zeros_like, params)
      return workload.loss(loop(step, start, steps)[0], held_out)

    return _gradient_of(objective)

  return make


def _gradient_of(objective: Callable) -> Callable:
  def gradient(params, learning_rate, momentum, batches, held_out):
    value, bars = jax.value_and_grad(objective, (0, 1, 2))(
      params, learning_rate, momentum, batches, held_out
    )
    names = "params", "learning_rate", "momentum"
    return {"value": value, "gradient": dict(zip(names, bars, strict=True))}

  return gradient


def _scan(step: Callable, start: Any, ts: jax.Array) -> Any:
  return lax.scan(lambda carry, t: (step(carry, t), None), start, ts)[0]


def store_all(step: Callable, start: Any, steps: int) -> Any:
  """Every intermediate of every step is stored."""
  return _scan(step, start, jnp.arange(steps))


def checkpoint_steps(step: Callable, start: Any, steps: int) -> Any:
  """The state before every step is stored."""
  return _scan(jax.checkpoint(step), start, jnp.arange(steps))


def checkpoint_segments(step: Callable, start: Any, steps: int) -> Any:
  """About sqrt(steps) states are stored, and one segment's intermediates."""
  return _segments(step, start, steps)


def checkpoint_nested(step: Callable, start: Any, steps: int) -> Any:
  """About sqrt(steps) states are stored, and one segment's states."""
  return _segments(jax.checkpoint(step), start, steps)


def _segments(step: Callable, start: Any, steps: int) -> Any:
  count = segment_count(steps)
  segment = jax.checkpoint(lambda carry, ts: _scan(step, carry, ts))
  return _scan(segment, start, jnp.arange(steps).reshape(count, -1))


def segment_count(steps: int) -> int:
  """The largest divisor of steps up to its root."""
  return max(n for n in range(1, math.isqrt(steps) + 1) if steps % n == 0)


def equinox_loop(step: Callable, start: Any, steps: int) -> Any:
  """Equinox's checkpointed loop (Stumm & Walther 2010), default settings."""
  import equinox.internal as eqxi

  return eqxi.scan(
    lambda carry, t: (step(carry, t), None),
    start,
    jnp.arange(steps),
    kind="checkpointed",
  )[0]


def float_reversal(workload: Workload, steps: int, momentum: float) -> Callable:
  """The reverse pass of Maclaurin et al. (2015) in float32, keeping no bits.

  It divides by the momentum what rounding has already damaged.  Its dict has
  the parameters it took for the initial ones, too: `restored`.
  """
  del momentum
  grad = jax.grad(workload.loss)
  each = jax.tree.map

  def inner(a, b):
    return sum(jax.tree.leaves(each(jnp.vdot, a, b)))

  def gradient(params, learning_rate, momentum, batches, held_out):
    def forward(carry, t):
      params, velocity = carry
      g = grad(params, batch_at(batches, t))
      velocity = each(
        lambda v, g: momentum * v - learning_rate * g, velocity, g
      )
      return each(jnp.add, params, velocity), velocity

    def backward(carry, t):
      params, velocity, params_bar, velocity_bar, rate_bar, momentum_bar = carry
      batch = batch_at(batches, t)
      params = each(jnp.subtract, params, velocity)
      velocity_bar = each(jnp.add, velocity_bar, params_bar)
      scaled = each(lambda bar: -learning_rate * bar, velocity_bar)
      g, hessian_product = jax.jvp(
        lambda p: grad(p, batch), (params,), (scaled,)
      )
      velocity = each(
        lambda v, g: (v + learning_rate * g) / momentum, velocity, g
      )
      return (
        params,
        velocity,
        each(jnp.add, params_bar, hessian_product),
        each(lambda bar: momentum * bar, velocity_bar),
        rate_bar - inner(velocity_bar, g),
        momentum_bar + inner(velocity_bar, velocity),
      )

    zeros = each(jnp.zeros_like, params)
    ts = jnp.arange(steps)
    final, velocity = _scan(forward, (params, zeros), ts)
    value, final_bar = jax.value_and_grad(workload.loss)(final, held_out)
    zero = jnp.zeros(())
    restored, _, params_bar, _, rate_bar, momentum_bar = _scan(
      backward, (final, velocity, final_bar, zeros, zero, zero), ts[::-1]
    )
    bars = {
      "params": params_bar,
      "learning_rate": rate_bar,
      "momentum": momentum_bar,
    }
    return {"value": value, "gradient": bars, "restored": restored}

  return gradient


FORWARD = {"optax": plain, "revmom": reversible}

# Where memory or time allow no more: the longest run of each.
HYPERGRADIENT = {
  "revmom": (reversible_gradient("forward_over_reverse"), math.inf),
  "revmom, reverse over reverse": (
    reversible_gradient("reverse_over_reverse"),
    1000,
  ),
  "scan, everything stored": (unrolled_gradient(store_all), 1000),
  "scan, every step checkpointed": (unrolled_gradient(checkpoint_steps), 1000),
  "scan, sqrt(T) segments": (unrolled_gradient(checkpoint_segments), 1000),
  "scan, sqrt(T) segments and steps": (
    unrolled_gradient(checkpoint_nested),
    math.inf,
  ),
  "equinox checkpointed loop": (unrolled_gradient(equinox_loop), 1000),
  "float reversal": (float_reversal, 1000),
}
