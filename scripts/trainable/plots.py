"""The page of scripts/trainability.py."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from revmom.analysis import GradientFlow
from trainable.row import Panel


def page(panels: Sequence[Panel]) -> Figure:
  """All panels, bounds and predictions in black beside measurements."""
  columns = 3
  rows = -(-len(panels) // columns)
  figure = Figure(figsize=(6 * columns, 4.2 * rows), layout="constrained")
  grid = figure.subplots(rows, columns, squeeze=False).ravel()
  for axes, panel in zip(grid, panels, strict=False):
    for name, (x, y, style) in panel.curves.items():
      how: dict[str, Any] = {"label": name, "markersize": 4}
      if isinstance(style, str):
        axes.plot(x, y, style, **how)
      else:
        axes.plot(x, y, **how, **style)
    axes.set_title(panel.title)
    axes.set_xlabel(panel.x)
    axes.set_ylabel(panel.y)
    axes.grid(alpha=0.3)
    axes.legend(fontsize=8)
  for axes in grid[len(panels) :]:
    axes.axis("off")
  figure.suptitle(
    "Trainability: bounds and predictions (black) beside measurements",
    fontsize=16,
  )
  return figure


def module(flow: GradientFlow) -> Figure:
  """Norms and spectra of a user's module, layer by layer."""
  figure = Figure(figsize=(12, 0.3 * len(flow.names) + 3), layout="constrained")
  left, right = figure.subplots(1, 2)
  rows = np.arange(len(flow.names))
  for what, figures in (
    ("activations, rms", flow.activations.rms),
    ("gradients, norm", flow.gradients.norm),
    ("gradients of parameters, norm", flow.parameter_gradients.norm),
  ):
    left.plot(
      np.where(np.asarray(figures) > 0, figures, np.nan), rows, "o-", label=what
    )
  left.set_yticks(rows, flow.names)
  if flow.spectra is not None:
    spectra = flow.spectra.layers
    at = np.arange(len(flow.spectra.names))
    least = np.asarray(spectra.log_smallest.interval, np.float64)
    known = np.isfinite(least[:, 0])
    for what, logs, marker in (
      ("largest s", spectra.log_largest.value, "o"),
      ("root mean s^2", spectra.log_mean_square.value / 2, "o"),
      ("smallest s", np.where(known, least[:, 1], np.nan), "o"),
      (
        "smallest s is 0, or at most",
        np.where(known, np.nan, least[:, 1]),
        "<",
      ),
    ):
      s = np.exp(np.asarray(logs, np.float64))
      if (s > 0).any():
        right.plot(np.where(s > 0, s, np.nan), at, marker, label=what)
    right.set_yticks(at, flow.spectra.names)
  for axes, title, unit in (
    (left, "norms", "rms or norm; zeros are left out"),
    (right, "Jacobians of layers", "singular values s"),
  ):
    axes.set_xscale("log")
    axes.set_xlabel(unit)
    axes.set_title(f"{title}, measured")
    axes.invert_yaxis()
    axes.grid(alpha=0.3)
    if axes.lines:
      axes.legend(fontsize=8)
  return figure
