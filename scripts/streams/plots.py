"""The figures of reversible_transformer.py."""

from typing import Any

from matplotlib.figure import Figure

_LABELS = {"plain": "kept", "revnet": "two streams", "bdia": "BDIA"}


def costs(rows: list[dict[str, Any]]) -> Figure:
  """Memory, seconds and accuracy by depth."""
  figure = Figure(figsize=(11, 3.6), layout="constrained")
  panels = figure.subplots(1, 3)
  for name, axes, title in zip(
    ("megabytes", "seconds", "accuracy"),
    panels,
    ("temporary memory of a step (MB)", "seconds a step", "test accuracy"),
    strict=True,
  ):
    for kind, label in _LABELS.items():
      own = [row for row in rows if row["kind"] == kind]
      axes.plot(
        [row["depth"] for row in own],
        [row[name] for row in own],
        "o-",
        label=label,
      )
    axes.set_xscale("log")
    if name != "accuracy":
      axes.set_yscale("log")
    axes.set_title(title, fontsize=10)
    axes.set_xlabel("layers")
    axes.grid(alpha=0.3)
  panels[0].legend()
  return figure


def losses(rows: list[dict[str, Any]]) -> Figure:
  """Of batches by step, a panel for each kind."""
  figure = Figure(figsize=(11, 3.6), layout="constrained")
  panels = figure.subplots(1, len(_LABELS), sharey=True)
  for axes, (kind, label) in zip(panels, _LABELS.items(), strict=True):
    for row in rows:
      if row["kind"] == kind:
        axes.plot(row["losses"], label=f"{row['depth']} layers")
    axes.set_title(label, fontsize=10)
    axes.set_xlabel("step")
    axes.grid(alpha=0.3)
  panels[0].set_ylabel("cross-entropy (nats)")
  panels[0].legend()
  return figure
