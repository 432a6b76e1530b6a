"""What is trained, on what, and what goes wrong on the way."""

import dataclasses
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

import revmom
from shared import image_data
from shared.settings import flag

SPIKED = 30.0  # what images of a broken batch, with wrong labels, are scaled by
RENAMED = 3, 8  # labels: the first is called the second


@dataclasses.dataclass(frozen=True)
class Config:
  """One experiment."""

  dataset: str = flag(
    "digits",
    "Images; all but digits need --data_dir.",
    choices=image_data.NAMES,
  )
  data_dir: str | None = flag(None, "Folder of idx files.", may_change=True)
  steps: int = flag(400, "SGD steps of each run.", at_least=20)
  back: int = flag(50, "Steps after which a spike is noticed.", at_least=1)
  batch_size: int = flag(20, "Images a step, drawn anew.", at_least=1)
  hidden: int = flag(64, "Hidden units.", at_least=1)
  learning_rate: float = flag(0.05, "Learning rate.", at_least=0.0)
  momentum: float = flag(0.9, "Momentum, in (0, 1].")
  seed: int = flag(0, "Of initial weights and batches.")


class Problem(NamedTuple):
  """A classifier with one hidden layer, and what its steps see."""

  params: Any
  loss_fn: Callable  # (params, (images, labels, weights)) -> scalar
  optimizer: revmom.ReversibleOptimizer
  indices: np.ndarray  # of the examples of each step, [steps, batch]
  batches: Any  # (images, labels, weights), [steps, batch, ...]
  accuracy: Callable  # params -> share of validation images of one class
  validation_loss: Callable  # params -> scalar

  def without(self, example: int) -> Any:
    """The batches, in which an example has no weight."""
    images, labels, weights = self.batches
    return images, labels, np.where(self.indices == example, 0, weights)

  def spiked(self, step: int) -> Any:
    """The batches, of which one is broken."""
    images, labels, weights = (array.copy() for array in self.batches)
    images[step] *= SPIKED
    labels[step] = (labels[step] + 1) % (1 + labels.max())
    return images, labels, weights

  def renamed(self, step: int) -> Any:
    """The batches, with a wrong name for a class from a step on."""
    images, labels, weights = self.batches
    wrong = np.where(labels == RENAMED[0], RENAMED[1], labels)
    late = np.arange(len(labels))[:, None] >= step
    return images, np.where(late, wrong, labels), weights


def pose(config: Config) -> Problem:
  """The problem of a configuration.

  Raises:
    ValueError: fewer steps than a spike takes to be noticed.
  """
  if config.back >= config.steps:
    raise ValueError(
      f"--back={config.back}: a spike is noticed after fewer than "
      f"--steps={config.steps} steps."
    )
  data = image_data.load(config.dataset, config.data_dir)
  flat = lambda images: images.reshape(len(images), -1)
  rng = np.random.default_rng(config.seed)
  shape = config.steps, config.batch_size
  indices = rng.integers(len(data.train_labels), size=shape)
  pixels = flat(data.train_images).shape[1]
  params = {
    "hidden": _layer(rng, pixels, config.hidden),
    "out": _layer(rng, config.hidden, int(data.train_labels.max()) + 1),
  }

  def logits(params, images):
    hidden = jnp.tanh(images @ params["hidden"]["w"] + params["hidden"]["b"])
    return hidden @ params["out"]["w"] + params["out"]["b"]

  def loss_fn(params, batch):
    images, labels, weights = batch
    losses = optax.softmax_cross_entropy_with_integer_labels(
      logits(params, images), labels
    )
    return jnp.vdot(weights, losses) / labels.size

  own = data.validation_labels == RENAMED[0]
  seen = jnp.asarray(flat(data.validation_images)[own])
  every = flat(data.validation_images), data.validation_labels

  def accuracy(params):
    return jnp.mean(jnp.argmax(logits(params, seen), -1) == RENAMED[0])

  return Problem(
    params=params,
    loss_fn=loss_fn,
    optimizer=revmom.sgd(config.learning_rate, config.momentum),
    indices=indices,
    batches=(
      flat(data.train_images)[indices],
      data.train_labels[indices],
      np.ones(shape, np.float32),
    ),
    accuracy=jax.jit(accuracy),
    validation_loss=jax.jit(
      lambda params: loss_fn(params, (*every, jnp.ones(len(every[1]))))
    ),
  )


def _layer(rng: np.random.Generator, inputs: int, outputs: int) -> Any:
  weights = rng.normal(size=(inputs, outputs)) / np.sqrt(inputs)
  return {
    "w": weights.astype(np.float32),
    "b": np.zeros(outputs, np.float32),
  }
