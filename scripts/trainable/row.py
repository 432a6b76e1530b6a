"""What scripts/trainability.py shows of a system: rows and a panel."""

from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np

BOUND, PREDICTION, MEASUREMENT = "bound", "prediction", "measurement"
# Of a curve that another one may cover.
WIDE: Mapping[str, Any] = {"color": "silver", "linewidth": 6}


class Row(NamedTuple):
  """One line of the table; numbers that may be tiny are log10."""

  system: str
  what: str
  kind: str  # of `expected`
  expected: float | None
  measured: float
  holds: bool | None
  log: bool = False  # whether both are log10


class Panel(NamedTuple):
  """Curves of one figure: name -> (x, y, style)."""

  title: str
  x: str
  y: str
  curves: Mapping[str, tuple[np.ndarray, np.ndarray, str | Mapping[str, Any]]]


Result = tuple[list[Row], Panel]
