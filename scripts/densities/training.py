"""How the flows of scripts/density.py are trained and evaluated."""

import dataclasses
import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
import optax

from densities import models
from densities.models import Data, Size
from densities.toys import TOYS
from revmom.models import Flow
from shared import training_loop
from shared.checkpointing import Checkpoints
from shared.settings import flag
from shared.training_loop import Rows, Training

CHUNK = 500  # points or images that are evaluated at once
_FIRST_BATCH = 512  # by which actnorm starts
_VALIDATED = 1000  # of the points or images for validation
_SCALES = 2


@dataclasses.dataclass(frozen=True)
class Config:
  """One experiment; None is a default that depends on the others."""

  data: str = flag(
    "two_moons",
    "Points of the plane, or images; all but digits in --data_dir.",
    choices=models.NAMES,
  )
  data_dir: str | None = flag(None, "Folder of idx files.", may_change=True)
  model: str = flag("real_nvp", "The flow.", choices=models.MODELS)
  depth: int | None = flag(
    None,
    "Couplings, by default 8 (NICE of images: 4), or Glow's steps at each of "
    "two scales, by default 4.  RealNVP of images has 7 couplings at each "
    "scale.",
    at_least=1,
  )
  hidden: int | None = flag(
    None,
    "Units or channels in each coupling's network; by default 64 for points, "
    "32 for images, 256 for NICE's vectors.",
    at_least=1,
  )
  steps: int | None = flag(
    None, "Adam steps; by default 2000 for points, 600 for images.", at_least=1
  )
  batch_size: int | None = flag(
    None,
    "Drawn with replacement; by default 256 points or 64 images.",
    at_least=1,
  )
  learning_rate: float = flag(
    2e-3, "At first; it decays to zero along a cosine.", at_least=0.0
  )
  seed: int = flag(0, "Of weights, points, noise, batches.")

  @property
  def points(self) -> bool:
    """Whether the data are points of the plane."""
    return self.data in TOYS

  def with_defaults(self) -> "Config":
    """The same experiment with nothing left open.

    Raises:
      ValueError: --depth does not go with the model.
    """
    images_of_real_nvp = self.model == "real_nvp" and not self.points
    if images_of_real_nvp and self.depth is not None:
      raise ValueError(
        f"--depth={self.depth}: RealNVP of images has 7 couplings at each "
        "scale. Leave it out, or take --model=glow."
      )
    depth, hidden = 8, 64
    if not self.points:
      depth = 7 if self.model == "real_nvp" else 4
      hidden = 256 if self.model == "nice" else 32
    return dataclasses.replace(
      self,
      depth=self.depth or depth,
      hidden=self.hidden or hidden,
      steps=self.steps or (2000 if self.points else 600),
      batch_size=self.batch_size or (256 if self.points else 64),
    )


def build(config: Config) -> Flow:
  """The flow of a config without open values."""
  size = Size(config.depth or 0, config.hidden or 0, _SCALES)
  of = models.points_flow if config.points else models.images_flow
  return of(config.model, size)


def optimizer_of(config: Config) -> optax.GradientTransformation:
  """Adam with a decaying rate."""
  return optax.adam(
    optax.cosine_decay_schedule(config.learning_rate, config.steps)
  )


def key_of(config: Config, purpose: int) -> jax.Array:
  """A random key for one purpose of an experiment."""
  return jax.random.fold_in(jax.random.key(config.seed), purpose)


def start(flow: Flow, data: Data, config: Config) -> Training:
  """Initial weights, and Adam's memory."""
  first = data.floats(key_of(config, 0), data.train[:_FIRST_BATCH])
  params = jax.jit(flow.init)(key_of(config, 1), first)
  return Training(params, optimizer_of(config).init(params))


def training_step(flow: Flow, data: Data, config: Config) -> Callable:
  """(training, number) -> the next one, and the mean loss."""
  examples = jnp.asarray(data.train)
  optimizer = optimizer_of(config)

  def loss_fn(params, batch, key):
    x = data.floats(key, batch)
    return data.losses(flow.log_prob(params, x)).mean()

  @functools.partial(jax.jit, donate_argnums=0)
  def step(training, number):
    key = jax.random.fold_in(key_of(config, 2), number)
    batch_key, noise_key = jax.random.split(key)
    shape = (config.batch_size or 0,)
    indices = jax.random.randint(batch_key, shape, 0, len(examples))
    loss, gradients = jax.value_and_grad(loss_fn)(
      training.params, examples[indices], noise_key
    )
    updates, state = optimizer.update(gradients, training.optimizer)
    return Training(optax.apply_updates(training.params, updates), state), loss

  return step


def chunks(array: np.ndarray) -> tuple[list[np.ndarray], int]:
  """Parts of one shape, the last of which ends in repetitions; their size."""
  size = min(CHUNK, len(array))
  missing = -len(array) % size
  padded = np.concatenate([array, array[:missing]])
  return np.split(padded, len(padded) // size), size


def evaluation(flow: Flow, data: Data, config: Config) -> Callable:
  """(params, examples) -> the loss of each, always with the same noise."""
  key = key_of(config, 3)

  @jax.jit
  def losses(params, batch, number):
    x = data.floats(jax.random.fold_in(key, number), batch)
    return data.losses(flow.log_prob(params, x))

  def all_of(params, examples):
    parts, _ = chunks(examples)
    found = [
      losses(params, part, np.int32(number))
      for number, part in enumerate(parts)
    ]
    return np.concatenate(found)[: len(examples)].astype(np.float64)

  return all_of


def train(
  flow: Flow,
  data: Data,
  config: Config,
  training: Training,
  checkpoints: Checkpoints,
) -> tuple[Training, Rows, int]:
  """Resumes, and goes on to the last step; see `training_loop.train`.

  Raises:
    FloatingPointError: a loss was not finite.
  """
  step = training_step(flow, data, config)
  evaluate = evaluation(flow, data, config)

  def validate(params):
    loss = float(evaluate(params, data.validation[:_VALIDATED]).mean())
    return {"validation_loss": loss}, f"validation {loss:.3f} {data.unit}"

  return training_loop.train(
    step, training, config.steps or 0, validate, checkpoints
  )
