"""The figure of the README, from the results of benchmarks.

    python benchmarks/memory.py
    python docs/figures.py

The second command draws docs/figures/memory.png from what the first one left.
"""

import json
import pathlib

from matplotlib.figure import Figure

DOCS = pathlib.Path(__file__).parent
RESULTS = DOCS.parent / "benchmarks" / "results"
STYLES = {
  "scan, every step checkpointed": ("every step checkpointed", "C7", "s"),
  "equinox checkpointed loop": ("equinox checkpointed loop", "C2", "^"),
  "scan, sqrt(T) segments and steps": ("√T checkpoints, twice", "C1", "D"),
  "revmom": ("revmom, reversed bit for bit", "C0", "o"),
}


def memory() -> Figure:
  """Temporary memory of a hypergradient against the length of the run."""
  result = json.loads((RESULTS / "memory.json").read_text())
  rows = result["temporary_bytes"]
  figure = Figure(figsize=(6.4, 3.8), layout="constrained")
  axes = figure.subplots()
  for name, (label, color, marker) in STYLES.items():
    axes.loglog(
      [row["steps"] for row in rows],
      [row[name] / 1e6 for row in rows],
      marker=marker,
      color=color,
      label=label,
      linewidth=3 if name == "revmom" else 1.5,
    )
  axes.set_xlabel("steps of the training that is differentiated")
  axes.set_ylabel("temporary memory, MB")
  axes.set_title(
    f"Hypergradient of an MLP with {result['parameters']:,} parameters",
    fontsize=11,
  )
  axes.grid(alpha=0.3)
  axes.legend(frameon=False)
  return figure


if __name__ == "__main__":
  memory().savefig(DOCS / "figures" / "memory.png", dpi=110)
