"""The figures of a classifier by multidimensional LSTMs."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from matplotlib.colors import LogNorm
from matplotlib.figure import Figure

from shared import plots
from shared.training_loop import Rows

_CORNERS = {
  (1, 1): "from the top left",
  (1, -1): "from the top right",
  (-1, 1): "from the bottom left",
  (-1, -1): "from the bottom right",
}


def losses(rows: Rows, result: dict[str, Any]) -> Figure:
  """Training and validation losses by step."""
  figure, axes = plots.losses(rows, label="validation images")
  axes.set_title(
    f"MDLSTMs on {result['dataset']}: {result['test_accuracy']:.2%} of the "
    "test images right"
  )
  axes.set_ylabel("cross-entropy (nats)")
  axes.set_yscale("log")
  axes.legend()
  return figure


def gradients(
  image: np.ndarray,
  norms: Sequence[np.ndarray],
  directions: Sequence[Any],
  count: int,
) -> Figure:
  """Norms of the adjoints of all cells, beside the mean image.

  Args:
    image: [H, W].
    norms: of each level [directions, H, W].
    directions: of the sweeps.
    count: of the images that norms are means over.
  """
  figure = Figure(figsize=(13, 5.6), layout="constrained")
  rows = figure.subplots(len(norms), 1 + len(directions))
  for level, (row, of_level) in enumerate(zip(rows, norms, strict=True), 1):
    scale = LogNorm(of_level.min(), of_level.max())
    for axes, direction, values in zip(
      row[1:], directions, of_level, strict=True
    ):
      shown = axes.imshow(values, norm=scale)
      axes.set_title(f"level {level}, {_CORNERS[direction]}", fontsize=10)
    figure.colorbar(shown, ax=row[1:], label="norm of dlogit/dc (log scale)")
  rows[0][0].imshow(image, cmap="gray")
  rows[0][0].set_title(f"mean of {count} test images", fontsize=10)
  for row in rows[1:]:
    row[0].axis("off")
  for axes in rows.flat:
    axes.set_xlabel("column")
    axes.set_ylabel("row")
  figure.suptitle(
    "How the logit of its class depends on every cell of the sweeps"
  )
  return figure
