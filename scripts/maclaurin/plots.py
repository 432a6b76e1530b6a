"""Figures in the manner of Maclaurin, Duvenaud & Adams (2015)."""

from typing import Any

import numpy as np
from matplotlib import colormaps
from matplotlib.figure import Figure

_PAPER = {"color": "black", "linestyle": "--", "linewidth": 1}


def toy(loss: Any, runs: list[dict[str, np.ndarray]]) -> Figure:
  """Paths of training runs on the surface of the loss, seen from above."""
  figure = Figure(figsize=(10, 4.2), layout="constrained")
  left, right = figure.subplots(1, 2)
  x, y = np.meshgrid(np.linspace(-1.4, 2.4, 191), np.linspace(0, 4.5, 181))
  surface = np.asarray(loss(np.stack([x.ravel(), y.ravel()], 1)))
  shades = left.contourf(x, y, surface.reshape(x.shape), 30, cmap="Greys")
  figure.colorbar(shades, ax=left, label="loss")
  left.plot(*runs[0]["path"][0], "k*", markersize=12, label="start")
  for number, about in enumerate(runs):
    label = f"meta iteration {number}"
    (line,) = left.plot(*about["path"].T, "o-", markersize=2, label=label)
    left.plot(*about["path"][-1], "o", color=line.get_color(), markersize=8)
    right.plot(about["curve"], color=line.get_color(), label=label)
  for number, value in enumerate((395.30, 356.57, 356.34)):
    right.axhline(
      value, **_PAPER, label="paper, last values" if not number else None
    )
  left.set_title("Figure 1: training paths, large dots at their ends")
  left.set_xlabel("weight 1")
  left.set_ylabel("weight 2")
  right.set_title("Loss along the paths")
  right.set_xlabel("SGD step")
  right.set_ylabel("loss")
  for axes in (left, right):
    axes.legend(fontsize=8)
  right.grid(alpha=0.3)
  return figure


def learning_curves(metrics: list[dict], curves: list[np.ndarray]) -> Figure:
  """Figure 4: losses by SGD step and by meta iteration."""
  figure = Figure(figsize=(12, 4), layout="constrained")
  left, middle, right = figure.subplots(1, 3)
  colors = colormaps["viridis"](np.linspace(0, 0.9, len(curves)))
  for number, (curve, color) in enumerate(zip(curves, colors, strict=True)):
    ends = number in (0, len(curves) - 1)
    label = f"meta iteration {number}" if ends else None
    left.plot(curve, color=color, linewidth=0.8, label=label)
  numbers = [row["meta_step"] for row in metrics]
  paper = {"train": 0.12, "validation": 0.24, "test": 0.25}
  for name, value in paper.items():
    values = [row[f"{name}_loss"] for row in metrics]
    (line,) = middle.plot(numbers, values, label=name)
    middle.axhline(
      value,
      **{**_PAPER, "color": line.get_color()},
      label=f"{name}, paper's last (MNIST)",
    )
  right.plot(
    numbers, [row["hypergradient_norm"] for row in metrics], label="norm"
  )
  right.plot(
    numbers,
    [row["hypergradient_cosine"] for row in metrics],
    label="cosine with the one before",
  )
  left.set_title("Elementary learning curves")
  left.set_xlabel("SGD step")
  left.set_ylabel("cross-entropy of the batch (nats)")
  middle.set_title("Meta-learning curves")
  middle.set_ylabel("cross-entropy after training (nats)")
  right.set_title("Hypergradient")
  right.set_ylabel("nats per unit of log rate, log scale or logit")
  for axes in (middle, right):
    axes.set_xlabel("meta iteration")
  for axes in (left, middle, right):
    axes.grid(alpha=0.3)
    axes.legend(fontsize=8)
  return figure


def initial_gradient(
  rate: np.ndarray,
  rate_error: np.ndarray,
  momentum: np.ndarray,
  momentum_error: np.ndarray,
) -> Figure:
  """Mean hypergradients [steps, arrays] with bands of two standard errors."""
  figure = Figure(figsize=(10, 6), layout="constrained")
  panels = figure.subplots(2, 2, sharex=True)
  layers = rate.shape[1] // 2
  colors = colormaps["viridis"](np.linspace(0, 0.9, layers))
  rows = (
    (panels[0], rate, rate_error, "log rate"),
    (panels[1], momentum, momentum_error, "logit momentum"),
  )
  for row, mean, error, name in rows:
    for offset, (kind, axes) in enumerate(
      zip(("weights", "biases"), row, strict=True)
    ):
      for layer, color in enumerate(colors):
        column = mean[:, 2 * layer + offset]
        spread = 2 * error[:, 2 * layer + offset]
        axes.plot(column, color=color, label=f"layer {layer + 1}")
        steps = np.arange(len(column))
        low, high = column - spread, column + spread
        axes.fill_between(steps, low, high, color=color, alpha=0.2, linewidth=0)
      axes.axhline(0, color="gray", linewidth=0.5)
      axes.set_title(f"Figure 5: gradient of {name}, {kind}", fontsize=10)
      axes.grid(alpha=0.3)
    row[0].set_ylabel(f"d loss / d {name} (nats)")
  for axes in panels[1]:
    axes.set_xlabel("SGD step")
  figure.legend(
    *panels[0][0].get_legend_handles_labels(), loc="outside right center"
  )
  return figure


def class_images(
  values: np.ndarray, shape: tuple[int, ...], title: str, unit: str
) -> Figure:
  """An image for each column of [pixels, classes]."""
  classes = values.shape[1]
  columns = min(classes, 5)
  rows = -(-classes // columns)
  figure = Figure(figsize=(1.6 * columns + 1, 1.8 * rows), layout="constrained")
  panels = np.atleast_1d(figure.subplots(rows, columns)).ravel()
  low, high = float(values.min()), float(values.max())
  cmap = "Greys"
  if low < 0 < high:
    high = max(high, -low)
    low, cmap = -high, "RdBu_r"
  for axes in panels:
    axes.set_axis_off()
  for number, (axes, column) in enumerate(zip(panels, values.T, strict=False)):
    shown = axes.imshow(column.reshape(shape), cmap=cmap, vmin=low, vmax=high)
    axes.set_title(f"class {number}", fontsize=8)
  figure.suptitle(title, fontsize=10)
  figure.colorbar(shown, ax=panels.tolist(), label=unit, shrink=0.8)
  return figure


def meta_curves(metrics: list[dict], table: list, title: str) -> Figure:
  """Losses over meta iterations, with the paper's first and last values."""
  figure = Figure(figsize=(6, 4), layout="constrained")
  axes = figure.subplots()
  numbers = [row["meta_step"] for row in metrics]
  published = {row.key: row.published for row in table}
  for name in ("train", "validation", "test"):
    (line,) = axes.plot(numbers, [row[name] for row in metrics], label=name)
    axes.plot(
      [numbers[0], numbers[-1]],
      [published[f"{name}_before"], published[f"{name}_after"]],
      "x",
      color=line.get_color(),
      label=f"{name}, paper (MNIST)",
    )
  axes.set_title(title)
  axes.set_xlabel("meta iteration")
  axes.set_ylabel("loss after training (nats)")
  axes.grid(alpha=0.3)
  axes.legend(fontsize=8)
  return figure


def sharing(
  variants: dict[str, list[np.ndarray]], losses: dict[str, Any]
) -> Figure:
  """Correlations of the tasks' weights, top layer above."""
  layers = len(next(iter(variants.values())))
  figure = Figure(figsize=(2.6 * len(variants) + 1, 2.5 * layers))
  figure.set_layout_engine("constrained")
  panels = figure.subplots(layers, len(variants))
  for column, (name, transforms) in zip(
    panels.T, variants.items(), strict=True
  ):
    for axes, layer in zip(column, reversed(range(layers)), strict=True):
      covariance = transforms[layer] @ transforms[layer].T
      scale = np.sqrt(np.diag(covariance))
      correlation = covariance / np.outer(scale, scale)
      shown = axes.imshow(correlation, cmap="RdBu_r", vmin=-1, vmax=1)
      axes.set_xticks([])
      axes.set_yticks([])
      axes.set_xlabel(f"layer {layer + 1}", fontsize=8)
    column[0].set_title(
      f"{name}\ntest loss {losses[f'test_{name}']:.2f} nats", fontsize=10
    )
  figure.colorbar(
    shown, ax=panels.ravel().tolist(), label="correlation of tasks", shrink=0.6
  )
  figure.suptitle("Figure 10: how tasks share weights", fontsize=11)
  return figure


def task_images(images: np.ndarray, columns: int = 15) -> Figure:
  """The first drawing of the first characters of every task."""
  tasks, characters, _, pixels = images.shape
  side = int(np.sqrt(pixels))
  shown = images[:, : min(columns, characters), 0].reshape(
    tasks, -1, side, side
  )
  sheet = shown.transpose(0, 2, 1, 3).reshape(tasks * side, -1)
  figure = Figure(figsize=(6, 4.2), layout="constrained")
  axes = figure.subplots()
  axes.imshow(sheet, cmap="Greys")
  axes.axhline(tasks * side / 2 - 0.5, color="black", linestyle="--")
  axes.set_title("Tasks, and below the same turned by 90 degrees", fontsize=10)
  axes.set_xticks([])
  axes.set_yticks([])
  return figure


def chaos(sweep: dict[str, np.ndarray], stored: Any) -> Figure:
  """Loss and hypergradient against the log learning rate."""
  figure = Figure(figsize=(7, 7), layout="constrained")
  top, middle, bottom = figure.subplots(3, 1, sharex=True)
  x = sweep["log_rate"]
  paper = np.array(stored)
  top.plot(x, sweep["loss"], "b.-", label="measured", linewidth=0.8)
  top.plot(paper[:, 0], paper[:, 1], "kx", label="paper, stored (MNIST)")
  top.set_ylim(0, 0.5)
  top.set_ylabel("training loss (nats)")
  top.set_title("Figure 11: training for 50 steps, and its hypergradient")
  middle.plot(x, sweep["gradient"], "k.-", label="measured", linewidth=0.8)
  middle.plot(paper[:, 0], paper[:, 2], "rx", label="paper, stored (MNIST)")
  middle.set_ylim(-0.5, 0.5)
  middle.set_ylabel("d loss / d log rate (nats)")
  error = np.abs(sweep["gradient"] - sweep["difference"])
  bottom.plot(x, np.abs(sweep["gradient"]), "k.-", label="|hypergradient|")
  bottom.plot(x, error, "r.-", label="|it - central difference|")
  bottom.axhline(6.8e-6, **_PAPER, label="paper, difference below 1.45")
  bottom.set_yscale("log")
  bottom.set_ylabel("nats")
  bottom.set_xlabel("log learning rate")
  for axes in (top, middle, bottom):
    axes.axvline(1.48, color="gray", linestyle=":", label="paper, chaos begins")
    axes.grid(alpha=0.3)
    axes.legend(fontsize=8)
  return figure
