"""What the figures of Duvenaud, Maclaurin & Adams (2016) share."""

import dataclasses
from typing import Any, NamedTuple

import jax
import numpy as np
from matplotlib.figure import Figure


@dataclasses.dataclass(frozen=True)
class Config:
  """One figure; see the flags of the same names.  None is the paper's value."""

  figure: str = "4"
  dataset: str = "digits"
  data_dir: str | None = None
  values: tuple[str, ...] | None = None
  steps: int | None = None
  runs: int | None = None
  seed: int = 0


class Row(NamedTuple):
  """One line of the table."""

  key: str  # in result.json; the paper's value is under published_<key>
  text: str
  published: float | None
  measured: float
  error: float | None = None  # standard error of what was measured


class Outcome(NamedTuple):
  """What a figure leaves behind."""

  table: list[Row]
  metrics: list[dict[str, Any]]
  figures: dict[str, Figure]
  notes: list[str]  # where this is not what the authors did


def check_finite(name: str, values: Any, remedy: str) -> None:
  """Raises FloatingPointError unless all numbers of a tree are finite."""
  for leaf in jax.tree.leaves(values):
    if not np.isfinite(np.asarray(leaf)).all():
      raise FloatingPointError(f"{name} is not finite: {remedy}")
