"""Multidimensional LSTMs classify images of digits, and where gradients go.

  python scripts/mdrnn_digits.py --workdir=out/mdrnn_digits
  python scripts/mdrnn_digits.py --dataset=mnist --data_dir=DIR \
    --workdir=out/mnist

Two levels, each an MDLSTM that sweeps over the image from all four corners;
between them, blocks of 2 x 2 positions become one (Graves & Schmidhuber 2009,
"Offline handwriting recognition with multidimensional recurrent neural
networks"); the mean over all positions decides.

One minute on 2 CPU cores.  Expect a test accuracy of 97.7 % on the digits, 97.3
to 98.7 % with seeds 0 to 4, and of 96.3 % on MNIST's after 7 minutes with 8334
of its images, each seen eight times.

gradients.png shows how the logit of an image's class depends on the memory of
every cell, at both levels and in each direction, from the adjoints of the
hand-derived backward pass: norms of 0.03 to 5 at the first level and of 0.01 to
0.8 at the second.  A position that the gradient of no image reaches is an
error.  Of a single image it may end where gates, or the tanh of a memory, round
to their limits: the share of such cells is printed; none on the digits.

With --workdir it writes result.json, metrics.csv (loss by step), loss.png,
gradients.png and checkpoints.  Running it again there goes on from the last one
and ends in the same weights as a run that was never interrupted.
"""

import dataclasses
import functools
import pathlib
import statistics
import time
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from digits import classifier, plots
from shared import image_data, output, training_loop
from shared.checkpointing import Checkpoints, done_before
from shared.settings import flag, launch
from shared.training_loop import Rows, Training

_CHUNK = 500  # images that are evaluated at once
_SHOWN = 100  # test images whose gradients are drawn


@dataclasses.dataclass(frozen=True)
class Config:
  """One experiment."""

  dataset: str = flag(
    "digits", "Images; all but digits in --data_dir.", choices=image_data.NAMES
  )
  data_dir: str | None = flag(None, "Folder of idx files.", may_change=True)
  hidden_sizes: tuple[int, ...] = flag(
    (8, 24), "Units of a direction, at the two levels.", at_least=1
  )
  steps: int = flag(1000, "Adam steps.", at_least=1)
  batch_size: int = flag(
    64, "Images a step, drawn with replacement.", at_least=1
  )
  learning_rate: float = flag(
    1e-2, "At first; it decays to zero along a cosine.", at_least=0.0
  )
  seed: int = flag(0, "Of initial weights and batches.")


def optimizer_of(config: Config) -> optax.GradientTransformation:
  """Adam with a decaying rate."""
  return optax.adam(
    optax.cosine_decay_schedule(config.learning_rate, config.steps)
  )


def training_step(config: Config, images: Any, labels: Any) -> Callable:
  """(training, number) -> the next one, and the mean loss."""
  images, labels = jnp.asarray(images), jnp.asarray(labels)
  batch_key = jax.random.fold_in(jax.random.key(config.seed), 1)
  optimizer = optimizer_of(config)

  def loss_fn(params, indices):
    scores = classifier.logits(params, images[indices])
    return optax.softmax_cross_entropy_with_integer_labels(
      scores, labels[indices]
    ).mean()

  @functools.partial(jax.jit, donate_argnums=0)
  def step(training, number):
    key = jax.random.fold_in(batch_key, number)
    indices = jax.random.randint(key, (config.batch_size,), 0, len(labels))
    loss, gradients = jax.value_and_grad(loss_fn)(training.params, indices)
    updates, state = optimizer.update(gradients, training.optimizer)
    return Training(optax.apply_updates(training.params, updates), state), loss

  return step


@jax.jit
def evaluate(params, images, labels):
  """Whether each image is classified rightly, and its loss."""
  scores = classifier.logits(params, images)
  losses = optax.softmax_cross_entropy_with_integer_labels(scores, labels)
  return scores.argmax(-1) == labels, losses


def evaluation(images: np.ndarray, labels: np.ndarray) -> Callable:
  """params -> accuracy and mean loss, in chunks."""
  chunk = min(_CHUNK, len(labels))

  def mean(params):
    whole = -len(labels) % chunk  # so that all chunks have the same shape
    padded = (
      np.pad(images, [(0, whole), (0, 0), (0, 0)]),
      np.pad(labels, (0, whole)),
    )
    chunks = zip(*(np.split(p, len(p) // chunk) for p in padded), strict=True)
    results = [evaluate(params, *chunk) for chunk in chunks]
    right, losses = (
      np.concatenate(part)[: len(labels)] for part in zip(*results, strict=True)
    )
    return float(right.mean()), float(losses.mean(dtype=np.float64))

  return mean


class Reached(NamedTuple):
  """Norms of dlogit/dc over units, means over images: [directions, H, W]."""

  first: np.ndarray
  second: np.ndarray


def reached(
  params: classifier.Params, images: np.ndarray, labels: np.ndarray
) -> tuple[Reached, float]:
  """How the logit of its class depends on each cell of an image.

  Returns:
    `Reached`, and the share of the cells of single images that are not.

  Raises:
    RuntimeError: there is a position that no image's logit depends on.
  """
  adjoints = jax.jit(classifier.adjoints)(params, images, labels)
  norms = [np.linalg.norm(level, axis=-1) for level in adjoints]
  means = Reached(*(level.mean(-1) for level in norms))
  for level, mean in means._asdict().items():
    if not mean.min() > 0:
      direction, *position = np.unravel_index(mean.argmin(), mean.shape)
      raise RuntimeError(
        f"of the {level} level's sweep {classifier.DIRECTIONS[direction]} the "
        f"cells at {tuple(map(int, position))} have adjoints of norm "
        f"{mean.min()} in all of {len(images)} images: no logit depends on "
        "them."
      )
  ended = np.concatenate([~np.any(level, -1).ravel() for level in adjoints])
  return means, float(ended.mean())


def sizes_of(config: Config) -> tuple[int, int]:
  """Units of a direction at both levels.

  Raises:
    ValueError: --hidden_sizes are not two.
  """
  if len(config.hidden_sizes) != 2:
    raise ValueError(
      f"--hidden_sizes={','.join(map(str, config.hidden_sizes))}; expected two "
      "numbers, such as 8,24."
    )
  first, second = config.hidden_sizes
  return first, second


def train(
  data: image_data.Data,
  config: Config,
  training: Training,
  checkpoints: Checkpoints,
) -> tuple[Training, Rows, int]:
  """Resumes, and goes on to the last step; see `training_loop.train`.

  Raises:
    FloatingPointError: a loss was not finite.
  """
  step = training_step(config, data.train_images, data.train_labels)
  mean = evaluation(data.validation_images, data.validation_labels)

  def validate(params):
    accuracy, loss = mean(params)
    columns = {"validation_accuracy": accuracy, "validation_loss": loss}
    return columns, f"validation accuracy {accuracy:.2%}"

  return training_loop.train(
    step, training, config.steps, validate, checkpoints
  )


def write(
  workdir: pathlib.Path,
  rows: list[dict[str, float]],
  norms: Reached,
  images: np.ndarray,
  result: dict[str, Any],
) -> None:
  """All files but the checkpoints."""
  drawn = {
    "loss": plots.losses(rows, result),
    "gradients": plots.gradients(
      images.mean(0), norms, classifier.DIRECTIONS, len(images)
    ),
  }
  output.write_results(workdir, rows, drawn, result)


def run(config: Config, workdir: str | None = None) -> dict[str, Any]:
  """The experiment: train, evaluate, differentiate, write.

  Raises:
    ValueError: the data or the workdir don't go with the flags.
    FloatingPointError: a loss was not finite.
    RuntimeError: the gradient does not reach a position.
  """
  begin = time.perf_counter()
  data = image_data.load(config.dataset, config.data_dir)
  classes = int(data.train_labels.max()) + 1
  params = classifier.init(
    jax.random.key(config.seed), classes, sizes_of(config)
  )
  training = Training(params, optimizer_of(config).init(params))
  path = output.folder(workdir)
  with Checkpoints(path, config, data) as checkpoints:
    training, rows, done_before = train(data, config, training, checkpoints)
  params = training.params
  accuracy, loss = evaluation(data.test_images, data.test_labels)(params)
  shown = data.test_images[:_SHOWN], data.test_labels[:_SHOWN]
  norms, ended = reached(params, *shown)
  result = {
    "dataset": config.dataset,
    "parameters": sum(leaf.size for leaf in jax.tree.leaves(params)),
    "steps": config.steps,
    "resumed_from": done_before,
    "test_accuracy": accuracy,
    "test_loss": loss,
    "validation_accuracy": rows[-1]["validation_accuracy"],
    "final_train_loss": rows[-1]["loss"],
    "share_of_cells_without_gradient": ended,
    **{
      f"{name}_level_adjoints_{what}": float(value(array))
      for name, array in norms._asdict().items()
      for what, value in (("least", np.min), ("largest", np.max))
    },
    "seconds_per_step": statistics.median(row["seconds"] for row in rows),
    "seconds": time.perf_counter() - begin,
  }
  if path is not None:
    write(path, rows, norms, shown[0], result)
  return result


def report(result: dict[str, Any]) -> str:
  """The result for people."""
  r = result
  origin = done_before(r)
  between = lambda name: (
    f"{r[name + '_level_adjoints_least']:.2g} to "
    f"{r[name + '_level_adjoints_largest']:.2g}"
  )
  without = r["share_of_cells_without_gradient"]
  return f"""\
model              {r["parameters"]:,} parameters, {r["steps"]} Adam \
steps{origin}
test               accuracy {r["test_accuracy"]:.2%}, loss \
{r["test_loss"]:.4f} nats
validation         accuracy {r["validation_accuracy"]:.2%}
dlogit/dc          reaches every position: {between("first")} at the first \
level, {between("second")} at the second
                   {without:.2g} of the cells of single images have none
time               {r["seconds"]:.1f} s, {1e3 * r["seconds_per_step"]:.1f} ms \
a step"""


if __name__ == "__main__":
  launch(Config, run, report)
