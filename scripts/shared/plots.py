"""A figure that most trainings have."""

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from shared.training_loop import Rows


def losses(
  rows: Rows,
  validation: str = "validation_loss",
  label: str = "validation",
  *,
  loss: str = "loss",
  unit: float = 1.0,
) -> tuple[Figure, Axes]:
  """Losses of batches by step, and those that were validated now and then.

  Args:
    rows: of metrics.csv, one a step.
    validation: its column, which most rows leave out.
    label: what it is of.
    loss: the column of the losses of batches.
    unit: by which all losses are divided.

  Returns:
    The figure and its axes, without title, name of the losses and legend.
  """
  figure = Figure(figsize=(6, 4), layout="constrained")
  axes = figure.subplots()
  axes.plot([row[loss] / unit for row in rows], alpha=0.5, label="batches")
  validated = [row for row in rows if validation in row]
  axes.plot(
    [row["step"] for row in validated],
    [row[validation] / unit for row in validated],
    "o-",
    label=label,
  )
  axes.set_xlabel("step")
  axes.grid(alpha=0.3)
  return figure, axes
