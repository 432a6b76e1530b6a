"""The figures of densities that flows have learned."""

from typing import Any, NamedTuple

import numpy as np
from matplotlib.colors import LogNorm
from matplotlib.figure import Figure

from shared import plots
from shared.training_loop import Rows

_SIDE = 250  # points of a grid along each axis
_ROWS = 8  # of samples
_RECONSTRUCTED = 8
_DOTS = 5000  # points that are drawn
_LEAST = 2.0**-26  # error that is drawn


class Grid(NamedTuple):
  """A square of points around zero."""

  half_width: float
  points: np.ndarray  # [_SIDE^2, 2], rows from the bottom

  @property
  def extent(self) -> tuple[float, float, float, float]:
    """For imshow."""
    return (-self.half_width, self.half_width) * 2

  @property
  def area(self) -> float:
    """Of a cell."""
    return (2 * self.half_width / _SIDE) ** 2


def grid_around(points: np.ndarray) -> Grid:
  """A grid of cells' centres over all points and a margin."""
  half_width = 1.25 * float(np.abs(points).max())
  centres = ((np.arange(_SIDE) + 0.5) / _SIDE * 2 - 1) * half_width
  x, y = np.meshgrid(centres, centres)
  return Grid(
    half_width, np.stack([x.ravel(), y.ravel()], -1).astype(np.float32)
  )


class Map(NamedTuple):
  """A learned density and the true one, on a grid [_SIDE^2]."""

  grid: Grid
  learned: np.ndarray
  true: np.ndarray

  @property
  def integral(self) -> float:
    """Of the learned density over the square."""
    return float(self.learned.sum() * self.grid.area)


def losses(rows: Rows, result: dict[str, Any]) -> Figure:
  """Training and validation losses by step."""
  figure, axes = plots.losses(rows)
  bounds = {
    "entropy of the data": result.get("true_entropy"),
    "published (larger, 60 000 images)": result["published_test_loss"],
  }
  for (label, value), style in zip(bounds.items(), ("--", ":"), strict=True):
    if value is not None:
      axes.axhline(value, color="black", ls=style, lw=1, label=label)
  # The first losses would hide all others.
  axes.set_ylim(top=np.quantile([row["loss"] for row in rows], 0.98))
  axes.set_title(
    f"{result['model']} on {result['data']}: {result['test_loss']:.3f} "
    f"{result['unit']} on test data"
  )
  axes.set_ylabel(f"-log q ({result['unit']})")
  axes.legend()
  return figure


def density(
  on_grid: Map, samples: np.ndarray, test: np.ndarray, result: dict[str, Any]
) -> Figure:
  """The true density, the learned one, samples of it and data."""
  figure = Figure(figsize=(14, 3.7), layout="constrained")
  panels = figure.subplots(1, 4)
  top = on_grid.true.max()
  maps = {"density of the data, p": on_grid.true}
  maps[f"learned, q: KL(p || q) = {result['kl']:.3f} nats"] = on_grid.learned
  for axes, (title, values) in zip(panels, maps.items(), strict=False):
    shown = axes.imshow(
      values.reshape(_SIDE, _SIDE),
      origin="lower",
      extent=on_grid.grid.extent,
      vmin=0,
      vmax=top,
    )
    axes.set_title(title, fontsize=10)
  figure.colorbar(
    shown, ax=panels[1], label="density, of both", extend="max", shrink=0.8
  )
  dots = {"samples of q": samples, "data": test}
  for axes, (title, points) in zip(panels[2:], dots.items(), strict=True):
    axes.plot(*points[:_DOTS].T, ",", color="C0")
    axes.set_title(f"{title}, {len(points[:_DOTS])} points", fontsize=10)
    axes.set_aspect("equal")
    axes.set_xlim(on_grid.grid.extent[:2])
    axes.set_ylim(on_grid.grid.extent[2:])
  for axes in panels:
    axes.set_xlabel("$x_1$")
    axes.set_ylabel("$x_2$")
  return figure


def points_inversion(inversion: Any, result: dict[str, Any]) -> Figure:
  """Where points are not recovered to the last bit."""
  figure = Figure(figsize=(7.5, 4.6), layout="constrained")
  axes = figure.subplots()
  errors = inversion.errors.max(-1)
  shown = axes.scatter(
    inversion.x[:, 0],
    inversion.x[:, 1],
    c=errors,
    s=12,
    norm=_log_scale(errors),
    cmap="viridis",
  )
  figure.colorbar(
    shown, ax=axes, label="$\\max_i\\ |x_i - f^{-1}(f(x))_i|$", shrink=0.8
  )
  axes.set_title(
    f"Round trip of {len(errors)} test points: at most {errors.max():.1e}"
  )
  axes.set_aspect("equal")
  axes.set_xlabel("$x_1$")
  axes.set_ylabel("$x_2$")
  return figure


def _log_scale(errors: np.ndarray) -> LogNorm:
  """Colours of errors, of which some are exactly zero."""
  return LogNorm(_LEAST, max(float(errors.max()), 2 * _LEAST), clip=True)


def _tiles(images: np.ndarray, columns: int) -> np.ndarray:
  """Images [N, H, W] side by side, with a line between them."""
  padded = np.pad(images, [(0, 0), (1, 0), (1, 0)], constant_values=np.nan)
  rows = [
    np.concatenate(padded[i : i + columns], 1)
    for i in range(0, len(padded), columns)
  ]
  return np.concatenate(rows)


def samples(drawn: np.ndarray, data: Any, result: dict[str, Any]) -> Figure:
  """Samples beside test images."""
  figure = Figure(figsize=(9, 4.9), layout="constrained")
  panels = figure.subplots(1, 2)
  grids = {
    f"samples of {result['model']}": drawn,
    "test images": data.test[: len(drawn)],
  }
  for axes, (title, images) in zip(panels, grids.items(), strict=True):
    tiles = _tiles(images.reshape(-1, *data.image).astype(np.float32), _ROWS)
    axes.imshow(tiles, cmap="gray", vmin=0, vmax=data.levels - 1)
    axes.set_title(title)
    axes.axis("off")
  figure.suptitle(
    f"{result['data']}: {result['test_loss']:.3f} bits/dim on test images"
  )
  return figure


def images_inversion(
  inversion: Any, data: Any, result: dict[str, Any]
) -> Figure:
  """Test images, what the inverse makes of their noise, and the difference."""
  errors = inversion.errors.reshape(-1, *data.image)
  of = lambda images: images[:_RECONSTRUCTED].reshape(-1, *data.image)
  grey = {"cmap": "gray", "vmin": 0, "vmax": 1}
  figure = Figure(figsize=(10, 6), layout="constrained")
  panels = figure.subplots(4, 1, height_ratios=[1, 1, 1, 1.6])
  rows: dict[str, tuple[np.ndarray, dict[str, Any]]] = {
    "$x$": (of(inversion.x), grey),
    "$f^{-1}(f(x))$": (of(inversion.back), grey),
    "error": (of(inversion.errors), {"norm": _log_scale(errors)}),
  }
  for axes, (title, (shown, how)) in zip(panels, rows.items(), strict=False):
    drawn = axes.imshow(_tiles(shown, _RECONSTRUCTED), **how)
    axes.set_ylabel(title)
    axes.set_xticks([])
    axes.set_yticks([])
  figure.colorbar(drawn, ax=panels[:3], label="error of a pixel in [0, 1]")
  # Powers of two, as errors are: zeros are at the left end.
  size = np.maximum(errors.ravel(), _LEAST)
  edges = 2.0 ** np.arange(
    np.log2(_LEAST) - 0.5, np.log2(size.max()) + 1.5, 0.5
  )
  panels[3].hist(size, edges)
  panels[3].set_xscale("log")
  panels[3].set_yscale("log")
  panels[3].set_xlabel("error of a pixel in [0, 1] (zeros at the left end)")
  panels[3].set_ylabel("pixels")
  panels[3].grid(alpha=0.3)
  figure.suptitle(
    f"Round trips of {len(errors)} test images through {result['model']}: at "
    f"most {errors.max():.1e}"
  )
  return figure
