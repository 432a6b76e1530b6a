"""The figure of reversible language models."""

from typing import Any

from matplotlib.figure import Figure

from reversible_text import networks
from reversible_text.networks import Network


def limits(result: dict[str, Any], bounds: list[float]) -> Figure:
  """Perplexities and bits by what a step may forget."""
  figure = Figure(figsize=(10, 4), layout="constrained")
  left, right = figure.subplots(1, 2)
  for number, (cell, usual) in enumerate(
    zip(networks.REVERSIBLE, networks.USUAL, strict=True)
  ):
    names = [Network(cell, bound).name for bound in bounds]
    color = f"C{number}"
    left.plot(
      bounds,
      [result[f"{name}_test_perplexity"] for name in names],
      "o-",
      color=color,
      label=cell,
    )
    left.axhline(
      result[f"{usual}_test_perplexity"], ls=":", color=color, label=usual
    )
    right.plot(
      bounds,
      [result[f"{name}_bits"] for name in names],
      "o-",
      color=color,
      label=cell,
    )
  left.set_ylabel(f"test perplexity per {result['level']}")
  left.set_title("Reversible cells beside usual ones")
  right.axhline(32, ls=":", color="gray", label="a float32")
  right.set_yscale("log")
  right.set_ylabel("bits kept a unit and step")
  right.set_title("What reversal has to keep")
  for axes in (left, right):
    axes.set_xlabel("most bits that a step forgets")
    axes.grid(alpha=0.3)
    axes.legend()
  return figure
