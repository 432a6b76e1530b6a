"""The figure of a data attribution."""

from typing import Any

import numpy as np
from matplotlib.figure import Figure


def changes(
  predicted: np.ndarray,
  measured: np.ndarray,
  gradient: np.ndarray,
  result: dict[str, Any],
) -> Figure:
  """Predicted against measured changes of a loss, and all predictions.

  Args:
    predicted: [left out], in nats.
    measured: likewise.
    gradient: [examples], of the loss by the weights.
    result: as in result.json.
  """
  figure = Figure(figsize=(10, 4.5), layout="constrained")
  left, right = figure.subplots(1, 2)
  unit, perturbation = 1e-3, result["perturbation"]
  noise = result["rounding_noise"] / unit
  left.scatter(predicted / unit, measured / unit, s=14, label="an example")
  ends = np.array([predicted.min(), predicted.max()]) / unit
  left.plot(ends, ends, color="gray", linestyle="--", label="as predicted")
  if noise > 1e-2 * np.ptp(measured / unit):  # else nothing would be seen
    left.axhspan(
      -noise,
      noise,
      color="gray",
      alpha=0.3,
      linewidth=0,
      label="rounding noise",
    )
  what = "left out" if perturbation == 1 else f"weighed {1 - perturbation:g}"
  left.set_title(
    f"{len(measured)} of {len(gradient)} examples {what}, {result['steps']} "
    f"steps\nSpearman {result['spearman']:.3f}, Pearson {result['pearson']:.3f}"
  )
  left.set_xlabel("change predicted by the gradient (millinats a character)")
  left.set_ylabel("change after training again (millinats a character)")
  left.legend()
  right.hist(-perturbation * gradient / unit, bins=60)
  right.axvline(0, color="gray", linestyle="--")
  right.set_title("All examples; those right of zero help")
  right.set_xlabel("predicted change of the loss (millinats a character)")
  right.set_ylabel("examples")
  for axes in (left, right):
    axes.grid(alpha=0.3)
  return figure
