"""The tables of docs/benchmarks.md, and which floors are reached."""

import math
import pathlib
from typing import Any

from interleaved import Spread, ratio, spread

_OURS = "revmom"
_CHECKPOINTED = "scan, every step checkpointed"
_EQUINOX = "equinox checkpointed loop"


def floors(result: dict[str, Any]) -> list[dict[str, Any]]:
  """What revmom set out to reach, and what was measured.

  Each has `name`, `wanted` (a number that `got` must not pass), `got` (median,
  lowest and highest) and `reached`, None if it was not measured.
  """
  find = lambda workload, steps: next(
    (
      run
      for run in result["runs"]
      if run["workload"] == workload and steps in (run["steps"], None)
    ),
    None,
  )
  mlp, conv = find("mlp", 1000), find("conv", None)
  rows = [
    _floor("forward, MLP, T=1000: time over optax", 1.15, _forward(mlp)),
    _floor("forward, conv net: time over optax", 1.05, _forward(conv)),
  ]
  for peer, time, memory in (
    (_CHECKPOINTED, 1.0, 1 / 100),
    (_EQUINOX, 1 / 1.4, 1 / 8),
  ):
    name = f"hypergradient, MLP, T=1000, over {peer}"
    rows.append(_floor(f"{name}: time", time, _time(mlp, peer)))
    rows.append(_floor(f"{name}: temporary memory", memory, _temp(mlp, peer)))
  excess = [row["bytes"] / row["promised"] for row in result["buffers"]]
  rows.append(
    _floor("buffer bytes over 1.03 bound + 0.002 bits + 1 word", 1.0, [*excess])
  )
  return rows


def _floor(name: str, wanted: float, values: Any) -> dict[str, Any]:
  got = None
  if isinstance(values, Spread):
    got = values
  elif values:
    got = spread(values)
    got = Spread(got.high, got.low, got.high)  # must hold for every one
  return {
    "name": name,
    "wanted": wanted,
    "got": None if got is None else list(got),
    "reached": None if got is None else bool(got.median <= wanted),
  }


def _forward(run: dict | None) -> Spread | None:
  if run is None:
    return None
  times = run["forward"]
  return ratio(times["revmom"]["seconds"], times["optax"]["seconds"])


def _pair(run: dict | None, peer: str) -> tuple[dict, dict] | None:
  rows = run["hypergradient"]["contenders"] if run else {}
  return (rows[_OURS], rows[peer]) if peer in rows else None


def _time(run: dict | None, peer: str) -> Spread | None:
  pair = _pair(run, peer)
  return pair and ratio(pair[0]["seconds"], pair[1]["seconds"])


def _temp(run: dict | None, peer: str) -> list[float] | None:
  pair = _pair(run, peer)
  return pair and [pair[0]["temp_bytes"] / pair[1]["temp_bytes"]]


def tables(result: dict[str, Any]) -> str:
  """Markdown."""
  parts = [_preamble(result), _floors_table(result["floors"])]
  parts += [_run_tables(run) for run in result["runs"]]
  parts += [
    _steps_table(result["runs"]),
    _buffers_table(result["buffers"]),
    _arithmetic(result),
  ]
  return "\n\n".join(part for part in parts if part)


def _preamble(result: dict[str, Any]) -> str:
  where, chosen = result["environment"], result["settings"]
  versions = ", ".join(f"{k} {v}" for k, v in where["versions"].items())
  load = where["load_before"]
  load = "unknown" if load is None else f"{load:.1f}"
  return (
    f"Measured on {where['cores']} cores of {where['processor']} "
    f"({where['backend']}; load before the start {load}), {versions}; momentum "
    f"{chosen['momentum']:g}, learning rate {chosen['learning_rate']:g}.  "
    f"The whole took {result['duration_s']:.0f} s.  Times are medians over "
    "rounds that ran all contenders in turn; a ratio is the median over "
    "rounds, with the lowest and the highest.  Temporary memory is what XLA's "
    "`memory_analysis()` says the compiled program allocates beside its "
    "arguments and results."
  )


def _floors_table(rows: list[dict[str, Any]]) -> str:
  words = {True: "yes", False: "**no**", None: "not measured"}

  def got(row):
    return "" if row["got"] is None else spread_text(Spread(*row["got"]))

  body = [
    (
      row["name"],
      f"≤ {number_text(row['wanted'])}",
      got(row),
      words[row["reached"]],
    )
    for row in rows
  ]
  return table(("what", "aim", "measured", "aim met"), body)


def _run_tables(run: dict[str, Any]) -> str:
  steps = run["steps"]
  warmed = "" if run["warmed_up"] else ", not warmed up"
  title = (
    f"### {run['workload']}, T = {steps}\n\n{run['description']}; "
    f"{run['parameters']} parameters; rounds: {run['rounds']} forward, "
    f"{run['hypergradient']['rounds']} with the hypergradient{warmed}."
  )
  forward = [
    (
      name,
      milliseconds(row["median_s"] / steps),
      spread_text(Spread(*row["time_over_optax"])),
      byte_count(row["temp_bytes"]),
      byte_count(row["output_bytes"]),
    )
    for name, row in run["forward"].items()
  ]
  forward = table(
    ("forward", "ms/step", "time over optax", "temp memory", "results"), forward
  )
  rows = run["hypergradient"]["contenders"]
  hyper = [
    (
      name,
      milliseconds(row["median_s"] / steps),
      spread_text(Spread(*row[f"time_over_{_OURS}"])),
      byte_count(row["temp_bytes"]),
      number_text(row["temp_bytes"] / rows[_OURS]["temp_bytes"]),
      _exactness(name, row, run["hypergradient"]["reference"]),
    )
    for name, row in rows.items()
  ]
  hyper = table(
    (
      "forward + hypergradient",
      "ms/step",
      "time over revmom's",
      "temp memory",
      "over revmom's",
      "exactness; gradient beside the reference's",
    ),
    hyper,
  )
  reversal = run["reversal"]
  ok = "holds" if reversal["receipt_ok"] else "**fails**"
  held, bound = (
    reversal["buffer_bytes_per_parameter"],
    reversal["bound_bytes_per_parameter"],
  )
  notes = [
    f"revmom's reversal: the receipt {ok}; the initial parameters come back "
    f"with error {reversal['restored_error']:g}.  Its buffers held {held:.2f} "
    f"bytes a parameter (information bound {bound:.2f}).  Rounding to the grid "
    "moved the trained parameters by "
    f"{reversal['params_differ_from_optax']:.1e} of their norm from optax's, "
    f"at a training loss of {reversal['final_loss']:.3g}."
  ]
  notes += [
    f"{name}: {why}." for name, why in run["hypergradient"]["skipped"].items()
  ]
  return "\n\n".join([title, forward, hyper, "  \n".join(notes)])


def _exactness(name: str, row: dict[str, Any], reference: str) -> str:
  differs = [float(d) for d in row["gradient_differs_by"].values()]
  worst = max(differs, key=lambda d: math.inf if math.isnan(d) else d)
  if name == reference:
    return "runs again; reference"
  beside = f"differs by {worst:.1e}"
  if name.startswith("revmom"):
    proved = (
      "NaN: **not exact**" if math.isnan(worst) else "bit for bit, proved"
    )
    return f"{proved}; {beside}"
  if "restored_error" in row:
    return f"restores θ₀ with error {row['restored_error']:.1e}; {beside}"
  how = "stores" if "stored" in name else "runs again"
  return f"{how}; {beside}"


def _steps_table(runs: list[dict[str, Any]]) -> str:
  own = [run for run in runs if run["workload"] == "mlp"]
  if len(own) < 2:
    return ""
  columns = {
    "optax": lambda run: run["forward"]["optax"],
    "revmom": lambda run: run["forward"]["revmom"],
    "revmom.rewind": lambda run: run["forward"]["revmom.rewind"],
    "revmom, with hypergradient": lambda run: run["hypergradient"][
      "contenders"
    ][_OURS],
  }
  per_step = {
    name: [pick(run)["median_s"] / run["steps"] for run in own]
    for name, pick in columns.items()
  }
  body = [
    (name, *map(milliseconds, times), f"{max(times) / min(times):.2f}")
    for name, times in per_step.items()
  ]
  header = "ms/step, MLP", *(f"T = {run['steps']}" for run in own), "max / min"
  return "### Time per step against the length of the run\n\n" + table(
    header, body
  )


def _buffers_table(rows: list[dict[str, Any]]) -> str:
  body = [
    (
      f"{row['momentum']:g}",
      str(row["steps"]),
      f"{row['bytes']:.0f}",
      f"{row['bound']:.2f}",
      f"{row['over_bound']:.4g}",
      f"{row['promised']:.2f}",
      byte_count(row["schedule_bytes_shared"]),
    )
    for row in rows
  ]
  return (
    "### Buffer bytes for each parameter\n\n"
    "A head of 4 bytes and words of 1 byte, against T·log2(1/β)/8, what "
    "momentum forgets.  The limit is 1.03 times that, plus 0.002 bits a step "
    "and one word (4 bytes).  The schedule is shared by all parameters.\n\n"
    + table(
      ("β", "T", "bytes", "bound", "ratio", "limit", "schedule, once"), body
    )
  )


def _arithmetic(result: dict[str, Any]) -> str:
  cost, mlp = result["arithmetic"], None
  for run in result["runs"]:
    if run["workload"] == "mlp":
      mlp = run
  body = [
    (
      "optax, float32",
      f"{cost['optax_ns']:.2f}",
      "",
      "",
      "cannot be reversed",
    ),
    (
      "revmom",
      f"{cost['revmom_forward_ns']:.2f}",
      f"{cost['revmom_reverse_ns']:.2f}",
      f"{cost['revmom_hypergradient_ns']:.2f}",
      "exact" if cost["revmom_exact"] else "**not exact**",
    ),
    (
      "bignum buffer",
      f"{cost['bignum_forward_ns']:.1f}",
      f"{cost['bignum_reverse_ns']:.1f}",
      "",
      "exact" if cost["bignum_exact"] else "**not exact**",
    ),
  ]
  slower = (cost["bignum_forward_ns"] + cost["bignum_reverse_ns"]) / (
    cost["revmom_forward_ns"] + cost["revmom_reverse_ns"]
  )
  text = (
    "### Arithmetic alone\n\n"
    "Nanoseconds for each parameter and step where the gradient costs nothing "
    f"(half the sum of squares, {cost['steps']} steps), revmom on "
    f"{cost['parameters']} parameters.  The bignum buffer (Maclaurin et al. "
    "2015; Python integers in NumPy object arrays, written anew) is too slow "
    f"for the network: it is timed on {cost['bignum_parameters']} parameters, "
    f"takes {slower:.0f} times as long both ways, and holds "
    f"{cost['bignum_buffer_bytes']:.0f} bytes a parameter with Python's "
    "overhead.\n\n"
    + table(
      (
        "ns/parameter/step",
        "forward",
        "reverse",
        "forward + hypergradient",
        "",
      ),
      body,
    )
  )
  if mlp is None:
    return text
  optax = mlp["forward"]["optax"]["median_s"] / mlp["steps"] * 1e3
  scale = mlp["parameters"] * 1e-6
  extra = (cost["revmom_forward_ns"] - cost["optax_ns"]) * scale
  back = cost["revmom_reverse_ns"] * scale
  whole = cost["revmom_hypergradient_ns"] * scale
  return text + (
    f"\n\nFor the MLP's {mlp['parameters']} parameters that is {extra:.3f} ms "
    f"a step forward beyond optax's, {back:.3f} ms back, and {whole:.3f} ms "
    "for a run with its hypergradient, adjoint included; beside "
    f"{optax:.3f} ms that a step of optax takes with its gradient "
    f"(T = {mlp['steps']})."
  )


def table(header: tuple[str, ...], body: list[tuple[str, ...]]) -> str:
  lines = [header, ("---",) * len(header), *body]
  return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def number_text(value: float) -> str:
  return f"{value:.2f}" if value >= 0.3 else f"1/{1 / value:.3g}"


def spread_text(values: Spread) -> str:
  if values.low == values.high:
    return number_text(values.median)
  median, low, high = map(number_text, values)
  return f"{median} ({low}–{high})"


def milliseconds(seconds: float) -> str:
  return f"{seconds * 1e3:.3f}"


def byte_count(count: float) -> str:
  for unit in ("B", "kB", "MB"):
    if count < 1000:
      return f"{count:.3g} {unit}"
    count /= 1000
  return f"{count:.3g} GB"


def insert(document: pathlib.Path, text: str, name: str) -> None:
  """Puts tables between a benchmark's markers, appending these if need be."""
  begin, end = f"<!-- {name}: begin -->", f"<!-- {name}: end -->"
  old = document.read_text() if document.exists() else "# Benchmarks\n"
  if begin not in old:
    old = f"{old.rstrip()}\n\n{begin}\n{end}\n"
  before, rest = old.split(begin, 1)
  after = rest.split(end, 1)[1]
  document.parent.mkdir(parents=True, exist_ok=True)
  document.write_text(f"{before}{begin}\n{text}\n{end}{after}")


def measured_on(environment: dict[str, Any]) -> str:
  """The machine and the versions, in words."""
  versions = ", ".join(f"{k} {v}" for k, v in environment["versions"].items())
  load = environment["load_before"]
  idle = "" if load is None else f"; load before the start {load:.1f}"
  return (
    f"Measured on {environment['cores']} cores of {environment['processor']} "
    f"({environment['device']}{idle}), {versions}."
  )
