"""The figures of autoregressive models of images."""

from typing import Any

import numpy as np
from matplotlib.figure import Figure

from shared import plots
from shared.training_loop import Rows


def losses(rows: Rows, result: dict[str, Any]) -> Figure:
  """Training and validation losses by step."""
  figure, axes = plots.losses(rows, label="validation images")
  axes.axhline(
    result["independent_test_loss"],
    color="gray",
    linestyle=":",
    label="independent pixels",
  )
  axes.set_title(
    f"{result['model']} on {result['data']}, {result['parameters']:,} "
    f"parameters\ntest images: {result['test_loss']:.3f} {result['unit']}"
  )
  axes.set_ylim(top=1.3 * result["independent_test_loss"])
  axes.set_ylabel(result["unit"])
  axes.legend()
  return figure


def _grid(images: np.ndarray, columns: int) -> np.ndarray:
  """Images [N, H, W] side by side, with a pixel of space between."""
  count, height, width = images.shape
  rows = count // columns
  padded = np.pad(
    images.astype(float), [(0, 0), (1, 0), (1, 0)], constant_values=np.nan
  )
  tiles = padded.reshape(rows, columns, height + 1, width + 1)
  return tiles.transpose(0, 2, 1, 3).reshape(rows * (height + 1), -1)


def _show(axes: Any, picture: np.ndarray, levels: int) -> None:
  axes.imshow(picture, cmap="gray", vmin=0, vmax=levels - 1)
  axes.set_xticks([])
  axes.set_yticks([])


def samples(images: np.ndarray, result: dict[str, Any]) -> Figure:
  """Ten rows of what was drawn; columns are the classes, if they were told."""
  figure = Figure(figsize=(5, 5.3), layout="constrained")
  axes = figure.subplots()
  _show(axes, _grid(images, 10), result["levels"])
  of_classes = ", a class in each column" if result["conditioned"] else ""
  axes.set_title(
    f"Drawn by {result['model']}{of_classes}\n"
    f"{result['test_loss']:.3f} {result['unit']} on test images"
  )
  return figure


def completions(
  originals: np.ndarray, completed: np.ndarray, result: dict[str, Any]
) -> Figure:
  """Test images [N, H, W] above their completions [times, N, H, W]."""
  half = originals.shape[1] // 2
  given = originals.astype(float)
  given[:, half:] = np.nan
  rows = np.concatenate([originals[None], given[None], completed])
  figure = Figure(figsize=(6, 0.62 * len(rows) + 0.5), layout="constrained")
  axes = figure.subplots()
  axes.set_facecolor("lightsteelblue")  # where nothing is given
  _show(axes, _grid(np.concatenate(rows), len(originals)), result["levels"])
  size = originals.shape[1] + 1
  names = ["test image", "given"]
  names += [f"completion {k + 1}" for k in range(len(completed))]
  axes.set_yticks([size * (k + 0.5) for k in range(len(names))], names)
  axes.set_title(f"{result['model']} completes the lower halves")
  return figure


def comparison(rows: list[dict[str, Any]], unit: str) -> Figure:
  """Test losses of all models by step and by seconds."""
  figure = Figure(figsize=(10, 4.2), layout="constrained")
  panels = figure.subplots(1, 2, sharey=True)
  for name, axes in zip(("step", "seconds"), panels, strict=True):
    for number, row in enumerate(rows):
      axes.plot(
        [look[name] for look in row["curve"]],
        [look["test"] for look in row["curve"]],
        ".-" if number % 2 else "x--",
        color=f"C{number}",
        label=row["model"],
      )
    axes.set_xscale("log")
    axes.grid(alpha=0.3)
  panels[0].set_title("The same batches, by steps")
  panels[1].set_title("and by time")
  panels[0].set_xlabel("step")
  panels[1].set_xlabel("seconds of training")
  panels[0].set_ylabel(f"{unit} on test images")
  panels[0].legend(fontsize="small")
  return figure
