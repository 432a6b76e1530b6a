"""How autoregressive models of images are trained and measured."""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from autoregressive import models
from autoregressive.models import Data, ImageModel, Size
from shared.settings import flag
from shared.training_loop import Training

_CHUNK = 300  # images that are evaluated at once


@dataclasses.dataclass(frozen=True)
class Config:
  """One experiment."""

  data: str = flag(
    "digits", "Images; all but digits in --data_dir.", choices=models.DATA
  )
  data_dir: str | None = flag(None, "Folder of idx files.", may_change=True)
  model: str = flag(
    "gated_pixelcnn", "The network.", choices=list(models.SIZES)
  )
  hidden_size: int | None = flag(
    None,
    "Units of a layer; by default so many that there are some 50,000 "
    "parameters.",
    at_least=1,
  )
  depth: int | None = flag(None, "Layers; by default 1 to 6.", at_least=1)
  conditioned: bool = flag(False, "Tell it the class.")
  compare: bool = flag(False, "All models, in one table.")
  steps: int | None = flag(
    None, "Adam steps; 1000, or 300 with --compare.", at_least=1
  )
  seconds: float = flag(6.0, "Of training, with --compare.", at_least=0.0)
  batch_size: int = flag(
    64, "Images a step, drawn with replacement.", at_least=1
  )
  learning_rate: float = flag(
    3e-3,
    "At first; it decays to zero along a cosine, but stays with --compare.",
    at_least=0.0,
  )
  seed: int = flag(0, "Of weights, batches and samples.")

  @property
  def num_steps(self) -> int:
    """--steps, or its default."""
    return self.steps or (300 if self.compare else 1000)

  def of(self, model: str) -> "Config":
    """The same for another model."""
    return dataclasses.replace(self, model=model)


def model_of(config: Config, levels: int) -> ImageModel:
  """The model of the flags."""
  size = models.SIZES[config.model]
  size = Size(
    config.hidden_size or size.hidden_size, config.depth or size.depth
  )
  return models.make(config.model, levels, size, config.conditioned)


def optimizer_of(config: Config) -> optax.GradientTransformation:
  """Adam with a rate that decays, unless runs of all lengths are compared."""
  rate: Any = config.learning_rate
  if not config.compare:
    rate = optax.cosine_decay_schedule(rate, config.num_steps)
  return optax.chain(optax.clip_by_global_norm(1.0), optax.adam(rate))


def training_step(config: Config, model: ImageModel, data: Data) -> Callable:
  """(training, number) -> the next one, and the loss in the data's unit."""
  images, labels = jnp.asarray(data.train), jnp.asarray(data.train_labels)
  batch_key = jax.random.fold_in(jax.random.key(config.seed), 1)
  optimizer = optimizer_of(config)

  def loss_fn(params, indices):
    label = labels[indices] if config.conditioned else None
    nats = -model.log_prob(params, images[indices], label).mean()
    return data.in_unit(nats)

  @functools.partial(jax.jit, donate_argnums=0)
  def step(training, number):
    key = jax.random.fold_in(batch_key, number)
    indices = jax.random.randint(key, (config.batch_size,), 0, len(labels))
    loss, gradients = jax.value_and_grad(loss_fn)(training.params, indices)
    updates, state = optimizer.update(gradients, training.optimizer)
    return Training(optax.apply_updates(training.params, updates), state), loss

  return step


def evaluation(config: Config, model: ImageModel, data: Data) -> Callable:
  """(params, images, labels) -> the mean loss, in the data's unit."""

  @jax.jit
  def evaluate(params, images, labels):
    label = labels if config.conditioned else None
    return -model.log_prob(params, images, label)

  def mean(params, images, labels):
    chunk = min(_CHUNK, len(images))
    # So that all chunks have the same shape.
    whole = np.arange(len(images) + -len(images) % chunk) % len(images)
    nats = [
      evaluate(params, images[part], labels[part])
      for part in np.split(whole, len(whole) // chunk)
    ]
    values = np.concatenate(nats)[: len(images)]
    return float(data.in_unit(values.mean(dtype=np.float64)))

  return mean


def losses(
  evaluate: Callable, data: Data, training: Training
) -> dict[str, float]:
  """Of validation and of test images."""
  params = training.params
  return {
    "validation": evaluate(params, data.validation, data.validation_labels),
    "test": evaluate(params, data.test, data.test_labels),
  }


def start(config: Config, model: ImageModel, data: Data) -> Training:
  """Before the first step, without shared buffers: a step donates them all."""
  params = model.init(jax.random.key(config.seed), data.train[:1])
  training = Training(params, optimizer_of(config).init(params))
  return jax.tree.map(jnp.array, training)
