"""The figures of momentum_resnet.py."""

from typing import Any

import numpy as np
from matplotlib.figure import Figure

_WAYS = {
  "revmom": ("restored exactly", "o-"),
  "kept": ("all activations kept", "k:"),
  "float_reversal": ("reversal in floats", "s--"),
  "truncating_store": ("truncating bit store", "^--"),
}


def errors(rows: list[dict[str, Any]]) -> Figure:
  """Of gradients by depth, a panel for each gamma."""
  gammas = sorted({row["gamma"] for row in rows})
  figure = Figure(figsize=(3.4 * len(gammas) + 1, 3.8), layout="constrained")
  panels = figure.subplots(1, len(gammas), sharey=True, squeeze=False)[0]
  for axes, gamma in zip(panels, gammas, strict=True):
    own = [row for row in rows if row["gamma"] == gamma]
    depths = [row["depth"] for row in own]
    for name, (label, style) in _WAYS.items():
      values = [np.nan if r[name] is None else r[name] for r in own]
      axes.plot(depths, np.minimum(values, 1e3), style, label=label)
    axes.set_xscale("log")
    axes.set_yscale("log")
    axes.set_title(f"γ = {gamma}")
    axes.set_xlabel("layers")
    axes.grid(alpha=0.3)
  panels[0].set_ylabel("relative error of a gradient")
  panels[0].legend(fontsize=8)
  return figure


def memory(rows: list[dict[str, Any]]) -> Figure:
  """Of a gradient by depth."""
  figure = Figure(figsize=(5, 3.8), layout="constrained")
  axes = figure.subplots()
  for name in ("kept", "revmom"):
    label, style = _WAYS[name]
    axes.plot(
      [row["depth"] for row in rows],
      [row[name] for row in rows],
      style,
      label=label,
    )
  axes.set_xscale("log")
  axes.set_yscale("log")
  axes.set_xlabel("layers")
  axes.set_ylabel("temporary memory of a gradient (MB)")
  axes.grid(alpha=0.3)
  axes.legend()
  return figure


def rings(results: dict[str, Any], labels: np.ndarray) -> Figure:
  """Where the layers take the points, from left to right."""
  figure = Figure(figsize=(11, 5.6), layout="constrained")
  rows = figure.subplots(2, 4)
  titles = ("points", "a third", "two thirds", "all layers")
  for row, (name, found) in zip(rows, results.items(), strict=True):
    for axes, title, points in zip(row, titles, found["paths"], strict=True):
      x, y = np.asarray(points).T
      axes.scatter(x, y, c=labels, s=5, cmap="coolwarm")
      axes.set_title(title, fontsize=9)
      axes.tick_params(labelsize=7)
    row[0].set_ylabel(f"{name}: {found['accuracy']:.1%} right")
  return figure


def images(results: dict[str, list[dict[str, Any]]]) -> Figure:
  """Losses by step, and the accuracy by depth."""
  figure = Figure(figsize=(10, 3.8), layout="constrained")
  left, right = figure.subplots(1, 2)
  for name, style in (("momentum", "-"), ("resnet", ":")):
    for i, row in enumerate(results[name]):
      left.plot(
        row["losses"], style, color=f"C{i}", label=f"{name}, {row['depth']}"
      )
    right.plot(
      [row["depth"] for row in results[name]],
      [100 * row["accuracy"] for row in results[name]],
      f"o{style}",
      label=name,
    )
  left.set_yscale("log")
  left.set_xlabel("step")
  left.set_ylabel("cross-entropy (nats)")
  right.set_xscale("log")
  right.set_xlabel("layers")
  right.set_ylabel("test images right (%)")
  for axes in (left, right):
    axes.grid(alpha=0.3)
    axes.legend(fontsize=7)
  return figure
