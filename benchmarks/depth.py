"""Memory and time of a gradient through many layers, and its error.

  python benchmarks/depth.py            # a minute on 2 idle cores
  python benchmarks/depth.py --quick    # a smoke run

The layers are a RevNet's and a Momentum ResNet's, of perceptrons, in four ways:
all activations kept by a scan, those of every layer computed again from its
input (`jax.checkpoint`), those of blocks of the square root of the depth, and
restored by `revmom.depth.reversible_scan`.  Memory is the compiler's count of
temporary bytes of a gradient.  The error of a gradient is that beside the scan
that keeps all, relative to its largest element; reversal in floats, which
computes each carry from the next by the inverse formula, shows what drifts.
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

_RESULTS = pathlib.Path(__file__).parent / "results" / "depth.json"

QUICK = flags.DEFINE_bool("quick", False, "Small depths; writes nothing.")
REPEATS = flags.DEFINE_integer("repeats", 5, "Of each; the median counts.")

WIDTH, BATCH = 64, 128


def branch(name: str) -> Callable:
  """A perceptron whose output has half the size of its input, or so."""

  def apply(layer: dict, x: jax.Array) -> jax.Array:
    hidden = jnp.tanh(x @ layer[name])
    return 0.1 * (hidden @ layer[name].T)

  return apply


MEMBERS = {
  "RevNet": depth.revnet(branch("f"), branch("g")),
  "momentum 0.9": depth.momentum(branch("f"), 0.9),
}


def layer_step(updates: depth.Updates) -> Callable:
  """(carry, layer) -> carry, in floats."""

  def step(carry: tuple, layer: dict) -> tuple:
    values = list(carry)
    for k, (phi, rho) in enumerate(zip(*updates, strict=True)):
      seen = (*values[:k], None, *values[k + 1 :])
      kept = values[k] if rho is None else rho * values[k]
      values[k] = kept + phi(layer, seen)
    return tuple(values)

  return step


def kept(updates: depth.Updates, carry: tuple, layers: Any) -> tuple:
  """All activations kept."""
  step = layer_step(updates)
  return lax.scan(lambda c, layer: (step(c, layer), None), carry, layers)[0]


def by_layer(updates: depth.Updates, carry: tuple, layers: Any) -> tuple:
  """The carries kept, what is inside of a layer computed again."""
  step = jax.checkpoint(layer_step(updates))
  return lax.scan(lambda c, layer: (step(c, layer), None), carry, layers)[0]


def by_blocks(updates: depth.Updates, carry: tuple, layers: Any) -> tuple:
  """The carries of the square root of the depth kept."""
  number = jax.tree.leaves(layers)[0].shape[0]
  block = math.isqrt(number)
  cut = number // block * block
  blocks = jax.tree.map(
    lambda a: a[:cut].reshape(-1, block, *a.shape[1:]), layers
  )
  own = jax.checkpoint(lambda c, part: by_layer(updates, c, part))
  carry, _ = lax.scan(lambda c, part: (own(c, part), None), carry, blocks)
  rest = jax.tree.map(lambda a: a[cut:], layers)
  return by_layer(updates, carry, rest)


def float_reversal(updates: depth.Updates, carry: tuple, layers: Any) -> tuple:
  """The inverse formula in floats, as reversible networks have it."""
  step = layer_step(updates)

  def undo(carry: tuple, layer: dict) -> tuple:
    values = list(carry)
    for k in reversed(range(len(values))):
      phi, rho = updates.functions[k], updates.decays[k]
      seen = (*values[:k], None, *values[k + 1 :])
      values[k] = (values[k] - phi(layer, seen)) / (1 if rho is None else rho)
    return tuple(values)

  @jax.custom_vjp
  def run(carry, layers):
    return kept(updates, carry, layers)

  def forward(carry, layers):
    out = run(carry, layers)
    return out, (out, layers)

  def backward(residuals, bars):
    def body(state, layer):
      carry, bars = state
      before = undo(carry, layer)
      bars, layer_bar = jax.vjp(step, before, layer)[1](bars)
      return (before, bars), layer_bar

    (_, bars), layers_bar = lax.scan(
      body, (residuals[0], bars), residuals[1], reverse=True
    )
    return bars, layers_bar

  run.defvjp(forward, backward)
  return run(carry, layers)


WAYS = {
  "kept": kept,
  "by layer": by_layer,
  "by blocks": by_blocks,
  "float reversal": float_reversal,
  # Activations of a thousand layers reach 320.
  "revmom": functools.partial(depth.reversible_scan, fraction_bits=20),
}


def measure(name: str, number: int) -> list[dict]:
  """A row for each way."""
  rng = np.random.default_rng(0)
  normal = lambda *shape: jnp.asarray(rng.normal(size=shape), jnp.float32)
  layers = {k: normal(number, WIDTH, WIDTH) / WIDTH**0.5 for k in ("f", "g")}
  carry = (0 * normal(BATCH, WIDTH), normal(BATCH, WIDTH))
  weights = normal(BATCH, WIDTH)
  compiled, memory, gradients = {}, {}, {}
  for way, scan in WAYS.items():

    def objective(carry, layers, scan=scan):
      return jnp.sum(scan(MEMBERS[name], carry, layers)[1] * weights)

    program = jax.jit(jax.grad(objective, (0, 1))).lower(carry, layers)
    compiled[way] = program.compile()
    memory[way] = compiled[way].memory_analysis().temp_size_in_bytes
    gradients[way] = jax.block_until_ready(compiled[way](carry, layers))
  times: dict[str, list[float]] = {way: [] for way in WAYS}
  for _ in range(REPEATS.value):
    for way, function in compiled.items():
      start = time.perf_counter()
      jax.block_until_ready(function(carry, layers))
      times[way].append(time.perf_counter() - start)

  def error(way: str) -> float:
    pairs = zip(
      jax.tree.leaves(gradients[way]),
      jax.tree.leaves(gradients["kept"]),
      strict=True,
    )
    return max(
      float(jnp.max(jnp.abs(a - b)) / jnp.max(jnp.abs(b))) for a, b in pairs
    )

  return [
    {
      "layers": name,
      "depth": number,
      "way": way,
      "megabytes": memory[way] / 1e6,
      "seconds": float(np.median(times[way])),
      "error": error(way),
    }
    for way in WAYS
  ]


def main(_: Any) -> None:
  """Measures, prints and writes."""
  rows = []
  print(
    "| layers | depth | way | MB | seconds | error |\n|---|---|---|---|---|---|"
  )
  for name in MEMBERS:
    for number in (10, 30) if QUICK.value else (10, 100, 1000):
      for row in measure(name, number):
        rows.append(row)
        print(
          f"| {name} | {number} | {row['way']} | {row['megabytes']:.2f} | "
          f"{row['seconds']:.3f} | {row['error']:.1e} |",
          flush=True,
        )
  if not QUICK.value:
    _RESULTS.write_text(json.dumps(rows, indent=1) + "\n")


if __name__ == "__main__":
  app.run(main)
