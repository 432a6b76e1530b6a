"""Figure 1 of the paper: training runs of two weights."""

import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

import revmom
from maclaurin import plots
from maclaurin.common import DENOMINATOR, GRID_REMEDY, Config
from shared.reproduction import Outcome, Row
from shared.runs import check_finite

_TOY_START = 1.4, 3.9
_TOY_META_RATE, _TOY_META_MOMENTUM = 0.01, 0.9
_TOY_LAST = 414.85, 376.70, 347.38
_TOY_FINAL = 395.30, 356.57, 356.34


class ToyHypers(NamedTuple):
  """One value for every step."""

  log_rate: Any
  logit_momentum: Any


def toy_loss(weights: jax.Array) -> jax.Array:
  """A sigmoid of Rosenbrock's valley with a slope along it."""
  x, y = weights
  valley = 100 * (y - x**2) ** 2 + (1 - x) ** 2 + 200 * x
  return 800 * jax.nn.sigmoid(valley / 500)


def toy_batch_loss(weights: jax.Array, gain: jax.Array) -> jax.Array:
  """The gain 1 - b of a step multiplies its loss."""
  return gain * toy_loss(weights)


def toy_optimizer(hypers: ToyHypers) -> Any:
  """v' = (n / 2^16) v - (gain g), x' = x + a v'."""
  momentum = jax.nn.sigmoid(hypers.logit_momentum)
  fraction = jnp.floor(momentum * DENOMINATOR + 1) / DENOMINATOR
  return revmom.sgd(
    jnp.exp(hypers.log_rate),
    momentum + lax.stop_gradient(fraction - momentum),
    form="trace",
    grid=revmom.Grid({"velocity": 20}),
  )


def toy_run(hypers: ToyHypers) -> tuple[jax.Array, dict[str, jax.Array]]:
  """The loss after training, and the losses and weights on the way."""
  optimizer = toy_optimizer(hypers)
  gains = jax.nn.sigmoid(-hypers.logit_momentum)
  start = jnp.array(_TOY_START)
  run = revmom.train(toy_batch_loss, optimizer, start, gains)
  final = toy_loss(run.params)
  fixed = lax.stop_gradient((optimizer, gains))
  return final, {
    "curve": jnp.append(run.losses / gains, final),
    "path": jnp.concatenate([_toy_path(*fixed, start), run.params[None]]),
  }


def _toy_path(optimizer, gains, start) -> jax.Array:
  """The weights before each step."""

  def step(state, gain):
    gradient = jax.grad(toy_batch_loss)
    after = optimizer.forward(state, lambda weights: gradient(weights, gain))
    return after, optimizer.params(state)

  return lax.scan(step, optimizer.init(start, gains.shape[0]), gains)[1]


def figure_1(config: Config) -> Outcome:
  """Three training runs on a surface, between them two meta steps."""
  steps, meta_steps = config.steps or 50, config.meta_steps or 3
  # For float32, in which a momentum near 1 has few digits after the 9s.
  logit = math.log(0.99) - math.log(0.01)
  fill = lambda value: jnp.full(steps, value, jnp.float32)
  hypers = ToyHypers(fill(-4.5), fill(logit))
  velocity = jax.tree.map(jnp.zeros_like, hypers)
  gradient = jax.jit(jax.value_and_grad(toy_run, has_aux=True))
  runs, metrics = [], []
  for number in range(meta_steps):
    (final, about), bars = gradient(hypers)
    check_finite(f"meta iteration {number}", (about, bars), GRID_REMEDY)
    blend = lambda v, g: _TOY_META_MOMENTUM * v - (1 - _TOY_META_MOMENTUM) * g
    velocity = jax.tree.map(blend, velocity, bars)
    runs.append(jax.tree.map(np.asarray, about))
    metrics += [
      {"meta_step": number, "step": step, "loss": float(loss)}
      for step, loss in enumerate(runs[-1]["curve"])
    ]
    hypers = jax.tree.map(lambda x, v: x + _TOY_META_RATE * v, hypers, velocity)
  table = [Row("loss_start", "loss at the start", 630.42, runs[0]["curve"][0])]
  for number, about in enumerate(runs):
    known = number < len(_TOY_LAST)
    for key, text, position, published in (
      ("before_last_step", "before the last step", -2, _TOY_LAST),
      ("final", "after the last step", -1, _TOY_FINAL),
    ):
      table.append(
        Row(
          f"loss_{key}_{number}",
          f"meta iteration {number}: loss {text}",
          published[number] if known else None,
          about["curve"][position],
        )
      )
  figure = plots.toy(jax.jit(jax.vmap(toy_loss)), runs)
  return Outcome(table, metrics, {"figure_1": figure}, [])
