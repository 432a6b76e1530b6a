"""What depth, recurrence, normalisation and initialisation do to gradients.

  python scripts/trainability.py --workdir=out/trainability
  python scripts/trainability.py --module=mine.py:factory --workdir=out/mine

One page: every bound or prediction beside its measurement, for chains of units
(D1, D2), recurrences (D3), residual maps and a common wrong bound on them (D4),
batch normalisation (D5), two residual blocks (D6), initialisation (D7), deep
supervision (D8), residual filters (D9), a gated convolutional network beside
others (D10) and memory cells (B2).  Images are digits.

Two minutes on 2 CPU cores.  Expect |df/dx| of 200 sigmoid units below 4^-200 =
4e-121, an I + J whose smallest singular value is 0 where 1 was claimed, and the
word "no" in the last column of the table for that claim alone.

A file that --module names has a function of a random key that returns a Flax
module, its variables (None for NNX) and an input; the table of its layers is
printed instead, with trouble named by layer.

With --workdir it writes result.json, metrics.csv (the rows of the table) and
trainability.png, or module.png.
"""

import dataclasses
import math
import pathlib
import time
from typing import Any

import jax

from revmom.analysis import GradientFlow, gradient_flow
from shared import image_data, output, user_files
from shared.progress_bar import progress
from shared.settings import flag, launch
from trainable import plots
from trainable.row import Panel, Row
from trainable.rows import measurements


@dataclasses.dataclass(frozen=True)
class Config:
  """One experiment."""

  dataset: str = flag(
    "digits", "Images; all but digits in --data_dir.", choices=image_data.NAMES
  )
  data_dir: str | None = flag(None, "Folder of idx files.")
  module: str | None = flag(
    None, "FILE.py:FUNCTION, key -> (Flax module, variables, input)."
  )
  systems: tuple[str, ...] | None = flag(
    None, "Only these, such as D1,D4; all if it is left out."
  )
  steps: int = flag(200, "Adam steps of D10.", at_least=1)
  seed: int = flag(0, "Of weights and draws.")


def measure(config: Config) -> tuple[list[Row], list[Panel]]:
  """All rows and panels.

  Raises:
    ValueError: there is no such system.
    FloatingPointError: a number was not finite.
  """
  data = image_data.load(config.dataset, config.data_dir)
  of = measurements(
    jax.random.key(config.seed),
    data.train_images,
    data.train_labels,
    config.steps,
  )
  chosen = config.systems or list(of)
  unknown = sorted(set(chosen) - set(of))
  if unknown:
    raise ValueError(
      f"--systems={','.join(chosen)}: there is no {', '.join(unknown)}; choose "
      f"from {', '.join(of)}."
    )
  rows: list[Row] = []
  panels: list[Panel] = []
  for system in progress(chosen, desc="systems"):
    found, panel = of[system]()
    for row in found:
      if not math.isfinite(row.measured):
        raise FloatingPointError(f"{row.system}, {row.what}: {row.measured}")
    rows += found
    panels.append(panel)
  return rows, panels


def user_flow(config: Config) -> GradientFlow:
  """Figures of the module of --module.

  Raises:
    ValueError: it is not what it should be.
  """
  text = str(config.module)
  file, _, name = text.rpartition(":")
  path = pathlib.Path(file)
  if not file or not path.is_file():
    raise ValueError(
      f"--module={text}: expected FILE.py:FUNCTION, and {file or text} is not "
      "a file."
    )
  flag = f"--module={text}"
  factory = getattr(user_files.load("module_file", path, flag), name, None)
  if not callable(factory):
    raise ValueError(f"--module={text}: {path} defines no function {name}.")
  with user_files.blamed(flag, path):
    made = factory(jax.random.key(config.seed))
  if not isinstance(made, tuple) or len(made) != 3:
    raise ValueError(
      f"--module={text} returned {type(made).__name__}; it must return a Flax "
      "module, its variables (None for NNX) and an input."
    )
  with user_files.blamed(flag, path):
    return gradient_flow(*made, spectra=True)


def number(value: float | None, log: bool) -> str:
  """As a power of ten, if it is a logarithm."""
  if value is None:
    return ""
  if not log:
    return f"{value:.4g}"
  exponent = math.floor(value)
  return f"{10 ** (value - exponent):.2f}e{exponent:+03d}"


def table(rows: list[Row]) -> str:
  """For people."""
  header = ["", "", "", "expected", "measured", "holds"]
  lines = [header] + [
    [
      row.system,
      row.what,
      row.kind,
      number(row.expected, row.log),
      number(row.measured, row.log),
      {True: "yes", False: "no", None: ""}[row.holds],
    ]
    for row in rows
  ]
  widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
  return "\n".join(
    "  ".join(
      entry.ljust(width) for entry, width in zip(line, widths, strict=True)
    ).rstrip()
    for line in lines
  )


def run(config: Config, workdir: str | None = None) -> str:
  """Measures, writes, and returns the report.

  Raises:
    RuntimeError: a bound or prediction does not hold.
  """
  begin = time.perf_counter()
  path = output.folder(workdir)
  rows: list[Row] = []
  if config.module is not None:
    flow = user_flow(config)
    result: dict[str, Any] = {
      "module": config.module,
      "layers": len(flow.names) - 1,
      "problems": flow.problems,
    }
    text, name = str(flow), "module"
    figure = plots.module(flow)
  else:
    rows, panels = measure(config)
    wrong = [row for row in rows if row.holds is False and row.kind != "claim"]
    if wrong:
      raise RuntimeError(
        "what should hold does not:\n" + table(wrong) + "\nof\n" + table(rows)
      )
    result = {
      "rows": len(rows),
      "hold": sum(row.holds is True for row in rows),
      "false_claims": sum(row.holds is False for row in rows),
      **{
        f"{'log10_' * row.log}{row.system}_{i}": row.measured
        for i, row in enumerate(rows)
      },
    }
    text, name = table(rows), "trainability"
    figure = plots.page(panels)
  result["seconds"] = time.perf_counter() - begin
  if path is not None:
    metrics = [row._asdict() for row in rows]
    output.write_results(path, metrics, {name: figure}, result)
  return f"{text}\ntime {result['seconds']:.1f} s"


if __name__ == "__main__":
  launch(Config, run)
