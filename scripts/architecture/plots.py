"""The figure of scripts/architecture_costs.py."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

from matplotlib.figure import Figure

Row = Mapping[str, Any]


def figure(
  rows: Sequence[Row], bases: Mapping[str, Mapping[str, int]]
) -> Figure:
  """Connections against features, and rounds against positions."""
  drawn = Figure(figsize=(13, 5), layout="constrained")
  left, right = drawn.subplots(1, 2)
  for number, (name, base) in enumerate(bases.items()):
    own = [row for row in rows if row["network"] == name]
    color, marker = f"C{number % 10}", "os^vD<>pP"[number % 9]
    # Smaller from one to the next, lest one cover another.
    size = 10 - 6 * number / max(1, len(bases) - 1)
    style = dict(color=color, marker=marker, ms=size, label=name)
    by_features = along(own, base, ["k"])
    left.plot(
      [row["k"] for row in by_features],
      [row["connections"] for row in by_features],
      **style,
    )
    data = [size for size in base if size not in ("d", "k")]
    by_data = along(own, base, data)
    positions = [math.prod(row[size] for size in data) for row in by_data]
    rounds = [row["dataflow_rounds"] for row in by_data]
    right.plot(positions, rounds, **style)
    scheduled = [row["scheduled_rounds"] for row in by_data]
    right.plot(positions, scheduled, ":", color=color, marker=marker, ms=3)
  right.plot([], [], "k:", label="as scheduled")
  left.set_title("Connections: O(k^2), also of PixelCNN")
  right.set_title("Rounds: as data dependences allow, and as scheduled")
  left.set_xlabel("k, features of a layer")
  left.set_ylabel("connections")
  right.set_xlabel("positions: t, or H W with H : W kept")
  right.set_ylabel("sequential rounds")
  for axes in (left, right):
    axes.set_xscale("log", base=2)
    axes.set_yscale("log")
    axes.grid(alpha=0.3)
  right.legend(fontsize="small", loc="center left", bbox_to_anchor=(1, 0.5))
  return drawn


def along(
  rows: Sequence[Row], base: Mapping[str, int], sizes: Sequence[str]
) -> list[Row]:
  """Those that differ from the base in some sizes by one factor, ordered."""
  ratios = lambda row: {row[size] / base[size] for size in sizes}
  same = lambda row: all(
    row[size] == base[size] for size in base if size not in sizes
  )
  found = {
    min(ratios(row)): row for row in rows if same(row) and len(ratios(row)) == 1
  }
  return [found[ratio] for ratio in sorted(found)]
