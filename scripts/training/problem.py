"""What is trained, on what, and by what."""

import dataclasses
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

import revmom
from shared import image_data
from shared.settings import flag
from training.classifiers import MODELS


@dataclasses.dataclass(frozen=True)
class Config:
  """One experiment."""

  model: str = flag("mlp", "The classifier.", choices=sorted(MODELS))
  dataset: str = flag(
    "digits",
    "Images; all but digits need --data_dir.",
    choices=image_data.NAMES,
  )
  data_dir: str | None = flag(None, "Folder of idx files.", may_change=True)
  steps: int = flag(1000, "SGD steps.", at_least=1)
  batch_size: int = flag(
    200, "Images a step, drawn with replacement.", at_least=1
  )
  learning_rate: float = flag(0.1, "Learning rate.", at_least=0.0)
  momentum: float = flag(0.9, "Momentum, in (0, 1].")
  weight_decay: float = flag(
    0.0, "Decoupled weight decay; 0 is none.", at_least=0.0
  )
  clip: float = flag(
    0.0, "Largest global norm of a gradient; 0 is none.", at_least=0.0
  )
  seed: int = flag(0, "Of initial weights and batches.")
  memory_budget: int | None = flag(
    None,
    "Bytes on the device for integers and buffers; none is no limit.",
    at_least=1,
  )
  residue_bits: str = flag(
    "0",
    "Bits kept of each gradient, so that it may be computed otherwise going "
    "back.",
    choices=["0", "1", "2", "4", "8", "syndromes"],
  )
  reverse_microbatches: int = flag(
    1,
    "Equal parts of a batch that gradients are computed in going back; other "
    "than 1 needs --residue_bits.",
    at_least=1,
    may_change=True,
  )
  reverse_devices: int = flag(
    1,
    "Devices that a batch is spread over in going back; other than 1 needs "
    "--residue_bits.  On a CPU they are virtual.",
    at_least=1,
    may_change=True,
  )
  dtype: str = flag(
    "float32", "Of weights and activations.", choices=["float32", "bfloat16"]
  )

  @property
  def residues(self) -> int | str:
    """As `revmom.train` takes them."""
    bits = self.residue_bits
    return int(bits) if bits.isdigit() else bits

  @property
  def is_otherwise(self) -> bool:
    """Whether gradients are computed in another way going back."""
    return self.reverse_microbatches > 1 or self.reverse_devices > 1


class Problem(NamedTuple):
  """What is trained, on what, and by what."""

  params: Any
  loss_fn: Callable  # (params, indices, images, labels) -> scalar
  batches: Callable  # step -> indices of its images
  args: tuple[jax.Array, jax.Array]  # images and labels, for training
  test: tuple[jax.Array, jax.Array]
  logits: Callable  # (params, images) -> [batch, classes]
  optimizer: Any


def pose(config: Config) -> Problem:
  """Loads the data and draws the initial weights."""
  data = image_data.load(config.dataset, config.data_dir)
  dtype = jnp.dtype(config.dtype)
  to_device = lambda images, labels: (
    jnp.asarray(images, dtype),
    jnp.asarray(labels, jnp.int32),
  )
  images, labels = to_device(data.train_images, data.train_labels)
  model = MODELS[config.model](int(labels.max()) + 1, dtype)
  weights_key, batch_key = jax.random.split(jax.random.key(config.seed))

  def logits(params, images):
    return jnp.asarray(model.apply(params, images))

  def loss_fn(params, indices, images, labels):
    scores = logits(params, images[indices]).astype(jnp.float32)
    losses = optax.softmax_cross_entropy_with_integer_labels
    return losses(scores, labels[indices]).mean()

  def batches(step):
    key = jax.random.fold_in(batch_key, step)
    return jax.random.randint(key, (config.batch_size,), 0, len(labels))

  for name in ("reverse_microbatches", "reverse_devices"):
    if config.batch_size % getattr(config, name):
      raise ValueError(
        f"--{name}={getattr(config, name)} does not divide "
        f"--batch_size={config.batch_size}."
      )
  params = jax.jit(model.init)(weights_key, images[:1])
  optimizer = revmom.sgd(
    config.learning_rate,
    config.momentum,
    weight_decay=config.weight_decay or None,
  )
  if config.clip:
    optimizer = revmom.clipped(optimizer, config.clip)
  return Problem(
    params=jax.tree.map(lambda weights: weights.astype(dtype), params),
    loss_fn=loss_fn,
    batches=batches,
    args=(images, labels),
    test=to_device(data.test_images, data.test_labels),
    logits=logits,
    optimizer=optimizer,
  )


def evaluate(problem: Problem, params: Any) -> tuple[float, float]:
  """Accuracy and mean loss on the test images, in chunks."""

  @jax.jit
  def scores(params, images, labels):
    logits = jax.lax.map(
      lambda image: problem.logits(params, image[None])[0],
      images,
      batch_size=500,
    ).astype(jnp.float32)
    losses = optax.softmax_cross_entropy_with_integer_labels(logits, labels)
    return (logits.argmax(-1) == labels).mean(), losses.mean()

  accuracy, loss = scores(params, *problem.test)
  return float(accuracy), float(loss)
