"""Do runs come back on this device, with the settings that it has?

  python benchmarks/gpu_reversal.py

Less than ten minutes.  On an accelerator nothing is set: kernels may be
nondeterministic, autotuned anew in each program, and of TF32; that is what
residues are for.  On a CPU, which computes the same bits again in most cases,
batches go back in another order and in two parts.

Networks: the MLP of Maclaurin, Duvenaud & Adams (2015); one whose embedding is
read and whose gradient is scattered, with many indices that are the same; and
convolutions with max-pools, whose backward pass selects and scatters.  Each is
trained, rewound by another program, and differentiated through; it prints
whether every bit came back, how near to its bound each residue was, and time.
`--out` is a JSON file of all that.
"""

import json
import pathlib
import time
from collections.abc import Callable
from typing import Any, NamedTuple

import interleaved
import jax
import jax.numpy as jnp
import numpy as np
from absl import app, flags
from jax import lax

import revmom

STEPS = flags.DEFINE_integer("steps", 200, "Of each run.", lower_bound=1)
SIZE = flags.DEFINE_integer(
  "size", 256, "Examples in a batch, even.", lower_bound=2
)
SECONDS = flags.DEFINE_float("seconds", 480, "After which nothing is begun.")
OUT = flags.DEFINE_string("out", None, "The JSON file.")

OPTIMIZERS = {
  "sgd": revmom.sgd(0.05, 0.9),
  "adamw, clipped": revmom.clipped(revmom.adamw(1e-3), 1.0),
  "muon": revmom.muon(1e-2),
}
BITS = (0, 1, 2, "syndromes", 8)
VOCABULARY, LENGTH, CLASSES = 500, 32, 10


class Network(NamedTuple):
  """What is trained."""

  params: Any
  loss: Callable  # (params, batch) -> []
  batch: Callable  # step -> batch
  optimizers: tuple[str, ...]


def _normal(rng: np.random.Generator, *shape: int) -> jax.Array:
  fan_in = np.prod(shape[:-1]) or 1
  return jnp.asarray(rng.normal(size=shape) / np.sqrt(fan_in), jnp.float32)


def _cross_entropy(logits: jax.Array, labels: jax.Array) -> jax.Array:
  chosen = jnp.take_along_axis(jax.nn.log_softmax(logits), labels[:, None], 1)
  return -jnp.mean(chosen)


def mlp(size: int) -> Network:
  """784-50-50-50-10."""
  rng = np.random.default_rng(0)
  widths = (784, 50, 50, 50, CLASSES)
  params = [
    {"w": _normal(rng, m, n), "b": jnp.zeros(n)}
    for m, n in zip(widths, widths[1:], strict=False)
  ]

  def loss(params, batch):
    x, labels = batch
    for layer in params[:-1]:
      x = jnp.tanh(x @ layer["w"] + layer["b"][None])
    return _cross_entropy(x @ params[-1]["w"] + params[-1]["b"][None], labels)

  def batch(t):
    key, other = jax.random.split(jax.random.fold_in(jax.random.key(0), t))
    x = jax.random.normal(key, (size, 784))
    return x, jax.random.randint(other, (size,), 0, CLASSES)

  return Network(params, loss, batch, tuple(OPTIMIZERS))


def embedding(size: int) -> Network:
  """Means of rows of a table; a few words are most of all texts."""
  rng = np.random.default_rng(1)
  params = {
    "table": _normal(rng, VOCABULARY, 64) * jnp.sqrt(float(VOCABULARY)),
    "w": _normal(rng, 64, CLASSES),
  }

  def loss(params, batch):
    words, labels = batch
    means = jnp.mean(params["table"][words], 1)
    return _cross_entropy(jnp.tanh(means) @ params["w"], labels)

  def batch(t):
    key, other = jax.random.split(jax.random.fold_in(jax.random.key(1), t))
    drawn = jax.random.uniform(key, (size, LENGTH)) ** 6
    words = (VOCABULARY * drawn).astype(jnp.int32)
    return words, jax.random.randint(other, (size,), 0, CLASSES)

  return Network(params, loss, batch, ("sgd", "adamw, clipped"))


def max_pools(size: int) -> Network:
  """Two convolutions of 28x28 images, each followed by a max-pool."""
  rng = np.random.default_rng(2)
  params = {
    "first": _normal(rng, 3, 3, 1, 8),
    "second": _normal(rng, 3, 3, 8, 16),
    "w": _normal(rng, 7 * 7 * 16, CLASSES),
  }

  def pooled(x, kernel):
    numbers = ("NHWC", "HWIO", "NHWC")
    x = lax.conv_general_dilated(
      x, kernel, (1, 1), "SAME", dimension_numbers=numbers
    )
    window = (1, 2, 2, 1)
    return lax.reduce_window(
      jax.nn.relu(x), -jnp.inf, lax.max, window, window, "VALID"
    )

  def loss(params, batch):
    x, labels = batch
    x = pooled(pooled(x, params["first"]), params["second"])
    return _cross_entropy(x.reshape(len(x), -1) @ params["w"], labels)

  def batch(t):
    key, other = jax.random.split(jax.random.fold_in(jax.random.key(2), t))
    x = jax.random.normal(key, (size // 4, 28, 28, 1))
    return x, jax.random.randint(other, (size // 4,), 0, CLASSES)

  return Network(params, loss, batch, ("sgd", "adamw, clipped"))


NETWORKS = {"mlp": mlp, "embedding": embedding, "max-pools": max_pools}


def otherwise(loss: Callable) -> Callable:
  """The same loss, by another program; on a CPU of another order, too."""
  if jax.default_backend() != "cpu":
    return loss
  halves = revmom.accumulated(loss, 2)
  turn = lambda batch: jax.tree.map(lambda a: a[::-1], batch)
  return lambda params, batch: halves(params, turn(batch))


def measure(network: Network, optimizer: Any, bits: Any) -> dict[str, Any]:
  """One run there and back, and the hypergradient through it."""
  steps = STEPS.value

  def train(optimizer, params):
    return revmom.train(
      network.loss,
      optimizer,
      params,
      network.batch,
      num_steps=steps,
      residue_bits=bits,
    )

  def objective(optimizer, params):
    return jnp.mean(train(optimizer, params).losses[-5:])

  undo = lambda state: revmom.rewind(
    otherwise(network.loss), optimizer, state, network.batch
  )
  run = jax.jit(train)(optimizer, network.params)
  back = jax.jit(undo)(run.state)
  gradient = jax.jit(jax.grad(objective))
  bars = jax.block_until_ready(gradient(optimizer, network.params))
  begin = time.perf_counter()
  jax.block_until_ready(gradient(optimizer, network.params))
  seconds = time.perf_counter() - begin
  receipt = jax.device_get(back.receipt)
  same = jax.tree.map(np.array_equal, back.params, run.initial_params)
  numbers = [np.isfinite(bar).all() for bar in jax.tree.leaves(bars)]
  margin = receipt.margin
  return {
    "restored": bool(receipt.ok) and all(jax.tree.leaves(same)),
    "hypergradient_is_a_number": bool(all(numbers)),
    "distance": None if margin is None else float(margin.distance),
    "bound": None if margin is None else float(margin.bound),
    "in_words": receipt.describe(),
    "last_loss": float(run.losses[-1]),
    "hypergradient_ms_per_step": 1e3 * seconds / steps,
  }


def main(argv: list[str]) -> None:
  """Measures as much as there is time for, and prints it."""
  if len(argv) > 1:
    raise app.UsageError(f"unknown arguments {argv[1:]}; all options are flags")
  begin = time.monotonic()
  environment = interleaved.environment()
  print(f"jax {jax.__version__}, {jax.devices()}, {environment['xla_flags']!r}")
  rows = []
  for name, make in NETWORKS.items():
    network = make(SIZE.value)
    for optimizer in network.optimizers:
      for bits in BITS:
        what = {"network": name, "optimizer": optimizer, "residue_bits": bits}
        if time.monotonic() - begin > SECONDS.value:
          rows.append(what | {"skipped": "no time was left"})
          continue
        rows.append(what | measure(network, OPTIMIZERS[optimizer], bits))
        print(_line(rows[-1]), flush=True)
  skipped = sum("skipped" in row for row in rows)
  if skipped:
    print(f"{skipped} of {len(rows)} were skipped; raise --seconds.")
  if OUT.value:
    result = {"environment": environment, "rows": rows}
    pathlib.Path(OUT.value).write_text(json.dumps(result, indent=1) + "\n")


def _line(row: dict[str, Any]) -> str:
  margin = ""
  if row["distance"] is not None:
    margin = f", {row['distance']:.3g} of {row['bound']:.3g} units"
  return (
    f"{row['network']:10} {row['optimizer']:15} {row['residue_bits']!s:>9}: "
    f"{'every bit' if row['restored'] else 'NOT'} restored{margin}; "
    "hypergradient "
    f"{'a number' if row['hypergradient_is_a_number'] else 'NaN'}, "
    f"{row['hypergradient_ms_per_step']:.2f} ms a step; loss "
    f"{row['last_loss']:.4f}"
  )


if __name__ == "__main__":
  app.run(main)
