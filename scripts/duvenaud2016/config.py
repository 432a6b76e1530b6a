"""The settings of scripts/early_stopping.py."""

import dataclasses

from duvenaud2016 import data
from shared.settings import flag


@dataclasses.dataclass(frozen=True)
class Config:
  """One figure; None is the value of the paper."""

  figure: str = flag("4", "Of the paper.", choices=["1", "3", "4", "5", "6"])
  dataset: str = flag(
    "digits",
    "Images; for figure 4 a table, too.  All but digits and diabetes in "
    "--data_dir.",
    choices=data.NAMES,
  )
  data_dir: str | None = flag(
    None, "Folder of idx files, or of a table.", may_change=True
  )
  values: tuple[float, ...] | None = flag(
    None,
    "Numbers of hidden units (figure 5) or thresholds (figure 6); by default "
    "the paper's, and fewer for the digits.",
  )
  steps: int | None = flag(
    None,
    "Steps of descent; by default up to the last one that the paper shows, "
    "500 (figure 1), 300 (3), 490 (4), 900 (5) or 1350 (6); with digits 90 "
    "(5) or 300 (6).",
    at_least=1,
  )
  runs: int | None = flag(
    None,
    "Draws of initial weights, whose mean is shown; by default the paper's 1,"
    " and 5 for figure 4.",
    at_least=1,
  )
  seed: int = flag(0, "Of weights, batches and directions.")
