"""Figures of the paper in which learning rates and momenta are learned."""

import functools
import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax import lax

from maclaurin import plots
from maclaurin.common import GRID_REMEDY, Config, mean_note, split
from schedules import elementary, learning
from schedules.plots import learned as learned_plots
from shared import meta_training
from shared.reproduction import Outcome, Row
from shared.runs import check_finite

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
