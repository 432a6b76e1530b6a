"""A figure of a paper: what is published beside what is measured."""

import pathlib
import time
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import numpy as np
from matplotlib.figure import Figure

from shared import output


class Row(NamedTuple):
  """One line of the table."""

  key: str  # in result.json; the paper's value is under published_<key>
  text: str
  published: float | str | None
  measured: Any  # a number or a text
  error: float | None = None  # standard error of what was measured


class Outcome(NamedTuple):
  """What a figure leaves behind."""

  table: list[Row]
  metrics: list[dict[str, Any]]
  figures: dict[str, Figure]
  notes: list[str]  # where this is not what the authors did


def reproduce(
  figure: Callable[[pathlib.Path | None], Outcome],
  about: Mapping[str, Any],
  workdir: str | None,
) -> str:
  """Makes a figure, writes what it leaves behind, and reports it.

  Args:
    figure: the folder of the results, or None -> what it leaves behind.
    about: more entries of result.json; "figure" is its number in the paper.
    workdir: the folder of the results.

  Raises:
    ValueError: the folder can't be used, or a number is not finite.
  """
  begin = time.perf_counter()
  path = output.folder(workdir)
  outcome = figure(path)
  seconds = time.perf_counter() - begin
  if path is not None:
    result = {**about, **entries(outcome.table), "seconds": seconds}
    output.write_results(path, outcome.metrics, outcome.figures, result)
  return report(about["figure"], outcome, seconds)


def entries(table: list[Row]) -> dict[str, Any]:
  """The table as flat keys of result.json."""
  result: dict[str, Any] = {}
  for row in table:
    result[row.key] = _plain(row.measured)
    if row.error is not None:
      result[f"{row.key}_stderr"] = row.error
    if row.published is not None:
      result[f"published_{row.key}"] = row.published
  return result


def report(number: str, outcome: Outcome, seconds: float) -> str:
  """The table for people."""
  cells = [
    (f"figure {number}", "published", "measured"),
    *(
      (row.text, _shown(row.published), _shown(row.measured, row.error))
      for row in outcome.table
    ),
  ]
  widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
  lines = [
    f"{text:<{widths[0]}} | {published:>{widths[1]}} | {measured}"
    for text, published, measured in cells
  ]
  rule = " | ".join("-" * width for width in widths)
  notes = [f"Note: {note}" for note in outcome.notes]
  end = f"{seconds:.1f} s"
  return "\n".join([lines[0], rule, *lines[1:], "", *notes, end])


def _plain(value: Any) -> Any:
  """A number or text that JSON can hold."""
  return value.item() if isinstance(value, np.generic | np.ndarray) else value


def _shown(value: Any, error: float | None = None) -> str:
  """A cell of the table."""
  value = _plain(value)
  if value is None:
    return "-"
  text = f"{value:.6g}" if isinstance(value, float) else str(value)
  return text if error is None else f"{text} +- {error:.1g}"
