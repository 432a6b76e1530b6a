"""Reversible training beside plain training, stored and checkpointed autodiff.

  python benchmarks/reversible_training.py

takes about 8 minutes on 2 idle cores, needs 8 GiB of memory (the contender
that stores everything), and `pip install "revmom[benchmarks]"` for equinox.
It writes benchmarks/results/reversible_training.json and the tables of
docs/benchmarks.md.  `--quick` is a smoke run that prints its tables only.

Timings mean something on an otherwise idle machine.  `load_before` in the JSON
says how idle it was.
"""

import json
import math
import pathlib
import time
from typing import Any

import bignum
import contenders
import interleaved
import jax
import jax.numpy as jnp
import numpy as np
import report
import workloads
from absl import app, flags, logging

import revmom

_HERE = pathlib.Path(__file__).parent
_RESULTS = _HERE / "results" / "reversible_training.json"
_DOCUMENT = _HERE.parent / "docs" / "benchmarks.md"

_QUICK = flags.DEFINE_bool(
  "quick", False, "T=100 (T=5 for the conv net), 2 rounds, prints only."
)
_STEPS = flags.DEFINE_list(
  "steps", None, "Lengths of the MLP's runs; by default 100,1000,10000."
)
_CONV_STEPS = flags.DEFINE_integer(
  "conv_steps",
  None,
  "Length of the conv net's run, by default 30; 0: none.",
  lower_bound=0,
)
_ROUNDS = flags.DEFINE_integer(
  "rounds",
  None,
  "Rounds at most; by default 5.  Runs beyond T=1000 take one.",
  lower_bound=1,
)
_BATCH_SIZE = flags.DEFINE_integer(
  "batch_size",
  200,
  "Examples in a batch; the conv net has a quarter of them.",
  lower_bound=1,
)
_LEARNING_RATE = flags.DEFINE_float("learning_rate", 0.01, "Of all runs.")
_MOMENTUM = flags.DEFINE_float(
  "momentum", 0.9, "Of all runs.", lower_bound=0.1, upper_bound=0.9999
)
_OUT = flags.DEFINE_string(
  "out", None, "The JSON file; by default beside this script."
)
_DOC = flags.DEFINE_string(
  "doc", None, "The markdown file; by default docs/benchmarks.md."
)

flags.register_validator(
  "steps",
  lambda steps: steps is None or all(n.isdigit() and int(n) for n in steps),
  "must be positive numbers separated by commas, such as 100,1000",
)

# Beyond this many steps nothing is warmed up and there is one round.
_LONG = 1000
# No further round is begun after so many seconds on one group of contenders.
_SECONDS = 120
# Of contenders on a conv net; memory is the MLP's business.
_CONV = (
  "revmom",
  "scan, every step checkpointed",
  "scan, sqrt(T) segments and steps",
  "equinox checkpointed loop",
)


def main(argv: list[str]) -> None:
  """Measures, writes, prints."""
  if len(argv) > 1:
    raise app.UsageError(f"unknown arguments {argv[1:]}; all options are flags")
  begin = time.perf_counter()
  default = "100" if _QUICK.value else "100,1000,10000"
  lengths = [int(n) for n in _STEPS.value or default.split(",")]
  rounds = _ROUNDS.value or (2 if _QUICK.value else 5)
  conv_steps = _CONV_STEPS.value
  if conv_steps is None:
    conv_steps = 5 if _QUICK.value else 30
  settings = {
    "batch_size": _BATCH_SIZE.value,
    "learning_rate": _LEARNING_RATE.value,
    "momentum": _MOMENTUM.value,
    "rounds_at_most": rounds,
    "quick": _QUICK.value,
  }
  runs = []
  result = {
    "environment": interleaved.environment(),
    "settings": settings,
    "buffers": measure_buffers(1000 if _QUICK.value else 100_000),
    "arithmetic": measure_arithmetic(rounds),
    "runs": runs,
  }
  mlp = workloads.mlp(_BATCH_SIZE.value)
  for steps in lengths:
    runs.append(measure_run(mlp, steps, rounds))
  if conv_steps:
    # Convolutions are slow on CPUs, and the ratio is what matters.
    conv = workloads.conv(math.ceil(_BATCH_SIZE.value / 4))
    runs.append(measure_run(conv, conv_steps, rounds))
  result["floors"] = report.floors(result)
  result["duration_s"] = round(time.perf_counter() - begin, 1)
  text = report.tables(result)
  print(text)
  out, document = _OUT.value, _DOC.value
  if not _QUICK.value:
    out, document = out or _RESULTS, document or _DOCUMENT
  if out:
    out = pathlib.Path(out)
    out.parent.mkdir(parents=True, exist_ok=True)
    out.write_text(json.dumps(_plain(result), indent=1, allow_nan=False) + "\n")
  if document:
    report.insert(pathlib.Path(document), text, "reversible_training")


def measure_run(
  workload: workloads.Workload, steps: int, rounds: int
) -> dict[str, Any]:
  """All contenders on one workload and length of run."""
  long = steps > _LONG
  rounds = 1 if long else rounds
  momentum = _MOMENTUM.value
  hyper = jnp.float32(_LEARNING_RATE.value), jnp.float32(momentum)
  args = workload.params, *hyper, workload.batches
  programs = {
    name: interleaved.compile(make(workload, steps, momentum), *args)
    for name, make in contenders.FORWARD.items()
  }
  outputs = {name: program.run() for name, program in programs.items()}
  state = outputs["revmom"]["state"]
  programs["revmom.rewind"] = interleaved.compile(
    contenders.rewind(workload, momentum), state, *args[1:]
  )
  outputs["revmom.rewind"] = programs["revmom.rewind"].run()
  logging.info("%s, T=%d: forward", workload.name, steps)
  times = interleaved.time_rounds(programs, rounds, _SECONDS)
  forward = _summary(programs, times, "optax")
  buffers = [b for leaf in state.leaves for b in leaf.buffers.values()]
  held = sum(array.nbytes for array in jax.tree.leaves(buffers))
  reversal = {
    "receipt_ok": bool(outputs["revmom.rewind"]["ok"]),
    "restored_error": difference(
      outputs["revmom.rewind"]["params"], _on_grid(workload.params)
    ),
    "buffer_bytes_per_parameter": held / workload.size,
    "bound_bytes_per_parameter": -steps * math.log2(momentum) / 8,
    "final_loss": float(outputs["revmom"]["losses"][-1]),
    "params_differ_from_optax": difference(
      outputs["revmom"]["params"], outputs["optax"]["params"]
    ),
  }
  del state, buffers, outputs
  return {
    "workload": workload.name,
    "description": workload.description,
    "parameters": workload.size,
    "steps": steps,
    "rounds": len(next(iter(times.values()))),
    "warmed_up": not long,
    "forward": forward,
    "reversal": reversal,
    "hypergradient": _hypergradients(workload, steps, rounds, args),
  }


def _hypergradients(workload, steps, rounds, args) -> dict[str, Any]:
  long = steps > _LONG
  programs, skipped = {}, {}
  for name, (make, longest) in contenders.HYPERGRADIENT.items():
    if steps > longest:
      skipped[name] = f"not run beyond T={longest}"
    elif workload.name == "conv" and name not in _CONV:
      skipped[name] = "not run on the conv net"
    else:
      logging.info("%s, T=%d: compiling %s", workload.name, steps, name)
      try:
        programs[name] = interleaved.compile(
          make(workload, steps, _MOMENTUM.value), *args, workload.held_out
        )
      except ImportError as error:
        skipped[name] = f"{error}"
  outputs = {}
  if not long:
    outputs = {name: program.run() for name, program in programs.items()}
  else:  # one run, warm or not, is both the answer and the time

    def keeping(name, program):
      def run():
        outputs[name] = program.run()

      return program._replace(run=run)

    programs = {name: keeping(name, p) for name, p in programs.items()}
  logging.info("%s, T=%d: hypergradients", workload.name, steps)
  times = interleaved.time_rounds(programs, rounds, _SECONDS)
  summary = _summary(programs, times, "revmom")
  reference = next(
    name
    for name in (
      "scan, every step checkpointed",
      "scan, sqrt(T) segments and steps",
    )
    if name in programs
  )
  for name, output in outputs.items():
    expected = outputs[reference]["gradient"]
    summary[name]["value"] = float(output["value"])
    summary[name]["gradient_differs_by"] = {
      argument: difference(bars, expected[argument])
      for argument, bars in output["gradient"].items()
    }
    if "restored" in output:
      summary[name]["restored_error"] = difference(
        output["restored"], workload.params
      )
  return {
    "contenders": summary,
    "reference": reference,
    "rounds": len(next(iter(times.values()))),
    "skipped": skipped,
  }


def _summary(programs, times, reference) -> dict[str, Any]:
  return {
    name: {
      "seconds": times[name],
      "median_s": interleaved.spread(times[name]).median,
      "compile_s": program.compile_s,
      "temp_bytes": program.memory["temp"],
      "output_bytes": program.memory["output"],
      f"time_over_{reference}": list(
        interleaved.ratio(times[name], times[reference])
      ),
    }
    for name, program in programs.items()
  }


def measure_buffers(longest: int) -> list[dict[str, Any]]:
  """Bytes for each parameter against the information that momentum loses."""
  rows = []
  for momentum in (0.5, 0.9, 0.98, 0.999):
    for steps in (100, 1000, 10_000, 100_000):
      if steps > longest:
        continue
      optimizer = revmom.sgd(0.1, momentum, grid=contenders.grid(momentum))
      # Shapes only: nothing of this size is ever allocated.
      state = jax.eval_shape(
        lambda optimizer=optimizer, steps=steps: optimizer.init(
          jnp.zeros(1), num_steps=steps
        )
      )
      count = lambda tree: sum(
        leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(tree)
      )
      bound = -steps * math.log2(momentum) / 8
      held = count(state.leaves[0].buffers)
      rows.append(
        {
          "momentum": momentum,
          "steps": steps,
          "bytes": held,
          "bound": bound,
          "promised": 1.03 * bound + (0.002 / 8) * steps + 4,
          "over_bound": held / bound,
          "schedule_bytes_shared": count(state.schedules),
        }
      )
  return rows


def measure_arithmetic(rounds: int) -> dict[str, Any]:
  """The cost of exactness alone: the gradient is the parameter itself."""
  steps, size, bignum_size = 200, 50_000, 1000
  momentum = _MOMENTUM.value
  workload = workloads.Workload(
    name="quadratic",
    description="half the sum of squares",
    params=jax.random.normal(jax.random.key(2), (size,)),
    loss=lambda params, batch: 0.5 * jnp.sum(params**2),
    batches=jnp.zeros(workloads.BATCHES),
    held_out=jnp.zeros(1),
  )
  hyper = jnp.float32(_LEARNING_RATE.value), jnp.float32(momentum)
  args = workload.params, *hyper, workload.batches
  programs = {
    name: interleaved.compile(make(workload, steps, momentum), *args)
    for name, make in contenders.FORWARD.items()
  }
  state = programs["revmom"].run()["state"]
  programs["revmom.rewind"] = interleaved.compile(
    contenders.rewind(workload, momentum), state, *args[1:]
  )
  gradient, _ = contenders.HYPERGRADIENT["revmom"]
  programs["hypergradient"] = interleaved.compile(
    gradient(workload, steps, momentum), *args, workload.held_out
  )
  for program in programs.values():
    program.run()
  times = interleaved.time_rounds(programs, rounds, 20)
  scale = 1e9 / (steps * size)
  slow = [
    bignum.measure(bignum_size, steps, _LEARNING_RATE.value, momentum)
    for _ in range(rounds)
  ]
  medians = {n: interleaved.spread(t).median * scale for n, t in times.items()}
  return {
    "steps": steps,
    "parameters": size,
    "bignum_parameters": bignum_size,
    "optax_ns": medians["optax"],
    "revmom_forward_ns": medians["revmom"],
    "revmom_reverse_ns": medians["revmom.rewind"],
    "revmom_hypergradient_ns": medians["hypergradient"],
    "bignum_forward_ns": interleaved.spread(r.forward_ns for r in slow).median,
    "bignum_reverse_ns": interleaved.spread(r.reverse_ns for r in slow).median,
    "bignum_buffer_bytes": slow[0].buffer_bytes,
    "bignum_exact": all(r.exact for r in slow),
    "revmom_exact": bool(programs["revmom.rewind"].run()["ok"]),
  }


def difference(tree: Any, reference: Any) -> float:
  """|a - b| / |b|, Euclidean over all leaves."""
  flat = lambda tree: np.concatenate(
    [np.ravel(leaf).astype(np.float64) for leaf in jax.tree.leaves(tree)]
  )
  a, b = flat(tree), flat(reference)
  return float(np.linalg.norm(a - b) / np.linalg.norm(b))


def _on_grid(params: Any) -> Any:
  optimizer = revmom.sgd(_LEARNING_RATE.value, _MOMENTUM.value)
  return optimizer.params(optimizer.init(params, num_steps=1))


def _plain(value: Any) -> Any:
  """For JSON: what is not finite becomes a string."""
  if isinstance(value, dict):
    return {key: _plain(item) for key, item in value.items()}
  if isinstance(value, list | tuple):
    return [_plain(item) for item in value]
  if isinstance(value, float) and not math.isfinite(value):
    return str(value)
  return value


if __name__ == "__main__":
  app.run(main)
