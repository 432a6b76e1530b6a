"""The figures of a sweep over depths."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import matplotlib
import numpy as np
from matplotlib.figure import Figure

_LEAST = 1e-30  # gradients below are of no interest


def gradients(
  networks: Mapping[str, Sequence[Mapping[str, Any]]],
  identity_paths: Mapping[str, Sequence[float]],
) -> Figure:
  """Gradients by layer at the largest depth, and what reaches the first layer.

  Args:
    networks: of each, a row for every depth with `gradients` of its layers.
    identity_paths: gradients through sums and normalisations only.
  """
  figure = Figure(figsize=(13, 5), layout="constrained")
  by_layer, by_depth = figure.subplots(1, 2)
  for name, rows in networks.items():
    layers = np.arange(1, rows[-1]["depth"] + 1)
    (line,) = by_layer.plot(layers, _shown(rows[-1]["gradients"]), label=name)
    by_depth.plot(
      [row["depth"] for row in rows],
      _shown([row["gradients"][0] for row in rows]),
      "o-",
      color=line.get_color(),
    )
    if name in identity_paths:
      by_layer.plot(
        layers,
        _shown(identity_paths[name]),
        ":",
        color=line.get_color(),
        label=f"{name}, identity path alone",
      )
  by_layer.set_title(f"Gradients in networks of {layers[-1]} layers")
  by_layer.set_xlabel("layer; the loss is behind the last one")
  by_layer.set_ylabel("norm of dL/dz of the layer, at initialisation")
  by_depth.set_title("What reaches the first layer")
  by_depth.set_xlabel("layers of the network")
  by_depth.set_ylabel("norm of dL/dz of the first layer")
  by_depth.set_xscale("log")
  for axes in (by_layer, by_depth):
    axes.set_yscale("log")
    axes.grid(alpha=0.3)
  figure.legend(
    *by_layer.get_legend_handles_labels(), loc="outside right upper"
  )
  return figure


def training(networks: Mapping[str, Sequence[Mapping[str, Any]]]) -> Figure:
  """Losses by step, a panel for each network and a shade for each depth."""
  figure = Figure(figsize=(13, 6.5), layout="constrained")
  columns = -(-len(networks) // 2)
  panels = figure.subplots(2, columns, sharex=True, sharey=True, squeeze=False)
  for axes, (name, rows) in zip(panels.flat, networks.items(), strict=False):
    shades = matplotlib.colormaps["viridis_r"](np.linspace(0.1, 1, len(rows)))
    for row, shade in zip(rows, shades, strict=True):
      label = f"{row['depth']} layers: {row['accuracy']:.0%} right"
      axes.plot(row["losses"], color=shade, label=label)
    axes.set_title(name)
    axes.set_yscale("log")
    axes.grid(alpha=0.3)
    axes.legend(fontsize=8)
  for axes in panels.flat[len(networks) :]:
    axes.axis("off")
  for axes in panels[-1]:
    axes.set_xlabel("step")
  for axes in panels[:, 0]:
    axes.set_ylabel("loss of the last layer")
  figure.suptitle("Training, and accuracy on validation images afterwards")
  return figure


def trainable(
  squares: Sequence[float],
  rows: Sequence[Mapping[str, Any]],
  theory: Mapping[str, Sequence[float]],
) -> Figure:
  """Accuracy over sigma_w^2 and depth, and the theory's line.

  Args:
    squares: sigma_w^2.
    rows: `depth`, and `accuracy` of each gain.
    theory: `depths` at `squares`, on a finer grid.
  """
  figure = Figure(figsize=(7.5, 5.5), layout="constrained")
  axes = figure.subplots()
  depths = [row["depth"] for row in rows]
  shown = axes.pcolormesh(
    _edges(squares),
    np.exp(_edges([math.log(depth) for depth in depths])),
    np.array([row["accuracy"] for row in rows]),
    vmin=0,
    vmax=1,
    cmap="magma",
  )
  figure.colorbar(shown, ax=axes, label="accuracy on training images")
  lowest, highest = axes.get_ylim()
  axes.plot(
    theory["squares"],
    theory["depths"],
    "w--",
    label=r"theory: $6\,\xi_c$ layers",
  )
  axes.set_yscale("log")
  axes.set_ylim(lowest, highest)
  axes.set_yticks(depths, [str(depth) for depth in depths])
  axes.minorticks_off()
  axes.set_xlabel(r"$\sigma_w^2$")
  axes.set_ylabel("hidden layers")
  axes.set_title("Where plain tanh networks learn")
  axes.legend(facecolor="gray")
  return figure


def _shown(values: Sequence[float]) -> np.ndarray:
  """None of what is too small to be drawn."""
  array = np.asarray(values)
  return np.where(array > _LEAST, array, np.nan)


def _edges(centres: Sequence[float]) -> np.ndarray:
  """Of cells around their centres."""
  if len(centres) == 1:
    return centres[0] + np.array([-0.5, 0.5])
  middles = (np.asarray(centres[1:]) + np.asarray(centres[:-1])) / 2
  first, last = 2 * centres[0] - middles[0], 2 * centres[-1] - middles[-1]
  return np.array([first, *middles, last])
