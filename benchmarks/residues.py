"""What residues cost, and whether training notices them.

  python benchmarks/residues.py

takes about half an hour on 2 idle cores and `pip install "revmom[benchmarks]"`.
It writes benchmarks/results/residues.json and tables of docs/benchmarks.md.
`--quick` is a smoke run that prints its tables only.

Losses: every optimizer beside its namesake in optax, from several initial
weights, with gradients that are rounded for each choice of residues.  Way back:
a long run reversed by gradients of batches in another order and in four parts.
Times mean something on an otherwise idle machine: all contenders run in turn,
and `load_before` in the JSON says how idle it was.
"""

import json
import math
import pathlib
from collections.abc import Callable
from typing import Any

import contenders
import interleaved
import jax
import jax.numpy as jnp
import numpy as np
import optimizers
import report
import workloads
from absl import app, flags

import revmom

_HERE = pathlib.Path(__file__).parent
_RESULTS = _HERE / "results" / "residues.json"
_DOCUMENT = _HERE.parent / "docs" / "benchmarks.md"
# benchmarks/optimizers.py defines --quick.
_PARTS = flags.DEFINE_list(
  "parts", ["losses", "bits", "back", "times"], "Which parts to measure."
)

BITS = (0, 1, 2, 4, 8, "syndromes")
_LOSSES = (1, 2, 8, "syndromes")
_TIMES = (0, 1, 2, "syndromes")
_BACK = (*_TIMES, 8)
_MOMENTUM = 0.9


def main(argv: list[str]) -> None:
  """Measures, writes, prints."""
  if len(argv) > 1:
    raise app.UsageError(f"unknown arguments {argv[1:]}; all options are flags")
  quick = flags.FLAGS.quick
  names = ("sgd", "muon") if quick else tuple(optimizers.PAIRS)
  mlp, conv = workloads.mlp(200), workloads.conv(50)
  parts: dict[str, Callable] = {
    "losses": lambda: [
      losses(mlp, name, *((20, 2) if quick else (1000, 5))) for name in names
    ],
    "bits": lambda: [bits(mlp, name) for name in names],
    "back": lambda: [
      back(mlp, choice, steps)
      # At the end of the longer one all batches are learned by heart.
      for steps in ((20,) if quick else (300, 10_000))
      for choice in _BACK
    ],
    "times": lambda: [
      times(mlp, *((10, 2) if quick else (200, 20))),
      times(conv, *((2, 2) if quick else (30, 20))),
    ],
  }
  result = {"environment": interleaved.environment()}
  result |= {name: parts[name]() for name in _PARTS.value}
  text = tables(result)
  print(text)
  if not quick and set(_PARTS.value) == set(parts):
    _RESULTS.write_text(json.dumps(result, indent=1) + "\n")
    report.insert(_DOCUMENT, text, "residues")


def losses(
  workload: workloads.Workload, name: str, steps: int, seeds: int
) -> dict[str, Any]:
  """Mean loss of the last tenth of a run, from several initial weights."""
  ours, theirs = optimizers.PAIRS[name]
  rng = np.random.default_rng(0)
  starts = [
    jax.tree.map(
      lambda a: a * rng.choice(np.float32([-1, 1]), a.shape), workload.params
    )
    for _ in range(seeds)
  ]
  last = max(1, steps // 10)

  def reversible(bits):
    run = lambda params, batches: revmom.train(
      workload.loss,
      ours,
      params,
      lambda t: workloads.batch_at(batches, t),
      num_steps=steps,
      residue_bits=bits,
    )
    return lambda *args: jnp.mean(run(*args).losses[-last:])

  def plain(params, batches):
    def step(carry, t):
      params, state = carry
      batch = workloads.batch_at(batches, t)
      value, gradients = jax.value_and_grad(workload.loss)(params, batch)
      updates, state = theirs.update(gradients, state, params)
      return (jax.tree.map(jnp.add, params, updates), state), value

    start = params, theirs.init(params)
    _, values = jax.lax.scan(step, start, jnp.arange(steps))
    return jnp.mean(values[-last:])

  programs = {"optax": plain, "0": reversible(0)}
  programs |= {str(bits): reversible(bits) for bits in _LOSSES}
  found = {}
  for label, program in programs.items():
    compiled = jax.jit(program)
    found[label] = [float(compiled(p, workload.batches)) for p in starts]
  return {"optimizer": name, "steps": steps, "seeds": seeds, "losses": found}


def bits(workload: workloads.Workload, name: str) -> dict[str, Any]:
  """Bits kept for each parameter and step, by what they are for."""
  ours, _ = optimizers.PAIRS[name]
  steps = 10_000
  size = lambda tree: sum(
    8 * leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(tree)
  )
  each = workload.size * steps
  rows = {}
  for choice in BITS:
    state = jax.eval_shape(
      lambda choice=choice: (
        revmom.train(
          workload.loss,
          ours,
          workload.params,
          lambda t: workloads.batch_at(workload.batches, t),
          num_steps=steps,
          residue_bits=choice,
        ).state
      )
    )
    buffers = size([leaf.buffers for leaf in state.leaves])
    rows[str(choice)] = {
      "residues": size(state.residues) / each,
      "forgotten": buffers / each,
    }
  return {"optimizer": name, "steps": steps, "bits": rows}


def in_parts(loss: Callable, parts: int) -> Callable:
  """A loss of a batch in another order and in equal parts."""
  inner = revmom.accumulated(loss, parts)
  turn = lambda batch: jax.tree.map(lambda a: a[::-1], batch)
  return lambda params, batch: inner(params, turn(batch))


def back(
  workload: workloads.Workload, choice: Any, steps: int
) -> dict[str, Any]:
  """A run of SGD, reversed in four parts: exact? how near to the bound?"""
  optimizer = revmom.sgd(0.05, _MOMENTUM)
  batches = lambda t: workloads.batch_at(workload.batches, t)
  run = jax.jit(
    lambda params: revmom.train(
      workload.loss,
      optimizer,
      params,
      batches,
      num_steps=steps,
      residue_bits=choice,
    )
  )(workload.params)
  other = in_parts(workload.loss, 4)
  undo = lambda state: revmom.rewind(other, optimizer, state, batches)
  receipt = jax.device_get(jax.jit(undo)(run.state).receipt)
  return {
    "residue_bits": choice,
    "steps": steps,
    "restored": bool(receipt.ok),
    "distance": _finite(receipt, "distance"),
    "bound": _finite(receipt, "bound"),
    "in_words": receipt.describe(),
  }


def _finite(receipt: revmom.Receipt, name: str) -> float | None:
  """A number of the margin, which JSON can hold if it is one."""
  number = float(getattr(receipt.margin, name, math.nan))
  return number if math.isfinite(number) else None


def times(
  workload: workloads.Workload, steps: int, rounds: int
) -> dict[str, Any]:
  """Forward and hypergradient, with residues over without."""

  def objective(choice):
    def of(params, rate, momentum, batches, held_out):
      optimizer = revmom.sgd(rate, momentum, grid=contenders.grid(_MOMENTUM))
      run = revmom.train(
        workload.loss,
        optimizer,
        params,
        lambda t: workloads.batch_at(batches, t),
        num_steps=steps,
        residue_bits=choice,
      )
      return workload.loss(run.params, held_out), run.state

    return of

  def gradient(choice):
    return jax.value_and_grad(lambda *args: objective(choice)(*args)[0], (0, 1))

  args = workload.params, jnp.float32(0.01), jnp.float32(_MOMENTUM)
  args = *args, workload.batches, workload.held_out
  found = {"workload": workload.description, "steps": steps}
  for name, make in (("forward", objective), ("hypergradient", gradient)):
    programs = {
      str(choice): interleaved.compile(make(choice), *args) for choice in _TIMES
    }
    if name == "hypergradient":
      for label in (
        "scan, every step checkpointed",
        "scan, sqrt(T) segments and steps",
      ):
        make_peer, _ = contenders.HYPERGRADIENT[label]
        programs[label] = interleaved.compile(
          make_peer(workload, steps, _MOMENTUM), *args
        )
    for program in programs.values():
      program.run()
    seconds = interleaved.time_rounds(programs, rounds, 120)
    found[name] = {
      label: {
        "ms_per_step": 1e3 * interleaved.spread(own).median / steps,
        "over_none": list(interleaved.ratio(own, seconds["0"])),
        "temp_bytes": programs[label].memory["temp"],
      }
      for label, own in seconds.items()
    }
  return found


def tables(result: dict[str, Any]) -> str:
  """The tables of docs/benchmarks.md."""
  parts = [
    "## Residues",
    "`python benchmarks/residues.py` writes this section.  "
    + report.measured_on(result["environment"]),
  ]
  if "losses" in result:
    parts += ["### Losses at the end of a run", _losses_table(result["losses"])]
  if "bits" in result:
    parts += [
      "### Bits for each parameter and step",
      "Residues, and what the optimizer forgets beside them.",
      _bits_table(result["bits"]),
    ]
  if "back" in result:
    parts += [
      "### The way back, in four parts of a batch",
      _back_table(result["back"]),
    ]
  for run in result.get("times", ()):
    parts += [f"### Time, {run['workload']}, T = {run['steps']}"]
    parts += [_times_table(run)]
  return "\n\n".join(parts)


def _losses_table(runs: list[dict]) -> str:
  rows = []
  for run in runs:
    mean = {k: float(np.mean(v)) for k, v in run["losses"].items()}
    spread = float(np.std(run["losses"]["optax"], ddof=1))
    # Pairs of runs from the same weights.
    worst = max(
      abs(
        float(np.mean(np.subtract(run["losses"][str(k)], run["losses"]["0"])))
      )
      for k in _LOSSES
    )
    values = [f"{mean[k]:.5f}" for k in ("optax", "0", *map(str, _LOSSES))]
    within = "yes" if worst <= spread / math.sqrt(run["seeds"]) else "NO"
    rows.append((run["optimizer"], *values, f"{spread:.5f}", within))
  header = ("optimizer", "optax", "no residues", *map(str, _LOSSES))
  return report.table((*header, "deviation of seeds", "within noise"), rows)


def _bits_table(runs: list[dict]) -> str:
  rows = [
    (
      run["optimizer"],
      f"{run['bits']['0']['forgotten']:.4f}",
      *(f"{run['bits'][str(k)]['residues']:.4f}" for k in BITS[1:]),
    )
    for run in runs
  ]
  return report.table(("optimizer", "forgotten", *map(str, BITS[1:])), rows)


def _back_table(runs: list[dict]) -> str:
  rows = [
    (
      str(run["residue_bits"]),
      str(run["steps"]),
      "yes" if run["restored"] else "no",
      "" if run["distance"] is None else f"{run['distance']:.3g}",
      "" if run["bound"] is None else f"{run['bound']:.3g}",
    )
    for run in runs
  ]
  header = ("residue_bits", "T", "every bit restored", "distance", "bound")
  return report.table(header, rows)


def _times_table(run: dict) -> str:
  rows = [
    (
      name,
      label,
      f"{row['ms_per_step']:.3f}",
      report.spread_text(interleaved.Spread(*row["over_none"])),
      report.byte_count(row["temp_bytes"]),
    )
    for name in ("forward", "hypergradient")
    for label, row in run[name].items()
  ]
  header = ("what", "residue_bits", "ms/step", "over none", "temp memory")
  return report.table(header, rows)


if __name__ == "__main__":
  app.run(main)
