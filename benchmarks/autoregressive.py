"""Autoregressive models: sampling, training, and all of them in one table.

python benchmarks/autoregressive.py          # 4 minutes; docs/benchmarks.md
python benchmarks/autoregressive.py --quick  # a minute; only prints

Sampling with caches is measured beside the same network without them, and
beside PyTorch, which computes a PixelCNN anew for every pixel; a step of
training beside plain convolutions in Flax.  All contenders of a table run in
turn in every round.  The models of the last table are trained one after the
other.
"""

import json
import math
import os
import pathlib
import statistics
import sys
from collections.abc import Callable
from typing import Any, NamedTuple

import autoregressive_peers as peers
import interleaved
import jax
import jax.numpy as jnp
import numpy as np
import optax
import recurrent_peers
import report
from absl import app, flags

from revmom.models import Autoregressive, bernoulli, pixelcnn, uncached

_ROOT = pathlib.Path(__file__).parents[1]
# Before the folder of this file, which has the name of a folder there.
sys.path.insert(0, str(_ROOT / "scripts"))
from autoregressive import comparison, models  # noqa: E402
from autoregressive.training import Config  # noqa: E402

_QUICK = flags.DEFINE_bool("quick", False, "tiny sizes; only prints")
_ROUNDS = flags.DEFINE_integer("rounds", 5, "times that all contenders run")
_RESULTS = pathlib.Path(__file__).parent / "results" / "autoregressive.json"
_DOCUMENT = _ROOT / "docs" / "benchmarks.md"

CACHED, WHOLE, TORCH = "cached", "whole network for every pixel", "torch"
OURS, PLAIN, MASKED = "revmom", "flax convolutions", "flax, masked kernels"
WANTED_TRAINING = 1.05  # of the time of plain convolutions
RECORD = 183  # times faster: PixelCNN++ with caches on a K40, fast-pixel-cnn


class Size(NamedTuple):
  """Of a PixelCNN on binary images."""

  side: int
  batch: int
  kernel_sizes: tuple[int, ...]
  features: int


class Settings(NamedTuple):
  """Of the whole benchmark."""

  sampling: Size
  training: Size
  side: int  # of images that all models draw
  models: tuple[str, ...]
  steps: int  # of the table of models
  seconds: float


FULL = Settings(
  sampling=Size(28, 4, (7, 3, 3, 3, 3), 32),
  training=Size(28, 16, (7, *[3] * 7), 64),
  side=16,
  models=tuple(models.SIZES),
  steps=150,
  seconds=4.0,
)
QUICK = Settings(
  sampling=Size(6, 2, (3, 3), 4),
  training=Size(6, 2, (3, 3), 4),
  side=4,
  models=("pixelcnn", "mdrnn"),
  steps=3,
  seconds=0.1,
)


def _model(size: Size) -> Autoregressive:
  return Autoregressive(pixelcnn(size.kernel_sizes, size.features), bernoulli())


def _images(size: Size) -> jax.Array:
  shape = (size.batch, size.side, size.side, 1)
  return jax.random.bernoulli(jax.random.key(1), 0.3, shape).astype(jnp.int32)


def _both(
  model: Autoregressive, params: Any, shape: tuple[int, ...]
) -> dict[str, interleaved.Program]:
  """Sampling with caches and without, which must give the same."""
  key = jax.random.key(2)
  plain = model._replace(network=uncached(model.network))
  programs = {
    name: interleaved.compile(
      lambda key, params, m=m: m.sample(key, params, shape), key, params
    )
    for name, m in ((CACHED, model), (WHOLE, plain))
  }
  ours, theirs = (np.asarray(program.run()) for program in programs.values())
  differ = (ours != theirs).reshape(len(ours), -1).any(-1)
  if differ.sum() > 1:  # a rounding may change one, and all that follows in it
    raise AssertionError("samples with caches differ from those without")
  return programs


def sampling(size: Size, rounds: int) -> dict[str, Any]:
  """A PixelCNN with caches, without, and in PyTorch."""
  model, images = _model(size), _images(size)
  params = model.init(jax.random.key(0), images)
  times: dict[str, list[float]] = {}
  torch = None
  if recurrent_peers.installed("torch"):
    torch = _torch(model, params, images)
    times[TORCH] = []
  programs = _both(model, params, images.shape)
  times |= {name: [] for name in programs}
  for _ in range(rounds):
    for name, seconds in interleaved.time_rounds(programs, 1, math.inf).items():
      times[name] += seconds
    if torch is not None:
      times[TORCH].append(torch.seconds())
  if torch is not None:
    torch.close()
  return {"size": size, "seconds": times}


def _torch(
  model: Autoregressive, params: Any, images: jax.Array
) -> peers.TorchPixelCNN:
  """PyTorch with the same weights; its outputs are compared."""
  network, inputs = model.network, model.conditional.encode(images)
  cache = network.start(params, images.shape, None)
  layers = []
  for layer, used in zip(params.layers, cache.layers, strict=True):
    kernel = np.zeros(layer.weights.shape, np.float32)
    flat = kernel.reshape(-1, *kernel.shape[2:])
    flat[: len(used.weights)] = used.weights
    layers.append((kernel, np.asarray(used.bias)))
  last = np.asarray(cache.last.weights)[None, None]
  layers.append((last, np.asarray(cache.last.bias)))
  torch = peers.TorchPixelCNN(layers, np.asarray(inputs), _cores())
  ours = network.forward(params, inputs, None)[..., 0, 0]
  np.testing.assert_allclose(torch.outputs, ours, atol=1e-4)
  return torch


def every_cache(settings: Settings, rounds: int) -> list[dict[str, Any]]:
  """All models, with caches and without."""
  images = np.zeros((4, settings.side, settings.side), np.int32)
  rows = []
  for name in settings.models:
    model = models.make(name, 2, models.SIZES[name])
    params = model.init(jax.random.key(0), images)
    shape = model.events(images).shape
    programs = _both(model.density, params, shape)
    times = interleaved.time_rounds(programs, rounds, math.inf)
    rows.append({"model": name, "seconds": times})
  return rows


def steps(size: Size, rounds: int) -> dict[str, Any]:
  """A step of Adam on log-likelihoods: ours, and convolutions in Flax."""
  model, images = _model(size), _images(size)
  optimizer = optax.adam(1e-3)

  def step_of(log_prob: Callable) -> Callable:
    def step(params, state, images):
      loss = lambda params: -log_prob(params, images).mean()
      value, gradients = jax.value_and_grad(loss)(params)
      updates, state = optimizer.update(gradients, state)
      return optax.apply_updates(params, updates), state, value

    return step

  contenders = {OURS: (model.log_prob, model.init(jax.random.key(0), images))}
  for name, masked in ((PLAIN, False), (MASKED, True)):
    layers = peers.Convolutions(size.kernel_sizes, size.features, 1, masked)

    def log_prob(params, images, layers=layers):
      outputs = layers.apply(params, bernoulli().encode(images))
      return bernoulli().log_prob(outputs[..., None, :], images).sum((1, 2, 3))

    floats = bernoulli().encode(images)
    contenders[name] = log_prob, layers.init(jax.random.key(0), floats)
  programs = {
    name: interleaved.compile(
      step_of(log_prob), params, optimizer.init(params), images
    )
    for name, (log_prob, params) in contenders.items()
  }
  for program in programs.values():
    program.run()
  times = interleaved.time_rounds(programs, rounds, math.inf)
  return {"size": size, "seconds": times}


def race(settings: Settings) -> list[dict[str, Any]]:
  """The rows of the table of models, on the digits."""
  data = models.load("digits", None)
  config = Config(compare=True, steps=settings.steps, seconds=settings.seconds)
  return [comparison.race(config.of(name), data) for name in settings.models]


def _cores() -> int:
  return len(os.sched_getaffinity(0))


def main(argv: list[str]) -> None:
  """Measures, writes, prints."""
  if len(argv) > 1:
    raise app.UsageError(f"unknown arguments {argv[1:]}; all options are flags")
  quick = _QUICK.value
  settings = QUICK if quick else FULL
  rounds = 2 if quick else _ROUNDS.value
  result: dict[str, Any] = {
    "environment": interleaved.environment(),
    "settings": settings._asdict(),
    "sampling": sampling(settings.sampling, rounds),
    "every_cache": every_cache(settings, min(3, rounds)),
    "training": steps(settings.training, rounds),
    "models": race(settings),
  }
  text = tables(result)
  print(text)
  if not quick:
    _RESULTS.parent.mkdir(parents=True, exist_ok=True)
    _RESULTS.write_text(json.dumps(result, indent=1) + "\n")
    report.insert(_DOCUMENT, text, "autoregressive")


def tables(result: dict[str, Any]) -> str:
  """The tables of docs/benchmarks.md."""
  return "\n\n".join(
    [
      "## Autoregressive models",
      "`python benchmarks/autoregressive.py` writes this section.  "
      + report.measured_on(result["environment"]),
      "Times are medians over rounds that ran all contenders in turn, with the "
      "lowest and the highest for ratios.",
      _sampling_table(result["sampling"]),
      _caches_table(result["every_cache"], result["settings"]["side"]),
      _training_table(result["training"]),
      _models_table(result),
    ]
  )


def _described(size: Size) -> str:
  return (
    f"{size.side} × {size.side} binary images, batch {size.batch}, "
    f"{len(size.kernel_sizes)} layers of {size.features} features"
  )


def _median(seconds: list[float]) -> str:
  return report.milliseconds(statistics.median(seconds))


def _sampling_table(run: dict[str, Any]) -> str:
  times = run["seconds"]
  body = [
    (
      name,
      _median(times[name]),
      report.spread_text(interleaved.ratio(times[name], times[CACHED])),
    )
    for name in (CACHED, WHOLE, TORCH)
    if name in times
  ]
  return (
    f"### Sampling from a PixelCNN\n\n{_described(run['size'])}.  PyTorch has "
    "the same weights, and computes the whole network for every pixel, too.  "
    f"On record is a ratio of {RECORD}, for PixelCNN++ on a GPU "
    "(PrajitR/fast-pixel-cnn).\n\n"
    + report.table(("contender", "ms a batch", "its time over cached"), body)
  )


def _caches_table(rows: list[dict[str, Any]], side: int) -> str:
  body = [
    (
      row["model"],
      _median(row["seconds"][CACHED]),
      _median(row["seconds"][WHOLE]),
      report.spread_text(
        interleaved.ratio(row["seconds"][WHOLE], row["seconds"][CACHED])
      ),
    )
    for row in rows
  ]
  return (
    f"### Sampling with caches\n\nFour binary images of {side} × {side}, by "
    "the models of the last table.\n\n"
    + report.table(("model", "cached, ms", f"{WHOLE}, ms", "ratio"), body)
  )


def _training_table(run: dict[str, Any]) -> str:
  times = run["seconds"]
  got = interleaved.ratio(times[OURS], times[PLAIN])
  reached = got.median <= WANTED_TRAINING
  body = [
    (
      name,
      _median(times[name]),
      report.spread_text(interleaved.ratio(times[name], times[PLAIN])),
    )
    for name in times
  ]
  return (
    f"### A step of training\n\nPixelCNN and Adam, {_described(run['size'])}.  "
    f"Wanted: at most {WANTED_TRAINING} times the time of {PLAIN}, which see "
    f"everything; got {report.spread_text(got)}, "
    + ("reached" if reached else "**not reached**")
    + ".\n\n"
    + report.table(("contender", "ms/step", f"over {PLAIN}"), body)
  )


def _models_table(result: dict[str, Any]) -> str:
  settings = result["settings"]
  return (
    "### All models on the digits\n\n"
    "8 × 8 images of 17 levels, batches of 64, Adam with the same constant "
    "rate, the same batches.  Losses are those of test images: after "
    f"{settings['steps']} steps; and within {settings['seconds']:g} seconds of "
    "training, where the loss of validation images is least.  Counted by "
    "`revmom.analysis.cost` for the forward pass of one image: connections, "
    "FLOPs, rounds of products that wait for each other, as loops are written "
    "and as the dataflow allows, what a gradient keeps, and the most elements "
    "that one output sees.  Samples are drawn 64 at once.\n\n"
    + comparison.table(result["models"], "bits/dim")
  )


if __name__ == "__main__":
  app.run(main)
