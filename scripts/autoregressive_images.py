"""Autoregressive models learn images, draw new ones and complete others.

  python scripts/autoregressive_images.py --workdir=out/images
  python scripts/autoregressive_images.py --model=diagonal_bilstm \
    --workdir=out/diagonal
  python scripts/autoregressive_images.py --data=binary_mnist --data_dir=DIR \
    --hidden_size=16 --depth=5 --batch_size=32 --steps=6000 \
    --workdir=out/binary
  python scripts/autoregressive_images.py --compare --workdir=out/compare

p(x) = prod_i p(x_i | x_1, ..., x_{i-1}) over the pixels in raster order (van
den Oord, Kalchbrenner & Kavukcuoglu 2016, "Pixel recurrent neural networks").
WaveNet, the LSTM and the Transformer read an image as a sequence.

One minute on 2 CPU cores.  Expect 1.82 bits for each number of the digits' test
images, where a model that knows how often each pixel has each value needs 2.42;
the first command's samples take a millisecond each.  --compare takes 3 minutes:
expect 1.84 after 300 steps of wavenet and of diagonal_bilstm, 2.02 of lstm.

It prints bits for each number; nats an image of binary_mnist.  The third
command takes 22 minutes and reaches 90.5 nats on test images, with 24,273
parameters, 5 layers and 8334 training images that are each seen 23 times;
independent pixels need 206.1.  The paper has 81.3 (PixelCNN of 9 layers) and
79.2 (PixelRNN of 7 diagonal BiLSTMs), by networks that are larger and trained
on more images for longer.

With --workdir it writes result.json, metrics.csv (loss by step), loss.png,
samples.png, completions.png (the lower halves of test images drawn again) and
checkpoints.  Running it again there goes on from the last one and ends in the
same weights as a run that was never interrupted.

--compare trains every model on the same batches, each for --steps steps and
for --seconds at least, and prints one table: losses after equal steps and after
equal time, beside what is counted and measured of each; table.csv, table.md
and comparison.png with --workdir, where it goes on with the models that are
missing.
"""

import functools
import pathlib
import statistics
import time
from typing import Any, NamedTuple

import jax
import numpy as np

from autoregressive import comparison, models, plots
from autoregressive.models import Data, ImageModel
from autoregressive.training import (
  Config,
  Training,
  evaluation,
  model_of,
  start,
  training_step,
)
from shared import output, training_loop
from shared.checkpointing import Checkpoints, done_before
from shared.settings import launch
from shared.training_loop import Rows

_SAMPLES = 100
_COMPLETED = 8  # test images, each completed several times
_TIMES = 4


def train(
  data: Data,
  config: Config,
  model: ImageModel,
  training: Training,
  checkpoints: Checkpoints,
) -> tuple[Training, Rows, int]:
  """Resumes, and goes on to the last step; see `training_loop.train`.

  Raises:
    FloatingPointError: a loss was not finite.
  """
  step = training_step(config, model, data)
  evaluate = evaluation(config, model, data)

  def validate(params):
    loss = evaluate(params, data.validation, data.validation_labels)
    return {"validation_loss": loss}, f"validation {loss:.3f} {data.unit}"

  return training_loop.train(
    step, training, config.num_steps, validate, checkpoints
  )


class Drawn(NamedTuple):
  """What the model draws, [N, H, W], and the seconds that it takes."""

  samples: np.ndarray
  originals: np.ndarray  # test images
  completions: np.ndarray  # [times, N, H, W]
  seconds: float  # for all samples, together


def draw(config: Config, model: ImageModel, params: Any, data: Data) -> Drawn:
  """New images, of each class in turn, and lower halves of test images."""
  height = data.test.shape[1]
  originals = data.test[:_COMPLETED]
  repeated = np.concatenate([originals] * _TIMES)
  labels = np.arange(_SAMPLES, dtype=np.int32) % models.CLASSES
  their_labels = np.concatenate([data.test_labels[:_COMPLETED]] * _TIMES)
  blank = np.zeros((_SAMPLES, *originals.shape[1:]), np.int32)

  @functools.partial(jax.jit, static_argnames="rows")
  def complete(key, params, images, label, rows):
    label = label if config.conditioned else None
    return model.complete(key, params, images, rows, label)

  keys = jax.random.split(jax.random.fold_in(jax.random.key(config.seed), 2))
  args = keys[0], params, blank, labels
  compiled = complete.lower(*args, rows=0).compile()
  begin = time.perf_counter()
  samples = np.asarray(compiled(*args))
  seconds = time.perf_counter() - begin
  completions = complete(
    keys[1], params, repeated, their_labels, rows=height // 2
  )
  completions = np.asarray(completions).reshape(_TIMES, *originals.shape)
  return Drawn(samples, originals, completions, seconds)


def write(
  workdir: pathlib.Path,
  rows: list[dict[str, float]],
  drawn: Drawn,
  result: dict[str, Any],
) -> None:
  """All files but the checkpoints."""
  drawings = {
    "loss": plots.losses(rows, result),
    "samples": plots.samples(drawn.samples, result),
    "completions": plots.completions(
      drawn.originals, drawn.completions, result
    ),
  }
  output.write_results(workdir, rows, drawings, result)


def run(config: Config, workdir: str | None = None) -> dict[str, Any]:
  """The experiment: train, evaluate, draw, write.

  Raises:
    OSError, ValueError: the data or the workdir don't go with the flags.
    FloatingPointError: a loss was not finite.
  """
  begin = time.perf_counter()
  data = models.load(config.data, config.data_dir)
  model = model_of(config, data.levels)
  training = start(config, model, data)
  path = output.folder(workdir)
  with Checkpoints(path, config, data) as checkpoints:
    training, rows, done_before = train(
      data, config, model, training, checkpoints
    )
  params = training.params
  evaluate = evaluation(config, model, data)
  drawn = draw(config, model, params, data)
  shape = data.test.shape[1:]
  result = {
    "data": config.data,
    "model": config.model,
    "unit": data.unit,
    "levels": data.levels,
    "height": shape[0],
    "width": shape[1],
    "conditioned": config.conditioned,
    "parameters": sum(leaf.size for leaf in jax.tree.leaves(params)),
    "steps": config.num_steps,
    "resumed_from": done_before,
    "test_loss": evaluate(params, data.test, data.test_labels),
    "validation_loss": rows[-1]["validation_loss"],
    "independent_test_loss": models.independent(data),
    "seconds_per_step": statistics.median(row["seconds"] for row in rows),
    "milliseconds_per_sample": 1e3 * drawn.seconds / _SAMPLES,
    "seconds": time.perf_counter() - begin,
  }
  if path is not None:
    write(path, rows, drawn, result)
  return result


def compare(config: Config, workdir: str | None = None) -> str:
  """The table of all models, beside each other.

  Raises:
    OSError, ValueError: the data or the workdir don't go with the flags.
    FloatingPointError: a loss was not finite.
  """
  data = models.load(config.data, config.data_dir)
  path = output.folder(workdir)
  rows: list[dict[str, Any]] = []
  save = lambda rows: None
  if path is not None:
    checkpoints = Checkpoints(path, config, data)
    latest = checkpoints.latest()
    rows = latest[1]["about"] if latest else []

    def save(rows: list[dict[str, Any]]) -> None:
      checkpoints.save(len(rows), np.full(1, len(rows)), rows)

  for name in list(models.SIZES)[len(rows) :]:
    rows.append(comparison.race(config.of(name), data))
    save(rows)
  text = comparison.table(rows, data.unit)
  if path is not None:
    checkpoints.close()
    columns = [{k: v for k, v in row.items() if k != "curve"} for row in rows]
    output.write_csv(path / "table.csv", columns)
    output.write_text(path / "table.md", text + "\n")
    headline = {
      f"{row['model']}_{key}": row[key]
      for row in rows
      for key in ("equal_steps", "parameters", "connections", "dataflow_rounds")
    }
    output.write_json(path / "result.json", {**headline, "models": rows})
    figure = plots.comparison(rows, data.unit)
    figure.savefig(path / "comparison.png", dpi=120)
  return text


def report(result: dict[str, Any]) -> str:
  """The result for people."""
  r = result
  origin = done_before(r)
  published = ""
  if r["data"] == models.BINARY:
    published = " (published: PixelCNN 81.3, PixelRNN 79.2)"
  return f"""\
model              {r["model"]}, {r["parameters"]:,} parameters, {r["steps"]} \
Adam steps{origin}
test               {r["test_loss"]:.3f} {r["unit"]}{published}
validation         {r["validation_loss"]:.3f} {r["unit"]}
independent pixels {r["independent_test_loss"]:.3f} {r["unit"]} on test images
samples            {r["milliseconds_per_sample"]:.2f} ms each, {_SAMPLES} \
at once
time               {r["seconds"]:.1f} s, {1e3 * r["seconds_per_step"]:.1f} ms \
a step"""


def main(config: Config, workdir: str | None) -> str:
  """What the flags ask for."""
  if config.compare:
    return compare(config, workdir)
  return report(run(config, workdir))


if __name__ == "__main__":
  launch(Config, main)
