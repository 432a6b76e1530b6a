"""Memory and time of a gradient through many steps of a gated recurrence.

  python benchmarks/reversible_recurrences.py           # minutes on idle cores
  python benchmarks/reversible_recurrences.py --quick   # a smoke run

RevGRU and RevLSTM (MacKay, Vicol, Ba & Grosse 2018) of 256 units read 32
sequences and predict one number a step, in four ways: all states kept by a
scan, those inside of a step computed again from its state (`jax.checkpoint`),
those of blocks of the square root of the number of steps, and restored by
`revmom.depth`.  GRU and LSTM of the same size, by `revmom.cells`, stand
beside.  Memory is the compiler's count of temporary bytes of a gradient; the
ratio is that of what the scan keeps to it, both less what a run of one step
takes.  The bits are those that gates forget, a unit and step, at weights as
they are drawn.
"""

import functools
import json
import math
import pathlib
import time
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from absl import app, flags
from jax import lax

from revmom import depth
from revmom.cells import gru, lstm

_RESULTS = (
  pathlib.Path(__file__).parent / "results" / "reversible_recurrences.json"
)

QUICK = flags.DEFINE_bool("quick", False, "Few steps; writes nothing.")
REPEATS = flags.DEFINE_integer("repeats", 5, "Of each; the median counts.")

UNITS, BATCH, SIZE = 256, 32, 64
CELLS = {"RevGRU": depth.revgru, "RevLSTM": depth.revlstm}
PLAIN = {"RevGRU": gru, "RevLSTM": lstm}


def step_of(cell: Any, params: Any, read: Callable) -> Callable:
  """(carry, x) -> the next carry, what is read off: in floats."""
  functions, _ = cell.updates(params, depth.Gate(3))

  def step(carry, x):
    carry = list(carry)
    for k, function in enumerate(functions):
      gate, increment = function(x, (*carry[:k], None, *carry[k + 1 :]))
      carry[k] = gate * carry[k] + increment
    return tuple(carry), read(cell.cell.hidden_of(carry))

  return step


def kept(cell: Any, params: Any, xs: jax.Array, read: Callable) -> jax.Array:
  """All that autodiff wants is kept."""
  start = cell.initial_carry(params, xs.shape[1])
  return lax.scan(step_of(cell, params, read), start, xs)[1]


def by_step(cell: Any, params: Any, xs: jax.Array, read: Callable) -> jax.Array:
  """The states are kept."""
  start = cell.initial_carry(params, xs.shape[1])
  return lax.scan(jax.checkpoint(step_of(cell, params, read)), start, xs)[1]


def by_blocks(
  cell: Any, params: Any, xs: jax.Array, read: Callable
) -> jax.Array:
  """The states of the square root of the number of steps are kept."""
  block = math.isqrt(len(xs))
  while len(xs) % block:
    block -= 1
  step = jax.checkpoint(step_of(cell, params, read))
  part = jax.checkpoint(lambda carry, xs: lax.scan(step, carry, xs))
  start = cell.initial_carry(params, xs.shape[1])
  return lax.scan(part, start, xs.reshape(-1, block, *xs.shape[1:]))[1]


def restored(
  cell: Any, params: Any, xs: jax.Array, read: Callable, bits: float
) -> jax.Array:
  """By `revmom.depth`."""
  return cell.apply(params, xs, outputs=read, gate=depth.Gate(bits))[0]


def usual(cell: Any, params: Any, xs: jax.Array, read: Callable) -> jax.Array:
  """By `revmom.cells`, a cell that is not reversible."""
  return jax.vmap(read)(cell.apply(params, xs)[0])


WAYS: dict[str, Callable] = {
  "kept": kept,
  "by step": by_step,
  "by blocks": by_blocks,
  "revmom, 3 bits": functools.partial(restored, bits=3),
  "revmom, 1 bit": functools.partial(restored, bits=1),
}


def program(
  way: Callable, cell: Any, steps: int
) -> tuple[Callable, tuple, int]:
  """A compiled gradient, its arguments and its temporary bytes."""
  rng = np.random.default_rng(0)
  normal = lambda *shape: jnp.asarray(rng.normal(size=shape), jnp.float32)
  params = cell.init(jax.random.key(0), SIZE, UNITS)
  args = params, normal(UNITS) / UNITS**0.5, normal(steps, BATCH, SIZE)

  def objective(params, readout, xs):
    return jnp.sum(way(cell, params, xs, lambda hidden: hidden @ readout) ** 2)

  compiled = jax.jit(jax.grad(objective, (0, 1))).lower(*args).compile()
  return compiled, args, compiled.memory_analysis().temp_size_in_bytes


def measure(name: str, steps: int) -> list[dict]:
  """A row for each way."""
  ways = {way: (run, CELLS[name]) for way, run in WAYS.items()}
  usual_name = name.removeprefix("Rev")
  ways[usual_name] = usual, PLAIN[name]
  compiled, bytes_, short = {}, {}, {}
  for way, (run, cell) in ways.items():
    function, args, bytes_[way] = program(run, cell, steps)
    compiled[way] = functools.partial(function, *args)
    short[way] = program(run, cell, 1)[2]
    jax.block_until_ready(compiled[way]())
  times: dict[str, list[float]] = {way: [] for way in ways}
  for _ in range(REPEATS.value):
    for way, function in compiled.items():
      start = time.perf_counter()
      jax.block_until_ready(function())
      times[way].append(time.perf_counter() - start)
  seconds = {way: float(np.median(own)) for way, own in times.items()}
  grown = {way: max(1, bytes_[way] - short[way]) for way in ways}
  return [
    {
      "cell": name,
      "steps": steps,
      "way": way,
      "megabytes": bytes_[way] / 1e6,
      "memory_ratio": grown["kept"] / grown[way],
      "seconds": seconds[way],
      "time_ratio": seconds[way] / seconds["kept"],
    }
    for way in ways
  ]


def forgotten(name: str, steps: int, bits: float) -> float:
  """Bits that gates forget, a unit and step."""
  cell = CELLS[name]
  _, (params, _, xs), _ = program(WAYS["kept"], cell, steps)

  @jax.jit
  def total(params, xs):
    updates = cell.updates(params, depth.Gate(bits))
    return sum(depth.bits_kept(updates, cell.initial_carry(params, BATCH), xs))

  return float(total(params, xs)) / (steps * BATCH * UNITS)


def main(_: Any) -> None:
  """Measures, prints and writes."""
  rows, found = [], {}
  print(
    "| cell | steps | way | MB | memory, kept / this | seconds | time |\n"
    "|---|---|---|---|---|---|---|"
  )
  lengths = (9, 16) if QUICK.value else (100, 500, 2000)
  for name in CELLS:
    for steps in lengths:
      for row in measure(name, steps):
        rows.append(row)
        print(
          f"| {name} | {steps} | {row['way']} | {row['megabytes']:.2f} | "
          f"{row['memory_ratio']:.1f} | {row['seconds']:.3f} | "
          f"{row['time_ratio']:.2f} |",
          flush=True,
        )
    for bits in (1, 3):
      key = f"{name}, at most {bits}"
      found[key] = forgotten(name, lengths[0], bits)
      print(f"{key} bits a step: {found[key]:.3f} are kept")
  if not QUICK.value:
    text = json.dumps({"rows": rows, "bits": found}, indent=1)
    _RESULTS.write_text(text + "\n")


if __name__ == "__main__":
  app.run(main)
