"""Figures of learned training schedules."""

import math

import jax
import numpy as np
from matplotlib import colormaps
from matplotlib.figure import Figure

from schedules import elementary


def meta_training(
  rows: list[dict], before: np.ndarray, after: np.ndarray, objective: str
) -> Figure:
  """Losses over meta iterations; training curves [seeds, steps]."""
  seeds, steps = before.shape
  figure = Figure(figsize=(10, 4), layout="constrained")
  left, right = figure.subplots(1, 2)
  numbers = [row["meta_step"] for row in rows]
  for name, label in (
    ("train_loss", "training"),
    ("validation_loss", "validation"),
  ):
    left.plot(numbers, [row[name] for row in rows], label=f"{label} images")
  left.set_title(f"Meta-training: {objective} loss is minimised")
  left.set_xlabel("meta iteration")
  left.set_ylabel(f"cross-entropy after {steps} steps (nats)")
  for curves, label in ((before, "before"), (after, "after meta-training")):
    mean = curves.mean(0)
    (line,) = right.plot(mean, label=label)
    right.fill_between(
      np.arange(len(mean)),
      curves.min(0),
      curves.max(0),
      color=line.get_color(),
      alpha=0.2,
      linewidth=0,
    )
  right.set_title(f"Training, mean and range of {seeds} seeds")
  right.set_xlabel("SGD step")
  right.set_ylabel("cross-entropy of the batch (nats)")
  for axes in (left, right):
    axes.set_yscale("log")
    axes.grid(alpha=0.3)
    axes.legend()
  return figure


def learned(
  problem: elementary.Problem, hypers: elementary.Hypers, log_scales: np.ndarray
) -> dict[str, Figure]:
  """All that was learned; log scales [meta iterations, arrays]."""
  rates = np.exp(np.asarray(hypers.log_rate))
  momenta = np.asarray(jax.nn.sigmoid(hypers.logit_momentum))
  fan_ins = [shape[0] for shape in problem.shapes[::2]]
  at_first = math.exp(elementary.LOG_RATE)
  return {
    "learning_rates": schedules(rates, at_first, "learning rate"),
    "momenta": schedules(momenta, 0.5, "momentum", 1),
    "scales": scales(log_scales, fan_ins),
  }


def schedules(
  table: np.ndarray, initial: float, name: str, top: float | None = None
) -> Figure:
  """A panel for weights and one for biases, a line for each layer."""
  figure = Figure(figsize=(10, 4), layout="constrained")
  panels = figure.subplots(1, 2, sharey=True)
  for offset, (kind, axes) in enumerate(
    zip(("weights", "biases"), panels, strict=True)
  ):
    columns = table[:, offset::2]
    for layer, (column, color) in enumerate(
      zip(columns.T, _layer_colors(columns.shape[1]), strict=True), 1
    ):
      axes.plot(column, color=color, label=f"layer {layer}")
    axes.axhline(initial, color="gray", linestyle=":", label="at the start")
    axes.set_title(f"Learned {name} of {kind}")
    axes.set_xlabel("SGD step")
    axes.grid(alpha=0.3)
  panels[0].set_ylim(0, top)  # shared, so after all lines
  panels[0].set_ylabel(f"{name} (dimensionless)")
  figure.legend(
    *panels[0].get_legend_handles_labels(), loc="outside right center"
  )
  return figure


def scales(table: np.ndarray, fan_ins: list[int]) -> Figure:
  """Log scales over meta iterations, beside the usual heuristic.

  The columns of the table are weights 1, biases 1, weights 2, ...
  """
  figure = Figure(figsize=(10, 4), layout="constrained")
  panels = figure.subplots(1, 2, sharey=True)
  colors = _layer_colors(len(fan_ins))
  for offset, (kind, axes) in enumerate(
    zip(("weights", "biases"), panels, strict=True)
  ):
    for layer, color in enumerate(colors):
      axes.plot(
        table[:, 2 * layer + offset], color=color, label=f"layer {layer + 1}"
      )
    axes.set_title(f"Learned initial scale of {kind}")
    axes.set_xlabel("meta iteration")
    axes.grid(alpha=0.3)
  for fan_in, style in zip(dict.fromkeys(fan_ins), ("--", ":"), strict=False):
    panels[0].axhline(
      -math.log(fan_in) / 2,
      color="gray",
      linestyle=style,
      label=f"1/sqrt({fan_in}), fan-in",
    )
  panels[0].set_ylabel("log of the standard deviation")
  figure.legend(
    *panels[0].get_legend_handles_labels(), loc="outside right center"
  )
  return figure


def _layer_colors(layers: int) -> list:
  return list(colormaps["viridis"](np.linspace(0, 0.9, layers)))
