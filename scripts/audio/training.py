"""A WaveNet of clips, how it is trained and measured."""

import dataclasses
import functools
import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from audio import recordings
from revmom.models import (
  Autoregressive,
  categorical,
  mixture_of_logistics,
  wavenet,
)
from shared import training_loop
from shared.checkpointing import Checkpoints
from shared.settings import flag
from shared.training_loop import Rows, Training

_LEVELS = 256
_CONDITIONALS = {
  "mixture_of_logistics": mixture_of_logistics(levels=_LEVELS),
  "categorical": categorical(_LEVELS),
}


_CHECKPOINTS = 5  # in a run, each with a test
_CHUNK = 16  # windows that are evaluated at once


@dataclasses.dataclass(frozen=True)
class Config:
  """One experiment."""

  data_dir: str | None = flag(
    None, "Folder of wav files; without it, plucked strings.", may_change=True
  )
  dilations: tuple[int, ...] = flag(
    tuple(2**i for i in range(7)), "Of each block's convolution.", at_least=1
  )
  conditional: str = flag(
    "categorical",
    "Distribution of a code, given what the network says.",
    choices=list(_CONDITIONALS),
  )
  residual: int = flag(32, "Channels between blocks.", at_least=1)
  skip: int = flag(64, "Channels of the sum of all blocks.", at_least=1)
  window: int = flag(512, "Samples that a clip gives to a step.", at_least=1)
  seconds: float = flag(
    0.25, "Length of generated clips.", at_least=0.01, may_change=True
  )
  steps: int = flag(1200, "Adam steps.", at_least=1)
  batch_size: int = flag(
    8, "Windows a step, drawn with replacement.", at_least=1
  )
  learning_rate: float = flag(
    6e-3,
    "After a twentieth of the steps; from there a cosine, to zero.",
    at_least=0.0,
  )
  seed: int = flag(0, "Of data, weights, batches and noise.")


def model_of(config: Config) -> Autoregressive:
  """The WaveNet of the flags."""
  network = wavenet(
    config.dilations,
    residual=config.residual,
    skip=config.skip,
    num_classes=recordings.CLASSES,
  )
  return Autoregressive(network, _CONDITIONALS[config.conditional])


def context_of(model: Autoregressive) -> int:
  """How many samples before one its distribution depends on."""
  seen = model.network.receptive_field
  assert seen is not None
  return -min(offset for (offset,) in seen)


def optimizer_of(config: Config) -> optax.GradientTransformation:
  """Adam with a rate that grows, and then decays along a cosine."""
  rate = optax.warmup_cosine_decay_schedule(
    0.0, config.learning_rate, config.steps // 20, config.steps
  )
  return optax.adam(rate)


def bits_of(
  model: Autoregressive,
  windows: recordings.Windows,
  params: Any,
  clip: jax.Array,
  offset: jax.Array,
  window: int,
) -> tuple[jax.Array, jax.Array]:
  """Sum of the bits of the samples in windows, and how many they are."""
  context = context_of(model)
  codes, inside, labels = recordings.take(
    windows, clip, offset, context, window
  )
  log_probs = model.element_log_probs(params, codes, labels)
  log_probs = log_probs[:, context:, 0]
  return -jnp.sum(log_probs, where=inside) / math.log(2), jnp.sum(inside)


def training_step(
  config: Config, model: Autoregressive, clips: recordings.Clips
) -> Callable:
  """(training, number) -> the next one, and the mean bits a sample."""
  windows = jax.tree.map(
    jnp.asarray,
    recordings.windows_of(clips, context_of(model), config.window),
  )
  batch_key = jax.random.fold_in(jax.random.key(config.seed), 1)
  optimizer = optimizer_of(config)

  def loss_fn(params, clip, offset):
    bits, count = bits_of(model, windows, params, clip, offset, config.window)
    return bits / count.astype(bits.dtype)

  @functools.partial(jax.jit, donate_argnums=0)
  def step(training, number):
    which, where = jax.random.split(jax.random.fold_in(batch_key, number))
    # So that every sample of every clip is as likely to be in the window.
    places = windows.lengths + (config.window - 1)
    logits = jnp.log(places.astype(jnp.float32))
    clip = jax.random.categorical(which, logits, shape=(config.batch_size,))
    offset = jax.random.randint(where, clip.shape, 0, places[clip])
    offset = offset - (config.window - 1)
    loss, gradients = jax.value_and_grad(loss_fn)(training.params, clip, offset)
    updates, state = optimizer.update(gradients, training.optimizer)
    return Training(optax.apply_updates(training.params, updates), state), loss

  return step


def evaluation(
  config: Config, model: Autoregressive, clips: recordings.Clips
) -> Callable:
  """params -> bits a sample of whole clips, each seen to its full context."""
  window = config.window
  windows = recordings.windows_of(clips, context_of(model), window)
  pieces = [
    (clip, offset)
    for clip, length in enumerate(windows.lengths)
    for offset in range(0, length, window)
  ]
  # Windows that begin at the end of a clip have no samples in them.
  nothing = [(0, int(windows.lengths[0]))] * (-len(pieces) % _CHUNK)
  chunks = np.array(pieces + nothing, np.int32).reshape(-1, _CHUNK, 2)
  windows = jax.tree.map(jnp.asarray, windows)

  @jax.jit
  def evaluate(params, chunk):
    return bits_of(model, windows, params, chunk[:, 0], chunk[:, 1], window)

  def mean(params):
    results = [evaluate(params, chunk) for chunk in chunks]
    bits, counts = zip(*results, strict=True)
    return float(np.sum(bits, dtype=np.float64) / np.sum(counts))

  return mean


def unigram_bits(data: recordings.Data) -> float:
  """Bits a sample of the test, for one who knows how often codes occur."""
  codes = [recordings.codes_of(clips.sounds) for clips in data]
  # One more of each, so that none is impossible.
  counts = np.bincount(codes[0], minlength=_LEVELS) + 1
  return float(-np.log2(counts / counts.sum())[codes[1]].mean())


def train(
  data: recordings.Data,
  config: Config,
  training: Training,
  checkpoints: Checkpoints,
) -> tuple[Training, Rows, int]:
  """Resumes, and goes on to the last step; see `training_loop.train`.

  Raises:
    FloatingPointError: a loss was not finite.
  """
  model = model_of(config)
  step = training_step(config, model, data.train)
  test = evaluation(config, model, data.test)

  def validate(params):
    bits = test(params)
    return {"test_bits": bits}, f"test {bits:.3f} bits a sample"

  return training_loop.train(
    step,
    training,
    config.steps,
    validate,
    checkpoints,
    saves=_CHECKPOINTS,
    loss="bits",
  )
