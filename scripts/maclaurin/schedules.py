"""Figures of the paper in which learning rates and momenta are learned."""

import functools
import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax import lax

import revmom
from maclaurin import plots
from maclaurin.common import (
  DENOMINATOR,
  GRID_REMEDY,
  Config,
  mean_note,
  split,
)
from schedules import elementary, learning
from schedules.plots import learned as learned_plots
from shared import meta_training
from shared.reproduction import Outcome, Row
from shared.runs import check_finite

# Figure 1: two weights.

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


# Figures 2, 3, 4, 6 and 7: all of a training schedule.

_SCHEDULE_SIZES = 10_000, 10_000, 10_000
_BATCH_SIZE = 200
_META_RATE = 0.04
_SCHEDULE_LOSSES = {
  "train": (0.53, 0.12),
  "validation": (0.60, 0.24),
  "test": (0.59, 0.25),
}
_SCALES = {
  "weights": (-3.12, -1.38, -1.82, -2.07),
  "biases": (-0.36, -2.9, -3.02, -2.53),
}


def figure_2(config: Config) -> Outcome:
  """Learns the schedule with the authors' variant of Adam."""
  steps, meta_steps = config.steps or 100, config.meta_steps or 50
  data, notes = split(config, _SCHEDULE_SIZES)
  problem = elementary.pose(data, config.seed)
  adam = elementary.early_adam(_META_RATE)
  step = jax.jit(learning.meta_step(problem, _BATCH_SIZE, "train", adam))
  initial = elementary.initial_hypers(problem, steps)
  curves, gradients = [], [jax.tree.map(jnp.ones_like, initial)]

  def measured_step(hypers, state, number):
    after, state, measured = step(hypers, state, number)
    curves.append(np.asarray(measured.curve))
    gradients.append(measured.gradient)
    figures = {
      **{f"{name}_loss": loss for name, loss in measured.losses.items()},
      "hypergradient_norm": optax.global_norm(measured.gradient),
      "hypergradient_cosine": _cosine(*gradients[-2:]),
    }
    return after, state, figures

  def explain(hypers, number, what):
    remedy = "take fewer --meta_steps or another --seed."
    learning.explain(problem, _BATCH_SIZE, hypers, number, f"{what}: {remedy}")

  learn = functools.partial(
    meta_training.learn,
    measured_step,
    columns=functools.partial(learning.scales_of, problem),
    explain=explain,
    save=lambda learned: None,
    description="figure 2",
  )
  start = meta_training.start(initial, adam)
  learned = learn(learned=start, meta_steps=meta_steps)
  # Once more, to measure what has been learned.
  metrics = learn(learned=learned, meta_steps=meta_steps + 1).rows
  names = elementary.scale_columns(problem)
  log_scales = np.array([[row[name] for name in names] for row in metrics])
  table = []
  for name, published in _SCHEDULE_LOSSES.items():
    for when, row, value in zip(
      ("before", "after"), (metrics[0], metrics[-1]), published, strict=True
    ):
      table.append(
        Row(
          f"{name}_loss_{when}",
          f"{name} loss {when} meta-training (nats)",
          value,
          row[f"{name}_loss"],
        )
      )
  for offset, (kind, scales_of_kind) in enumerate(_SCALES.items()):
    for layer, value in enumerate(scales_of_kind):
      table.append(
        Row(
          f"log_scale_{kind}_{layer + 1}",
          f"log initial scale of {kind} {layer + 1}",
          value,
          float(log_scales[-1, 2 * layer + offset]),
        )
      )
  figures = {
    **learned_plots(problem, learned.values, log_scales),
    "learning_curves": plots.learning_curves(metrics, curves),
  }
  notes += [
    "The paper's values are read off plots.",
    mean_note(len(data.train_labels)),
  ]
  return Outcome(table, metrics, figures, notes)


def _cosine(a: Any, b: Any) -> jax.Array:
  """Of the angle between two gradients."""
  product = optax.tree.vdot(a, b)
  norms = optax.global_norm(a) * optax.global_norm(b)
  return product / jnp.where(norms > 0, norms, 1)


# Figure 5: the first hypergradient.


def figure_5(config: Config) -> Outcome:
  """The mean over seeds, which is what meta-learning starts from."""
  steps, seeds = config.steps or 100, config.seeds or 50
  data, notes = split(config, _SCHEDULE_SIZES)
  problem = elementary.pose(data, config.seed)
  hypers = elementary.initial_hypers(problem, steps)

  @jax.jit
  def moments(hypers):
    def one(key):
      measured = learning.measure(problem, _BATCH_SIZE, "train", hypers, key)
      return measured.gradient, measured.losses["train"]

    gradients, losses = lax.map(one, jax.random.split(problem.meta_key, seeds))
    moment = lambda a: (a.mean(0), a.std(0) / math.sqrt(seeds))
    return jax.tree.map(moment, gradients), losses

  gradients, losses = jax.tree.map(np.asarray, moments(hypers))
  check_finite("the hypergradient", (gradients, losses), GRID_REMEDY)
  rate, rate_error = gradients.log_rate
  momentum, momentum_error = gradients.logit_momentum
  metrics = [
    {
      "step": step,
      **{
        f"{name}_{column[10:]}": float(values[step, i])
        for name, values in (
          ("log_rate", rate),
          ("log_rate_error", rate_error),
          ("logit_momentum", momentum),
          ("logit_momentum_error", momentum_error),
        )
        for i, column in enumerate(elementary.scale_columns(problem))
      },
    }
    for step in range(steps)
  ]
  weights = rate[:, ::2]
  share = lambda mask: float(np.mean(mask))
  clear = np.abs(weights) > 2 * rate_error[:, ::2]
  table = [
    Row("seeds", "seeds", "100 (text), 50 (code)", seeds),
    Row("objective", "loss", "validation (text), training (code)", "training"),
    Row("loss", "mean training loss (nats)", 0.53, losses.mean()),
    Row(
      "larger_rates_share",
      "share of weights' rates it makes larger",
      None,
      share(weights < 0),
    ),
    Row(
      "clear_share",
      "share beyond 2 standard errors of 0",
      None,
      share(clear),
    ),
    Row(
      "largest_rate_layer",
      "layer with the largest rate gradient",
      None,
      int(np.abs(weights).sum(0).argmax()) + 1,
    ),
  ]
  figure = plots.initial_gradient(rate, rate_error, momentum, momentum_error)
  notes += [
    "The paper gives a plot only; its training loss is that of figure 2.",
    mean_note(len(data.train_labels)),
  ]
  return Outcome(table, metrics, {"figure_5": figure}, notes)
