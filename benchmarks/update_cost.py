"""What an update costs by itself, and how long programs take to build.

  python benchmarks/update_cost.py            # some 25 minutes on 2 idle cores
  python benchmarks/update_cost.py --quick    # a smoke run

The loss is a weighted sum of squares, whose gradient costs next to nothing, so
that all that is left is the update.  The first table has the time of a step,
in nanoseconds for each element, of one array and of a hundred, beside optax's
and that of `rewind` beside that of the run.  The second has the seconds that
tracing, lowering and compiling take by the number of arrays, beside a scan
over optax's steps and the gradient of such a scan that is checkpointed.
"""

import json
import pathlib
import time
from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from absl import app, flags

import revmom

_RESULTS = pathlib.Path(__file__).parent / "results" / "update_cost.json"

QUICK = flags.DEFINE_bool("quick", False, "Small sizes; writes nothing.")
ONLY = flags.DEFINE_enum("only", None, ["steps", "build"], "One table.")
REPEATS = flags.DEFINE_integer("repeats", 7, "Of each; the fastest counts.")

RATE = 1e-3
PAIRS: dict[str, tuple[Any, optax.GradientTransformation]] = {
  "sgd": (revmom.sgd(RATE, 0.9), optax.sgd(RATE, 0.9)),
  "adam": (revmom.adam(RATE), optax.adam(RATE)),
  "adamw": (revmom.adamw(RATE), optax.adamw(RATE)),
  "rmsprop": (revmom.rmsprop(RATE), optax.rmsprop(RATE, momentum=0.9)),
}
SIZES = (1000, 4000, 17_000, 170_000, 1_700_000, 10_000_000)
COUNTS = (1, 10, 100, 500)


def arrays(count: int, size: int) -> list[jax.Array]:
  """So many parameter arrays, none of them zero."""
  rng = np.random.default_rng(0)
  draw = lambda: rng.uniform(0.1, 1, size).astype(np.float32)
  return [jnp.asarray(draw()) for _ in range(count)]


def loss_fn(params: list, batch: jax.Array) -> jax.Array:
  """A weighted sum of squares."""
  return 0.5 * batch * sum(jnp.vdot(a, a) for a in params)


def by_optax(optimizer: Any, remat: bool = False) -> Callable:
  """A scan over optax's steps: (params, batches) -> params."""

  def step(carry, batch):
    params, state = carry
    gradients = jax.grad(loss_fn)(params, batch)
    updates, state = optimizer.update(gradients, state, params)
    return (optax.apply_updates(params, updates), state), None

  body = jax.checkpoint(step) if remat else step

  def run(params, batches):
    start = params, optimizer.init(params)
    return jax.lax.scan(body, start, batches)[0][0]

  return run


def by_revmom(optimizer: Any) -> Callable:
  """The same run: (params, batches) -> `revmom.Run`."""
  return lambda params, batches: revmom.train(
    loss_fn, optimizer, params, batches
  )


def fastest(function: Callable, *args: Any) -> float:
  """Seconds of the fastest call."""
  jax.block_until_ready(function(*args))
  times = []
  for _ in range(REPEATS.value):
    start = time.perf_counter()
    jax.block_until_ready(function(*args))
    times.append(time.perf_counter() - start)
  return min(times)


def step_times() -> Iterator[dict]:
  """The first table."""
  shapes = [(1, size) for size in SIZES] + [(100, 17_000)]
  for count, size in shapes[:2] if QUICK.value else shapes:
    total = count * size
    steps = max(10, min(1000, 20_000_000 // total))
    params, batches = arrays(count, size), jnp.full(steps, 1e-3)
    for name, (ours, theirs) in PAIRS.items():
      scale = 1e9 / steps / total
      run = jax.jit(by_revmom(ours))
      undo = jax.jit(
        lambda state, batches, ours=ours: (
          revmom.rewind(loss_fn, ours, state, batches).params
        )
      )
      forward = fastest(run, params, batches)
      back = fastest(undo, run(params, batches).state, batches)
      yield {
        "optimizer": name,
        "arrays": count,
        "elements": size,
        "optax": scale * fastest(jax.jit(by_optax(theirs)), params, batches),
        "revmom": scale * forward,
        "rewind": scale * back,
      }
      jax.clear_caches()


def seconds_to_build(function: Callable, *args: Any) -> float:
  """Tracing, lowering and compiling, without any cache."""
  jax.clear_caches()
  start = time.perf_counter()
  jax.jit(function).lower(*args).compile()
  return time.perf_counter() - start


def build_times() -> Iterator[dict]:
  """The second table."""
  ours, theirs = PAIRS["adamw"]
  total = lambda params: sum(jnp.sum(a) for a in params)
  for count in COUNTS[:2] if QUICK.value else COUNTS:
    args = arrays(count, 17_000), jnp.full(20, 1e-3)
    run, stored = by_revmom(ours), by_optax(theirs, remat=True)
    yield {
      "arrays": count,
      "optax": seconds_to_build(by_optax(theirs), *args),
      "revmom": seconds_to_build(run, *args),
      "gradient of optax": seconds_to_build(
        jax.grad(lambda p, b, f=stored: total(f(p, b))), *args
      ),
      "gradient of revmom": seconds_to_build(
        jax.grad(lambda p, b, f=run: total(f(p, b).params)), *args
      ),
    }


def main(_: Any) -> None:
  """Measures, prints and writes."""
  results: dict[str, list] = {"steps": [], "build": []}
  if ONLY.value != "build":
    print("| optimizer | arrays | elements | optax, ns | revmom, ns | ratio |")
    print("|---|---|---|---|---|---|")
    for row in step_times():
      results["steps"].append(row)
      print(
        f"| {row['optimizer']} | {row['arrays']} | {row['elements']} | "
        f"{row['optax']:.2f} | {row['revmom']:.2f} | "
        f"{row['revmom'] / row['optax']:.1f} (rewind / run "
        f"{row['rewind'] / row['revmom']:.2f}) |",
        flush=True,
      )
  if ONLY.value != "steps":
    print("\n| arrays | optax, s | revmom, s | gradients: optax | revmom |")
    print("|---|---|---|---|---|")
    for row in build_times():
      results["build"].append(row)
      print(
        "| " + " | ".join(f"{v:.3g}" for v in row.values()) + " |", flush=True
      )
  if not QUICK.value and ONLY.value is None:
    _RESULTS.write_text(json.dumps(results, indent=1) + "\n")


if __name__ == "__main__":
  app.run(main)
