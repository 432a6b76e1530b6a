"""Recurrent cells against other libraries: time and memory.

python benchmarks/recurrent.py          # 14 minutes; docs/benchmarks.md
python benchmarks/recurrent.py --quick  # a minute; only prints

Every contender computes outputs, and the gradients of all weights and of the
inputs from given adjoints of the outputs. All run in turn in every round. The
matrix products that no layer can do without are timed alone beside them.
"""

import json
import math
import os
import pathlib
import statistics
from collections.abc import Callable
from typing import Any

import interleaved
import jax
import jax.numpy as jnp
import recurrent_peers as peers
import report
from absl import app, flags
from recurrent_peers import GridSize, Size

from revmom.cells import gru, lstm, mdlstm, mdrnn, ugrnn

_QUICK = flags.DEFINE_bool("quick", False, "tiny sizes; only prints")
_ROUNDS = flags.DEFINE_integer("rounds", 9, "times that all contenders run")
_RESULTS = pathlib.Path(__file__).parent / "results" / "recurrent.json"
_DOCUMENT = pathlib.Path(__file__).parents[1] / "docs" / "benchmarks.md"

SIZES = (
  Size(1, 512, 64, 64),
  Size(32, 128, 128, 128),
  Size(32, 256, 256, 256),
  Size(64, 100, 512, 512),
)
GRIDS = (GridSize(16, 16, 64), GridSize(32, 16, 64), GridSize(64, 16, 64))
BOUND = "matrix products alone"
GATES = "matrix products and gates alone"
TORCH = "torch"
REFERENCE = {"lstm": "flax OptimizedLSTMCell", "gru": "flax GRUCell"}
# What was set out for: (cell, what) -> least speed over the reference's.
WANTED = {("lstm", "gradients"): 1.2, ("lstm", "forward"): 1.5}
WANTED_AT_BATCH_ONE = 2.0
WANTED_GRID = 1.7  # over the nested scan, from 32 x 32


def contenders(kind: str, size: Size) -> dict[str, tuple[Callable, Any]]:
  """name -> (function of params and inputs, params)."""
  xs = jnp.zeros((size.time, size.batch, size.input))
  cell = {"lstm": lstm, "gru": gru, "ugrnn": ugrnn}[kind]
  params = cell.init(jax.random.key(0), size.input, size.hidden)
  outputs = lambda **options: lambda p, xs: cell.apply(p, xs, **options)[0]
  result = {
    "revmom": (outputs(), params),
    "revmom, recompute": (outputs(recompute=True), params),
    "revmom's equations, differentiated by JAX": (
      lambda p, xs: cell.forward(p, xs)[0],
      params,
    ),
  }
  if kind == "lstm":
    for name in ("OptimizedLSTMCell", "LSTMCell"):
      result[f"flax {name}"] = peers.flax_rnn(name, size, xs)
    if peers.installed("haiku"):
      result["haiku"] = peers.haiku_lstm(size, xs)
    if jax.default_backend() == "gpu":
      result["cuDNN"] = peers.cudnn_lstm(size, xs)
  if kind == "gru":
    result["flax GRUCell"] = peers.flax_rnn("GRUCell", size, xs)
  if kind != "ugrnn" and peers.installed("equinox"):
    name = {"lstm": "LSTMCell", "gru": "GRUCell"}[kind]
    result["equinox"] = peers.equinox_cell(name, size, xs)
  return result


def products(kind: str, size: Size, backward: bool) -> interleaved.Program:
  """The products of a cell and nothing else, those of inputs by blocks."""
  gates = {"lstm": 4, "gru": 3, "ugrnn": 2}[kind]
  steps = _steps(size)

  def run(inputs, recurrent, xs):
    transposed = recurrent.T
    if size.batch > 1:
      # Products with it are faster where it lies in memory as such.
      transposed = jax.lax.optimization_barrier(transposed)

    def block(carry, xs):
      hidden, sums = carry
      drive = xs @ inputs

      def step(hidden, _):
        # The barrier keeps XLA from making a part of the product only.
        gates = jax.lax.optimization_barrier(hidden @ recurrent)
        return gates[:, : size.hidden], None

      hidden, _ = jax.lax.scan(step, hidden, None, length=steps)
      if not backward:
        return (hidden, sums), drive[-1]

      def back(bars, _):
        bars = bars @ transposed
        return jnp.concatenate([bars] * gates, -1), None

      bars, _ = jax.lax.scan(back, drive[0], None, length=steps)
      weights = [jnp.einsum("tbd,tbg->dg", a, drive) for a in (xs, hiddens)]
      sums = jax.tree.map(jnp.add, sums, weights)
      return (hidden + bars[:, : size.hidden], sums), drive @ inputs.T

    hiddens = jnp.zeros((steps, size.batch, size.hidden)) + xs[0, 0, 0]
    zeros = jnp.zeros((size.batch, size.hidden))
    sums = [jnp.zeros_like(inputs), jnp.zeros_like(recurrent)]
    blocks = xs.reshape(-1, steps, size.batch, size.input)
    return jax.lax.scan(block, (zeros, sums), blocks)

  return interleaved.compile(run, *_arrays(gates, size))


def gates_alone(size: Size) -> interleaved.Program:
  """An LSTM that goes no further than its gates, and stores nothing."""
  steps = _steps(size)

  def gates(drive):
    # Gates are sigmoids or tanh, which is the cheaper. The barrier keeps XLA
    # from making only those that are used.
    return jax.lax.optimization_barrier(jnp.tanh(drive))[..., : size.hidden]

  def run(inputs, recurrent, xs):
    xs = xs[:, 0] if size.batch == 1 else xs  # vectors are faster there
    step = lambda hidden, drive: (gates(hidden @ recurrent + drive), None)
    block = lambda hidden, xs: jax.lax.scan(step, hidden, xs @ inputs)
    zeros = jnp.zeros((*xs.shape[1:-1], size.hidden))
    return jax.lax.scan(block, zeros, xs.reshape(-1, steps, *xs.shape[1:]))

  return interleaved.compile(run, *_arrays(4, size))


def _steps(size: Size) -> int:
  """Of a block: up to 512 rows."""
  steps = max(1, 512 // size.batch)
  return next(s for s in range(steps, 0, -1) if size.time % s == 0)


def _arrays(gates: int, size: Size) -> tuple[jax.Array, ...]:
  """Weights of inputs, recurrent weights and inputs."""
  columns = gates * size.hidden
  keys = jax.random.split(jax.random.key(0), 3)
  return (
    jax.random.normal(keys[0], (size.input, columns)) / size.input,
    jax.random.normal(keys[1], (size.hidden, columns)) / size.hidden,
    jax.random.normal(keys[2], (size.time, size.batch, size.input)),
  )


def grid_contenders(size: GridSize) -> dict[str, tuple[Callable, Any]]:
  """As `contenders`, for grids."""
  key, channels = jax.random.key(0), size.channels
  plain = mdrnn.init(key, channels, channels)
  memory = mdlstm.init(key, channels, channels)
  by = lambda cell, schedule: lambda p, xs: cell.apply(p, xs, schedule=schedule)
  return {
    "revmom, rows": (by(mdrnn, "rows"), plain),
    "revmom, wavefront": (by(mdrnn, "wavefront"), plain),
    "nested scan, differentiated by JAX": (peers.naive_grid, plain),
    "revmom MDLSTM, rows": (by(mdlstm, "rows"), memory),
    "revmom MDLSTM, wavefront": (by(mdlstm, "wavefront"), memory),
  }


def measure(
  functions: dict[str, tuple[Callable, Any]],
  xs: jax.Array,
  backward: bool,
  extra: dict[str, interleaved.Program],
  torch: peers.Torch | None,
  rounds: int,
) -> list[dict[str, Any]]:
  """One row for each contender."""

  def gradients(function):
    def run(params, xs, bars):
      outputs, pull = jax.vjp(function, params, xs)
      return outputs, pull(bars)

    return run

  programs = {}
  for name, (function, params) in functions.items():
    if backward:
      shape = jax.eval_shape(function, params, xs).shape
      bars = jax.random.normal(jax.random.key(2), shape)
      programs[name] = interleaved.compile(
        gradients(function), params, xs, bars
      )
    else:
      programs[name] = interleaved.compile(function, params, xs)
  programs |= extra
  rows = [
    {
      "name": name,
      "temp_bytes": program.memory["temp"],
      "compile_s": program.compile_s,
    }
    for name, program in programs.items()
  ]
  for program in programs.values():
    program.run()
  if torch is not None:
    rows.append({"name": TORCH, "temp_bytes": None, "compile_s": None})
  times: dict[str, list[float]] = {row["name"]: [] for row in rows}
  for _ in range(rounds):
    for name, seconds in interleaved.time_rounds(programs, 1, math.inf).items():
      times[name] += seconds
    if torch is not None:
      once = torch.seconds(1)
      times[TORCH].append(torch.seconds(max(1, math.ceil(0.2 / once))))
  return [row | {"seconds": times[row["name"]]} for row in rows]


def cores() -> int:
  """That this process may use."""
  return len(os.sched_getaffinity(0))


def sequences(kind: str, size: Size, rounds: int) -> list[dict[str, Any]]:
  """Both measurements of a cell at a size."""
  keys = jax.random.split(jax.random.key(1))
  xs = jax.random.normal(keys[0], (size.time, size.batch, size.input))
  runs = []
  for what, backward in (("gradients", True), ("forward", False)):
    functions = contenders(kind, size)
    if not backward:
      functions = {
        name: function
        for name, function in functions.items()
        if name == "revmom" or not name.startswith("revmom")
      }
    torch = None
    if kind != "ugrnn" and peers.installed("torch"):
      torch = peers.Torch(kind.upper(), size, backward, cores())
    extra = {BOUND: products(kind, size, backward)}
    if (kind, what) == ("lstm", "forward"):
      extra[GATES] = gates_alone(size)
    rows = measure(functions, xs, backward, extra, torch, rounds)
    if torch is not None:
      torch.close()
    runs.append({"kind": kind, "what": what, "size": size, "rows": rows})
  return runs


def grids(size: GridSize, rounds: int) -> dict[str, Any]:
  """Outputs and gradients on a grid."""
  shape = (size.side, size.side, size.batch, size.channels)
  xs = jax.random.normal(jax.random.key(1), shape)
  torch = None
  if peers.installed("torch"):
    torch = peers.Torch("grid", size, True, cores())
  rows = measure(grid_contenders(size), xs, True, {}, torch, rounds)
  if torch is not None:
    torch.close()
  return {"kind": "grid", "what": "gradients", "size": size, "rows": rows}


def main(argv: list[str]) -> None:
  """Measures, writes, prints."""
  if len(argv) > 1:
    raise app.UsageError(f"unknown arguments {argv[1:]}; all options are flags")
  quick = _QUICK.value
  sizes = (Size(2, 8, 4, 4),) if quick else SIZES
  grid_sizes = (GridSize(4, 2, 4),) if quick else GRIDS
  rounds = 2 if quick else _ROUNDS.value
  result: dict[str, Any] = {
    "environment": interleaved.environment(),
    "runs": [
      run
      for kind in ("lstm", "gru", "ugrnn")
      for size in sizes
      for run in sequences(kind, size, rounds)
    ]
    + [grids(size, rounds) for size in grid_sizes],
  }
  text = tables(result)
  print(text)
  if not quick:
    _RESULTS.parent.mkdir(parents=True, exist_ok=True)
    _RESULTS.write_text(json.dumps(result, indent=1) + "\n")
    report.insert(_DOCUMENT, text, "recurrent")


def tables(result: dict[str, Any]) -> str:
  """The tables of docs/benchmarks.md."""
  parts = [
    "## Recurrent cells",
    "`python benchmarks/recurrent.py` writes this section.  "
    + report.measured_on(result["environment"]),
    "Times are medians over rounds that ran all contenders in turn. A ratio is "
    "the median over rounds, with the lowest and the highest: above one, "
    "`revmom` is faster. torch runs in a process of its own.",
  ]
  if any(row["name"] == BOUND for run in result["runs"] for row in run["rows"]):
    parts.append(
      f"*{BOUND}* are XLA's, those of the inputs in blocks of 512 rows: no "
      f"layer made of them can be faster. *{GATES}* are an LSTM that applies "
      "tanh to the sums of its gates, goes on with a part of them and stores "
      "nothing."
    )
  for run in result["runs"]:
    parts += [_title(run), _remark(run), _table(run)]
  return "\n\n".join(part for part in parts if part)


def _ours(run: dict[str, Any]) -> str:
  return "revmom, rows" if run["kind"] == "grid" else "revmom"


def _reference(run: dict[str, Any]) -> str | None:
  if run["kind"] == "grid":
    return "nested scan, differentiated by JAX"
  return REFERENCE.get(run["kind"])


def _title(run: dict[str, Any]) -> str:
  what = {"gradients": "outputs and gradients", "forward": "outputs only"}
  size = run["size"]
  if run["kind"] == "grid":
    where = f"{size[0]} × {size[0]}, batch {size[1]}, {size[2]} channels"
    return f"### MDRNN on a grid: {what[run['what']]}, {where}"
  where = "batch {}, time {}, input {}, hidden {}".format(*size)
  return f"### {run['kind'].upper()}: {what[run['what']]}, {where}"


def _speed(run: dict[str, Any], name: str) -> interleaved.Spread | None:
  """How much faster ours is than another one."""
  seconds = {row["name"]: row["seconds"] for row in run["rows"]}
  if name not in seconds:
    return None
  return interleaved.ratio(seconds[name], seconds[_ours(run)])


def _wanted(run: dict[str, Any]) -> float | None:
  if run["kind"] == "grid":
    return WANTED_GRID if run["size"][0] >= 32 else None
  wanted = WANTED.get((run["kind"], run["what"]))
  if wanted and run["what"] == "gradients" and run["size"][0] == 1:
    return WANTED_AT_BATCH_ONE
  return wanted


def _remark(run: dict[str, Any]) -> str:
  """Whether what was wanted was reached, and what could be."""
  wanted, reference = _wanted(run), _reference(run)
  if wanted is None or reference is None:
    return ""
  got = _speed(run, reference)
  assert got is not None
  text = (
    f"Wanted: {wanted:g} times the speed of {reference}; got "
    f"{report.spread_text(got)}"
    + (", reached." if got.median >= wanted else ", **not reached**.")
  )
  seconds = {row["name"]: row["seconds"] for row in run["rows"]}
  possible = {
    bound: f"{interleaved.ratio(seconds[reference], seconds[bound]).median:.2f}"
    for bound in (BOUND, GATES)
    if bound in seconds
  }
  if got.median < wanted and possible:
    text += (
      " A layer that took no time beside its products would reach "
      f"{possible[BOUND]}"
    )
    if GATES in possible:
      text += (
        f", one that took none beside its products and gates {possible[GATES]}"
      )
    text += "."
  return text


def _table(run: dict[str, Any]) -> str:
  body = []
  for row in run["rows"]:
    speed = _speed(run, row["name"])
    assert speed is not None
    memory, compiling = row["temp_bytes"], row["compile_s"]
    body.append(
      (
        row["name"],
        report.milliseconds(statistics.median(row["seconds"])),
        report.milliseconds(min(row["seconds"])),
        report.spread_text(speed),
        "" if memory is None else report.byte_count(memory),
        "" if compiling is None else f"{compiling:.1f}",
      )
    )
  header = (
    "contender",
    "ms",
    "least ms",
    "its time over revmom's",
    "temp memory",
    "compile s",
  )
  return report.table(header, body)


if __name__ == "__main__":
  app.run(main)
