"""The figures of tuned hyperparameters."""

from typing import Any

import jax
import numpy as np
from matplotlib.figure import Figure

from shared.meta_training import EVALUATION_SEEDS
from tuning.problem_file import Problem
from tuning.values import Config, is_fraction, labels, values_of


def loss(
  problem: Problem,
  config: Config,
  rows: list[dict[str, float]],
  result: dict[str, Any],
) -> Figure:
  """The validation loss over meta iterations."""
  figure = Figure(figsize=(6, 4), layout="constrained")
  axes = figure.subplots()
  numbers = [row["meta_step"] for row in rows]
  seeds = "fresh seeds each" if config.fresh_seeds else "the same seed"
  losses = [row["validation_loss"] for row in rows]
  axes.plot(numbers, losses, ".-", label=f"one run, {seeds}")
  for when, style in (("before", ":"), ("after", "--")):
    axes.axhline(
      result[f"validation_loss_{when}"],
      color="black",
      linestyle=style,
      linewidth=1,
      label=f"{when}, mean of {EVALUATION_SEEDS} fresh seeds",
    )
  axes.set_title(f"Tuning {', '.join(config.tune)} of {problem.name}")
  axes.set_xlabel("meta iteration")
  axes.set_ylabel(f"validation loss after {config.steps} steps")
  if min(losses) > 0:
    axes.set_yscale("log")
  axes.grid(alpha=0.3)
  axes.legend()
  return figure


def values(
  problem: Problem,
  config: Config,
  name: str,
  initial: jax.Array,
  tuned: jax.Array,
  rows: list[dict[str, float]],
) -> Figure:
  """A tuned hyperparameter: over steps, or else over meta iterations."""
  figure = Figure(figsize=(6, 4), layout="constrained")
  axes = figure.subplots()
  before = np.asarray(values_of(name, initial), np.float64)
  after = np.asarray(values_of(name, tuned), np.float64)
  arrays = labels(problem, config, name)
  for i, label in enumerate(arrays):
    shown = f"array {label}" if label else "the array"
    shown = shown if config.per_array else "all arrays"
    shown = "the loss" if name in problem.loss_hyperparameters else shown
    if config.per_step:
      (line,) = axes.plot(after[i], label=f"after, {shown}")
      axes.plot(before[i], ":", color=line.get_color())
    else:
      path = [row[name + label] for row in rows] + [after[i, 0]]
      axes.plot(path, label=shown)
  if config.per_step:
    axes.plot([], [], ":", color="black", label="before")
    axes.set_xlabel("training step")
  else:
    axes.set_xlabel("meta iteration")
  title = name.replace("_", " ")
  axes.set_title(f"Tuned {title} of {problem.name}")
  axes.set_ylabel(title)
  if not is_fraction(name):
    axes.set_yscale("log")
  axes.grid(alpha=0.3)
  if len(arrays) <= 12:
    axes.legend(fontsize="small")
  return figure
