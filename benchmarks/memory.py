"""The memory of a hypergradient against the length of the run.

    python benchmarks/memory.py  # compiles, runs nothing; a minute

The programs are those of `reversible_training.py`: an MLP of 44 860 parameters,
batches of 200, momentum SGD.  Temporary memory is what XLA's
`memory_analysis()` says that the compiled program allocates, and does not
depend on what else the machine does.  The result is
benchmarks/results/memory.json, of which `docs/figures.py` makes the figure of
the README.
"""

import json
import logging
import pathlib

import contenders
import interleaved
import jax
import jax.numpy as jnp
import workloads

LENGTHS = 10, 30, 100, 300, 1000, 3000, 10_000
CONTENDERS = (
  "scan, every step checkpointed",
  "equinox checkpointed loop",
  "scan, sqrt(T) segments and steps",
  "revmom",
)
OUT = pathlib.Path(__file__).parent / "results" / "memory.json"


def temporary_bytes(name: str, workload: workloads.Workload, steps: int) -> int:
  """Of the compiled program of a contender."""
  make, _ = contenders.HYPERGRADIENT[name]
  args = (
    workload.params,
    jnp.float32(0.01),
    jnp.float32(0.9),
    workload.batches,
    workload.held_out,
  )
  compiled = jax.jit(make(workload, steps, 0.9)).lower(*args).compile()
  return compiled.memory_analysis().temp_size_in_bytes


def main() -> None:
  """Compiles all, and writes the result."""
  workload = workloads.mlp(200)
  rows = []
  for steps in LENGTHS:
    row = {"steps": steps}
    for name in CONTENDERS:
      row[name] = temporary_bytes(name, workload, steps)
    logging.warning("%s", row)
    rows.append(row)
  result = {
    "environment": interleaved.environment(),
    "workload": workload.description,
    "parameters": workload.size,
    "temporary_bytes": rows,
  }
  OUT.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
  main()
