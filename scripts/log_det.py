"""Log-determinants come out of programs: D log beta out of momentum.

  python scripts/log_det.py                              # all maps, a table
  python scripts/log_det.py --map=momentum               # one map, its blocks
  python scripts/log_det.py --map=momentum --size=1000000
  python scripts/log_det.py --map=mine.py:build          # a map of your own

Steps of optimizers, layers and flows are given to `revmom.log_det` as plain
functions, none of which declares its determinant.  Beside what it finds are the
closed form and slogdet of the dense Jacobian, for up to 4096 floats, all in
float64; if they disagree, that is an error.

Half a minute on 2 cores for all maps at --size=64; expect D log beta =
-6.743073002 for momentum, 192 diagonal blocks of size 1, and no difference from
a closed form above 1e-12 or from a dense matrix above 1e-12.  A million weights
take 10 seconds (20 ms a call): -105360.515658.  At 2048 weights a compiled call
takes 0.07 ms, that of the dense matrix 4 s.  Plain SGD, log|det(I - alpha H)|,
is one block, which is estimated with an error bar above 2000 floats.

build(key, size) in mine.py returns a function and a tuple of its arguments:

  def build(key, size):
    return lambda x: 3 * x[::-1], (jnp.ones(size),)

With --workdir it writes result.json, and with several sizes log_det.png, the
time of a call by the number of floats.
"""

import dataclasses
from typing import Any

import jax
from matplotlib.figure import Figure

from determinants.maps import MAPS
from determinants.measurements import (
  DENSE_LIMIT,
  check,
  difference,
  headlines,
  measure,
)
from shared import output
from shared.settings import flag, launch


@dataclasses.dataclass(frozen=True)
class Config:
  """One experiment."""

  map: tuple[str, ...] = flag(
    ("all",),
    f"One of {', '.join(MAPS)}; all of them; or FILE.py:NAME, where NAME(key, "
    "size) returns a function and a tuple of its arguments.  Repeat the flag "
    "for several.",
    repeated=True,
  )
  size: tuple[int, ...] = flag(
    (64,),
    "D: parameters of an optimizer, numbers of an input; repeat the flag for "
    "several.",
    at_least=2,
    repeated=True,
  )
  seed: int = flag(0, "Of weights, data and points.")


def run(config: Config, workdir: str | None = None) -> dict[str, Any]:
  """The experiment: measure, write, check.

  Raises:
    ValueError: an unknown map, or one that is not square.
    RuntimeError: a log-determinant is wrong.
  """
  path = output.folder(workdir)
  names = [
    name
    for given in config.map
    for name in (MAPS if given == "all" else [given])
  ]
  with jax.enable_x64(True):
    rows = [
      measure(name, size, config.seed) for name in names for size in config.size
    ]
  result = {**dataclasses.asdict(config), **headlines(rows), "maps": rows}
  if path is not None:
    output.write_json(path / "result.json", result)
    if len(config.size) > 1:
      figure(rows, names).savefig(path / "log_det.png", dpi=150)
  # At the end, so that a failure can be looked at.
  for row in rows:
    check(row)
  return result


def figure(rows: list[dict[str, Any]], names: list[str]) -> Figure:
  """Time of a call by the number of floats."""
  drawn = Figure(figsize=(8, 5), layout="constrained")
  axes = drawn.subplots()
  for number, name in enumerate(names):
    own = [row for row in rows if row["map"] == name]
    floats = [row["floats"] for row in own]
    color = f"C{number % 10}"
    axes.plot(
      floats, [row["seconds"] for row in own], "o-", c=color, label=name
    )
    checked = [row for row in own if row["dense_seconds"] is not None]
    axes.plot(
      [row["floats"] for row in checked],
      [row["dense_seconds"] for row in checked],
      "x--",
      c=color,
    )
  axes.plot([], [], "kx--", label="dense slogdet")
  axes.set_xscale("log")
  axes.set_yscale("log")
  axes.set_xlabel("floats that the map takes")
  axes.set_ylabel("seconds for a compiled call")
  axes.grid(alpha=0.3)
  axes.legend(fontsize="small")
  return drawn


# The report for people.


def report(result: dict[str, Any]) -> str:
  """One map in full, or a table."""
  rows = result["maps"]
  if len(rows) == 1:
    return full(rows[0])
  header = (
    f"{'map':22}{'floats':>9}{'log|det J|':>18}{'- closed form':>15}"
    f"{'- dense':>10}{'ms':>9}{'dense ms':>10}  blocks"
  )
  return "\n".join([header, *map(line, rows), "log|det J| is:", *legend(rows)])


def line(row: dict[str, Any]) -> str:
  """A row of the table."""
  milliseconds = lambda s: "" if s is None else f"{1e3 * s:.3f}"
  apart = lambda other: (
    "" if (size := difference(row, other)) is None else f"{size:.1e}"
  )
  value = f"{row['log_det']:.9f}"
  if row["method"] == "stochastic":
    value = f"{row['log_det']:.6f}+-{row['stderr']:.0e}"
  return (
    f"{row['map'][-22:]:22}{row['floats']:9d}{value:>18}"
    f"{apart('closed_form'):>15}{apart('dense'):>10}"
    f"{milliseconds(row['seconds']):>9}"
    f"{milliseconds(row['dense_seconds']):>10}  {summary(row)}"
  )


def summary(row: dict[str, Any]) -> str:
  """The kinds of blocks: their number and the size of the largest."""
  kinds: dict[str, list[dict[str, Any]]] = {}
  for block in row["blocks"]:
    kinds.setdefault(block["kind"], []).append(block)
  return ", ".join(
    f"{sum(b['blocks'] for b in blocks)} {kind} "
    f"<={max(b['largest'] for b in blocks)}"
    for kind, blocks in kinds.items()
  )


def legend(rows: list[dict[str, Any]]) -> list[str]:
  """The closed forms."""
  formulas = {row["map"]: row["formula"] for row in rows if row["formula"]}
  return [f"  {name:22}{formula}" for name, formula in formulas.items()]


def full(row: dict[str, Any]) -> str:
  """All that is known of one map."""
  lines = [
    f"{row['map']}: {row['floats']} floats",
    f"log|det J| = {row['log_det']:.12g}, sign {row['sign']:+g}, by "
    f"{row['method']}",
  ]
  if row["method"] == "stochastic":
    lines.append(
      f"  an estimate: standard error {row['stderr']:.2g}, bias of at most "
      f"{row['bias_bound']:.1g}; its sign is not known"
    )
  lines += [
    f"  segment {block['segment']}: {block['kind']}, {block['blocks']} "
    f"blocks of at most {block['largest']} x {block['largest']}"
    for block in row["blocks"]
  ]
  if row["closed_form"] is not None:
    lines.append(
      f"closed form: {row['formula']} = {row['closed_form']:.12g}, "
      f"{difference(row, 'closed_form'):.1e} away"
    )
  elif row["formula"]:
    lines.append(f"closed form: {row['formula']}")
  if row["dense"] is None:
    lines.append(f"too large for a dense check, above {DENSE_LIMIT} floats")
  else:
    lines.append(
      f"dense slogdet: {row['dense']:.12g}, sign {row['dense_sign']:+g}, "
      f"{difference(row, 'dense'):.1e} away"
    )
  spent = f"{row['compile_s']:.2f} s to compile, {1e3 * row['seconds']:.3f} ms"
  if row["dense_seconds"] is not None:
    spent += f" a call; dense {1e3 * row['dense_seconds']:.3f} ms"
  return "\n".join([*lines, spent])


if __name__ == "__main__":
  launch(Config, run, report)
