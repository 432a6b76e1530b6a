"""Figures in the manner of Duvenaud, Maclaurin & Adams (2016)."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from matplotlib import colormaps
from matplotlib.figure import Figure

_LIMITS = (-4.0, 4.0), (-4.1, 4.0)
_LEVELS = [0.01, 0.2, 1.0, 10.0]
_PAPER = {"color": "gray", "linestyle": "--", "marker": "x", "linewidth": 1}


def _target(axes: Any, energy: Callable, levels: list[float]) -> None:
  """Contours of exp(-energy)."""
  x, y = np.meshgrid(*(np.linspace(*limits, 200) for limits in _LIMITS))
  points = jnp.asarray(np.stack([x.ravel(), y.ravel()], -1), jnp.float32)
  density = np.exp(-np.asarray(jax.vmap(energy)(points), np.float64))
  axes.contour(x, y, density.reshape(x.shape), levels, colors="black")
  axes.plot([], [], color="black", label="density, not normalised")
  axes.set_xlim(_LIMITS[0])
  axes.set_ylim(_LIMITS[1])
  axes.set_xlabel("mean")
  axes.set_ylabel("log standard deviation")
  axes.set_aspect("equal")


def _closed(outline: np.ndarray) -> np.ndarray:
  return np.concatenate([outline, outline[:1]])


def rings(
  energy: Callable, paths: list[np.ndarray], log_dets: np.ndarray
) -> Figure:
  """Rings [T + 1, N, 2] at some times, and the entropy [T + 1, N] inside."""
  figure = Figure(figsize=(10, 4.4), layout="constrained")
  left, right = figure.subplots(1, 2)
  last = len(log_dets) - 1
  times = np.unique(np.linspace(0, last, 11).round().astype(int))
  _target(left, energy, _LEVELS)
  for time in times:
    color = colormaps["viridis"](0.95 * time / last)
    for number, path in enumerate(paths):
      label = f"{time} steps" if not number and time in (0, last) else None
      left.plot(*_closed(path[time]).T, color=color, lw=1, label=label)
  left.set_title("Figure 1: rings under gradient descent")
  left.legend(fontsize=8, loc="upper right")
  entropy = log_dets.mean(1)
  low, high = np.quantile(log_dets, [0.1, 0.9], axis=1)
  right.plot(entropy, label="mean: change of entropy")
  right.fill_between(
    np.arange(last + 1), low, high, alpha=0.2, label="80 % of the points"
  )
  right.set_title("What descent takes from the entropy of the disc")
  right.set_xlabel("step")
  right.set_ylabel("sum of log|det| (nats)")
  right.grid(alpha=0.3)
  right.legend()
  return figure


def thresholds_in_the_plane(
  energy: Callable, paths: dict[str, np.ndarray], threshold: float
) -> Figure:
  """A ring at three times, without and with a gradient threshold."""
  figure = Figure(figsize=(10, 4.8), layout="constrained")
  titles = "gradient descent", f"entropy-friendly, $g_0$ = {threshold}"
  for axes, path, title in zip(
    figure.subplots(1, 2), paths.values(), titles, strict=True
  ):
    _target(axes, energy, [0.2])
    last = len(path) - 1
    for number, time in enumerate((0, last // 2, last)):
      color = ("red", "limegreen", "blue")[number]
      axes.fill(*path[time].T, color=color, alpha=0.2)
      axes.plot(
        *_closed(path[time]).T, color=color, lw=1, label=f"{time} steps"
      )
    axes.set_title(f"Figure 3: {title}", fontsize=10)
    axes.legend(fontsize=8, loc="upper right")
  return figure


def along_training(curve: Any, dataset: str) -> Figure:
  """Figure 4: likelihoods, marginal likelihood and entropy by iteration."""
  figure = Figure(figsize=(7, 9), layout="constrained")
  top, middle, bottom = figure.subplots(3, 1, sharex=True)
  iterations, runs = curve.iterations, curve.runs
  marginal = curve.mean("marginal")
  stop = iterations[marginal.argmax()]
  for name in ("train", "test"):
    top.plot(
      iterations, curve.mean(f"{name}_likelihood"), label=f"{name} examples"
    )
  top.set_ylabel("log likelihood (nats per example)")
  top.set_title(f"Figure 4 on {dataset}: stop at iteration {stop}")
  middle.plot(iterations, runs["marginal"], color="C3", lw=0.6, alpha=0.4)
  middle.plot(iterations, marginal, color="C3", label="marginal likelihood")
  half = 1.96 * curve.stderr()
  middle.fill_between(
    iterations,
    marginal - half,
    marginal + half,
    color="C3",
    alpha=0.3,
    label="95 %, of the determinants",
  )
  middle.plot([], [], color="C3", lw=0.6, alpha=0.4, label="single runs")
  middle.plot(
    iterations,
    curve.mean("marginal_by_bound"),
    "k--",
    lw=1,
    label="by the paper's estimator",
  )
  middle.set_ylabel("bound of log p(data)\n(nats per training example)")
  # Of one run: means of intervals would be too wide.
  first = runs["entropy"][0, 0]
  bottom.plot(iterations, runs["entropy"][:, 0] - first, label="first run")
  bottom.fill_between(
    iterations,
    runs["entropy_low"][:, 0] - first,
    runs["entropy_high"][:, 0] - first,
    alpha=0.3,
    label="95 %, with the bound of its bias",
  )
  bottom.plot(
    iterations,
    runs["entropy_bound"][:, 0] - first,
    "k--",
    lw=1,
    label="by the paper's estimator",
  )
  bottom.set_ylabel("change of entropy\n(nats per training example)")
  bottom.set_xlabel("training iteration")
  for axes in (top, middle, bottom):
    axes.axvline(stop, color="black", ls=":", lw=1)
    axes.grid(alpha=0.3)
    axes.legend(fontsize=8)
  return figure


def comparison(
  curves: list[Any], published: dict, what: str, dataset: str
) -> Figure:
  """Figures 5 and 6: the ends of several trainings."""
  figure = Figure(figsize=(11, 4.4), layout="constrained")
  panels = figure.subplots(1, 3)
  places = np.arange(len(curves))
  last = lambda name: np.array([curve.mean(name)[-1] for curve in curves])
  known = [
    (place, published[curve.value])
    for place, curve in zip(places, curves, strict=True)
    if curve.value in published
  ]
  names = "train likelihood", "test likelihood", "marginal likelihood"
  keys = "train_likelihood", "test_likelihood", "marginal"
  for column, (name, key, axes) in enumerate(
    zip(names, keys, (panels[0], panels[0], panels[1]), strict=True)
  ):
    error = None
    if key == "marginal":
      error = [1.96 * curve.stderr()[-1] for curve in curves]
    axes.errorbar(
      places, last(key), error, fmt="o-", capsize=3, color=f"C{column}",
      label=name,
    )  # fmt: skip
    if known:
      axes.plot(
        [place for place, _ in known],
        [values[column] for _, values in known],
        **{**_PAPER, "color": f"C{column}"},
        alpha=0.6,
        label=f"{name}, paper",
      )
  panels[1].plot(
    places,
    last("marginal_by_bound"),
    "k+:",
    lw=1,
    label="by the paper's estimator",
  )
  shades = colormaps["viridis"](np.linspace(0, 0.9, len(curves)))
  for curve, shade in zip(curves, shades, strict=True):
    panels[2].plot(
      curve.iterations,
      curve.mean("marginal"),
      color=shade,
      label=f"{curve.value:g}",
    )
  for axes in panels[:2]:
    axes.set_xticks(places, [f"{curve.value:g}" for curve in curves])
    axes.set_xlabel(what)
  panels[0].set_ylabel("nats per example")
  panels[0].set_title("Predictive likelihood")
  panels[1].set_ylabel("nats per training example")
  panels[1].set_title("Marginal likelihood, 95 %")
  panels[2].set_xlabel("training iteration")
  panels[2].set_title("Marginal likelihood along training")
  for axes in panels:
    axes.grid(alpha=0.3)
    axes.legend(fontsize=8)
  panels[2].legend(fontsize=8, title=what)
  figure.suptitle(f"{dataset}, after {curves[0].iterations[-1]} iterations")
  return figure
