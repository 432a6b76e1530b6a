"""Every reversible optimizer beside its namesake in optax.

  python benchmarks/optimizers.py

takes about 18 minutes on 2 idle cores, needs 3 GiB of memory, and
`pip install "revmom[benchmarks]"` for equinox.  It writes
benchmarks/results/optimizers.json and tables of docs/benchmarks.md.  `--quick`
is a smoke run that prints its tables only.
"""

import json
import pathlib
from collections.abc import Callable
from typing import Any

import contenders
import interleaved
import jax
import jax.numpy as jnp
import numpy as np
import optax
import report
import workloads
from absl import app, flags

import revmom

_HERE = pathlib.Path(__file__).parent
_RESULTS = _HERE / "results" / "optimizers.json"
_DOCUMENT = _HERE.parent / "docs" / "benchmarks.md"

_QUICK = flags.DEFINE_bool("quick", False, "Short runs, 2 rounds, prints only.")

RATE = 1e-3


def averaging(
  inner: optax.GradientTransformation, decay: float
) -> optax.GradientTransformation:
  """An exponential average of the parameters beside an optimizer."""

  def init(params):
    return inner.init(params), jax.tree.map(jnp.zeros_like, params)

  def update(gradients, state, params=None):
    updates, own = inner.update(gradients, state[0], params)
    moved = optax.apply_updates(params, updates)
    return updates, (own, optax.incremental_update(moved, state[1], 1 - decay))

  return optax.GradientTransformation(init, update)


# name -> (revmom's, optax's)
PAIRS: dict[str, tuple[Any, optax.GradientTransformation]] = {
  "sgd": (revmom.sgd(RATE, 0.9), optax.sgd(RATE, 0.9)),
  "adam": (revmom.adam(RATE), optax.adam(RATE)),
  "adamw": (revmom.adamw(RATE), optax.adamw(RATE)),
  "rmsprop": (revmom.rmsprop(RATE), optax.rmsprop(RATE, momentum=0.9)),
  "adagrad": (
    revmom.adagrad(RATE),
    optax.chain(optax.adagrad(RATE), optax.trace(0.9)),
  ),
  "signum": (
    revmom.signum(RATE),
    optax.chain(
      optax.ema(0.9, debias=False), optax.scale_by_sign(), optax.scale(-RATE)
    ),
  ),
  "muon": (revmom.muon(RATE), optax.contrib.muon(RATE, nesterov=False)),
  "sgd, averaged": (
    revmom.averaged(revmom.sgd(RATE, 0.9), 0.999),
    averaging(optax.sgd(RATE, 0.9), 0.999),
  ),
}
# Of traced b1 and b2; float32 rounds 1 - b up.
_GRID = revmom.Grid(
  floors={
    "first_moment": 0.9 - contenders.FLOOR_MARGIN,
    "second_moment": 0.999 - contenders.FLOOR_MARGIN,
  }
)


def main(argv: list[str]) -> None:
  """Measures, writes, prints."""
  if len(argv) > 1:
    raise app.UsageError(f"unknown arguments {argv[1:]}; all options are flags")
  quick = _QUICK.value
  rounds = 2 if quick else 5
  mlp, conv = workloads.mlp(200), workloads.conv(50)
  result = {
    "environment": interleaved.environment(),
    "bits": [bits(name, optimizer) for name, (optimizer, _) in PAIRS.items()],
    "forward": [
      # Many rounds, as a few hundredths are looked for.
      forward(mlp, 20 if quick else 400, 2 if quick else 60),
      forward(conv, 2 if quick else 30, 2 if quick else 40),
    ],
    "hypergradient": [
      hypergradient(mlp, steps, 1 if steps > 1000 else rounds)
      for steps in ((20,) if quick else (100, 1000, 10_000))
    ],
  }
  text = tables(result)
  print(text)
  if not quick:
    _RESULTS.parent.mkdir(parents=True, exist_ok=True)
    _RESULTS.write_text(json.dumps(result, indent=1) + "\n")
    report.insert(_DOCUMENT, text, "optimizers")


def bits(name: str, optimizer: Any, steps: int = 10_000) -> dict[str, Any]:
  """Bits kept for each parameter and step, against the bound."""
  params = jnp.zeros((64, 64))
  state = jax.eval_shape(lambda: optimizer.init(params, num_steps=steps))
  dynamics = optimizer.resolve(params, steps)
  forgotten = {
    role: float(np.mean(-np.log2(1 - np.asarray(f, np.float64))))
    for role, f in dynamics.forgetting(0).items()
  }
  kept = sum(
    8 * (b.words.size * b.words.dtype.itemsize + 4 * b.number.size)
    for b in state.leaves[0].buffers.values()
  )
  return {
    "optimizer": name,
    "steps": steps,
    "bound_by_role": forgotten,
    "bound": sum(forgotten.values()),
    "kept": kept / params.size / steps,
  }


def forward(
  workload: workloads.Workload, steps: int, rounds: int
) -> dict[str, Any]:
  """Training with each optimizer and its namesake; rewinding."""
  rows = []
  args = workload.params, workload.batches
  for name, (optimizer, namesake) in PAIRS.items():
    programs = {
      "revmom": interleaved.compile(train(workload, optimizer, steps), *args),
      "optax": interleaved.compile(plain(workload, namesake, steps), *args),
    }
    outputs = {name: program.run() for name, program in programs.items()}
    state = outputs["revmom"].state
    programs["rewind"] = interleaved.compile(
      rewind(workload, optimizer), state, workload.batches
    )
    receipt = programs["rewind"].run()
    times = interleaved.time_rounds(programs, rounds, 60)
    row = {"optimizer": name, "receipt_ok": bool(receipt)}
    for program, seconds in times.items():
      row[f"{program}_s"] = interleaved.spread(seconds).median / steps
      if program != "optax":
        over = interleaved.ratio(seconds, times["optax"])
        row[f"{program}_over_optax"] = list(over)
    rows.append(row)
  return {
    "workload": workload.name,
    "description": workload.description,
    "steps": steps,
    "rows": rows,
  }


def train(workload: workloads.Workload, optimizer: Any, steps: int) -> Callable:
  """(params, batches) -> run."""
  return lambda params, batches: revmom.train(
    workload.loss,
    optimizer,
    params,
    lambda t: workloads.batch_at(batches, t),
    num_steps=steps,
  )


def rewind(workload: workloads.Workload, optimizer: Any) -> Callable:
  """(state, batches) -> whether the receipt holds."""
  return lambda state, batches: (
    revmom.rewind(
      workload.loss,
      optimizer,
      state,
      lambda t: workloads.batch_at(batches, t),
    ).receipt.ok
  )


def plain(
  workload: workloads.Workload,
  optimizer: optax.GradientTransformation,
  steps: int,
  loop: Callable | None = None,
) -> Callable:
  """(params, batches) -> params and state, with optax."""
  loop = loop or contenders.store_all

  def run(params, batches):
    def step(carry, t):
      params, state = carry
      batch = workloads.batch_at(batches, t)
      gradients = jax.grad(workload.loss)(params, batch)
      updates, state = optimizer.update(gradients, state, params)
      return optax.apply_updates(params, updates), state

    return loop(step, (params, optimizer.init(params)), steps)

  return run


def hypergradient(
  workload: workloads.Workload, steps: int, rounds: int
) -> dict[str, Any]:
  """Of AdamW: held-out loss by learning rate, b1, b2, decay and the start."""
  hypers = {"learning_rate": RATE, "b1": 0.9, "b2": 0.999, "weight_decay": 1e-4}
  hypers = {name: jnp.float32(value) for name, value in hypers.items()}

  def reversible(hypers, params, batches, held_out):
    optimizer = revmom.adamw(**hypers, grid=_GRID)
    run = train(workload, optimizer, steps)(params, batches)
    return workload.loss(run.params, held_out)

  def stored(loop):
    def objective(hypers, params, batches, held_out):
      optimizer = optax.adamw(**hypers)
      final, _ = plain(workload, optimizer, steps, loop)(params, batches)
      return workload.loss(final, held_out)

    return objective

  objectives = {"revmom": reversible}
  if steps <= 1000:
    objectives["every step checkpointed"] = stored(contenders.checkpoint_steps)
    objectives["equinox checkpointed loop"] = stored(contenders.equinox_loop)
  objectives["sqrt(T) segments and steps"] = stored(
    contenders.checkpoint_nested
  )
  args = hypers, workload.params, workload.batches, workload.held_out
  programs = {
    name: interleaved.compile(jax.value_and_grad(objective, (0, 1)), *args)
    for name, objective in objectives.items()
  }
  outputs = {name: program.run() for name, program in programs.items()}
  times = interleaved.time_rounds(programs, rounds, 120)
  reference = outputs["sqrt(T) segments and steps"][1]
  flat = lambda tree: np.concatenate(
    [np.ravel(a) for a in jax.tree.leaves(tree)]
  )
  rows = []
  for name, program in programs.items():
    difference = flat(outputs[name][1]) - flat(reference)
    rows.append(
      {
        "contender": name,
        "seconds_per_step": interleaved.spread(times[name]).median / steps,
        "time_over_revmom": list(
          interleaved.ratio(times[name], times["revmom"])
        ),
        "temp_bytes": program.memory["temp"],
        "differs_by": float(
          np.linalg.norm(difference) / np.linalg.norm(flat(reference))
        ),
      }
    )
  return {"steps": steps, "rows": rows}


def tables(result: dict[str, Any]) -> str:
  """The tables of docs/benchmarks.md."""
  parts = [
    "## Every optimizer",
    "`python benchmarks/optimizers.py` writes this section.  "
    + report.measured_on(result["environment"]),
  ]
  for run in result["forward"]:
    floor = 1.2 if run["workload"] == "mlp" else 1.05
    missed = [
      row["optimizer"]
      for row in run["rows"]
      if row["revmom_over_optax"][0] > floor
    ]
    parts += [
      f"### Forward, {run['workload']}, T = {run['steps']}",
      f"{run['description']}.  Wanted: at most {floor} of optax's time; "
      + (
        f"not reached by {', '.join(missed)}." if missed else "reached by all."
      ),
      report.table(
        ("optimizer", "optax ms/step", "revmom", "rewind", "reversal"),
        [_forward_row(row) for row in run["rows"]],
      ),
    ]
  parts += [
    "### Bits for each parameter and step, T = 10000",
    report.table(
      ("optimizer", "bound", "kept", "of which each role forgets"),
      [
        (
          row["optimizer"],
          f"{row['bound']:.4f}",
          f"{row['kept']:.4f}",
          ", ".join(f"{r} {v:.5f}" for r, v in row["bound_by_role"].items()),
        )
        for row in result["bits"]
      ],
    ),
    "### AdamW: forward and hypergradient, MLP",
    report.table(
      (
        "T",
        "contender",
        "ms/step",
        "time over revmom's",
        "temp memory",
        "gradient differs by",
      ),
      [
        (
          str(run["steps"]),
          row["contender"],
          report.milliseconds(row["seconds_per_step"]),
          report.spread_text(interleaved.Spread(*row["time_over_revmom"])),
          report.byte_count(row["temp_bytes"]),
          f"{row['differs_by']:.1e}",
        )
        for run in result["hypergradient"]
        for row in run["rows"]
      ],
    ),
  ]
  return "\n\n".join(parts)


def _forward_row(row: dict[str, Any]) -> tuple[str, ...]:
  own = lambda name: (
    report.milliseconds(row[f"{name}_s"])
    + ", "
    + report.spread_text(interleaved.Spread(*row[f"{name}_over_optax"]))
  )
  return (
    row["optimizer"],
    report.milliseconds(row["optax_s"]),
    own("revmom"),
    own("rewind"),
    "proved" if row["receipt_ok"] else "FAILED",
  )


if __name__ == "__main__":
  app.run(main)
