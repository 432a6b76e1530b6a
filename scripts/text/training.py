"""How the language model of scripts/lstm_text.py is trained and measured."""

import dataclasses
import functools
import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax import lax

from revmom.cells import lstm
from shared import texts, training_loop
from shared.checkpointing import Checkpoints
from shared.settings import flag
from shared.training_loop import Rows
from text import model

_EVALUATION_STREAMS = 16


@dataclasses.dataclass(frozen=True)
class Config:
  """One experiment."""

  text: str | None = flag(
    None,
    "A text file; by default the reference that Python's help() has.",
    may_change=True,
  )
  data_dir: str | None = flag(
    None,
    "Folder of a corpus instead: a file each with train, valid and test in "
    "its name.",
    may_change=True,
  )
  level: str = flag("character", "Of a token.", choices=texts.LEVELS)
  embedding_size: int = flag(128, "Of the embeddings.", at_least=1)
  hidden_size: int = flag(
    128,
    "Cells; if they are not as many as the embedding has elements, a "
    "projection leads to it.",
    at_least=1,
  )
  steps: int = flag(2000, "AdamW steps.", at_least=1)
  batch_size: int = flag(
    32, "Places of the text that are read at once.", at_least=1
  )
  window: int = flag(64, "Tokens to propagate back through.", at_least=1)
  learning_rate: float = flag(
    1e-2,
    "The largest: it warms up for a tenth of the steps and then decays to "
    "zero.",
    at_least=0.0,
  )
  weight_decay: float = flag(0.01, "Of all parameters.", at_least=0.0)
  clip: float = flag(1.0, "Largest global norm of a gradient.", at_least=0.0)
  seed: int = flag(0, "Of the weights and of the sample.")


class Training(NamedTuple):
  """What a step needs and changes: all that a checkpoint holds."""

  params: model.Params
  optimizer: Any  # of AdamW
  carry: lstm.LSTMCarry  # the state at the end of the last window


def windows(tokens: np.ndarray, config: Config) -> jax.Array:
  """The training text as int32 [windows, T, B]; what is left over is not used.

  Raises:
    ValueError: the text is too short for one window.
  """
  streams, length = config.batch_size, config.window
  count = len(tokens) // (streams * length)
  if not count:
    raise ValueError(
      f"the training text has {len(tokens)} tokens, but one step takes "
      f"{streams} windows of {length}; lower --batch_size or --window, or give "
      "a longer --text."
    )
  used = tokens[: streams * count * length].reshape(streams, count, length)
  return jnp.asarray(used.transpose(1, 2, 0))


def optimizer_of(config: Config) -> optax.GradientTransformation:
  """AdamW with clipped gradients; the rate warms up and then decays."""

  def rate(step):
    warm = jnp.minimum(1, (step + 1) / (config.steps / 10))
    cosine = (1 + jnp.cos(jnp.pi * step / config.steps)) / 2
    return config.learning_rate * warm * cosine

  return optax.chain(
    optax.clip_by_global_norm(config.clip),
    optax.adamw(rate, weight_decay=config.weight_decay),
  )


def training_step(config: Config) -> Callable:
  """(training, windows, number) -> the next one, and the mean loss."""
  optimizer = optimizer_of(config)

  @functools.partial(jax.jit, donate_argnums=0)
  def step(training, windows, number):
    place = number % len(windows)

    def loss_fn(params):
      fresh = model.initial(params, config.batch_size)
      carry = jax.tree.map(
        lambda fresh, carried: jnp.where(place == 0, fresh, carried),
        fresh,
        training.carry,
      )
      values, after = model.losses(params, windows[place], carry)
      return values.mean(), after

    (loss, carry), gradients = jax.value_and_grad(loss_fn, has_aux=True)(
      training.params
    )
    updates, state = optimizer.update(
      gradients, training.optimizer, training.params
    )
    params = optax.apply_updates(training.params, updates)
    return Training(params, state, carry), loss

  return step


@jax.jit
def window_losses(params, tokens):
  """The sums of the losses of int32 [windows, T, B]; -1 is padding."""

  def window(carry, tokens):
    values, carry = model.losses(params, jnp.maximum(tokens, 0), carry)
    return carry, jnp.where(tokens < 0, 0.0, values).sum()

  start = model.initial(params, tokens.shape[2])
  return lax.scan(window, start, tokens)[1]


def evaluation(config: Config, part: texts.Part) -> Callable:
  """params -> the mean loss of a token, in nats; every token counts once.

  The text is cut into a few streams, each of which begins at h_0.
  """
  streams = min(_EVALUATION_STREAMS, len(part.tokens))
  length = config.window
  count = math.ceil(len(part.tokens) / (streams * length))
  # Padding at the very end, of the last streams.
  padded = np.full(streams * count * length, -1, np.int32)
  padded[: len(part.tokens)] = part.tokens
  tokens = padded.reshape(streams, count, length).transpose(1, 2, 0)

  def mean(params):
    return float(
      np.asarray(window_losses(params, tokens), np.float64).sum()
    ) / len(part.tokens)

  return mean


def bits_per_character(loss: float, part: texts.Part) -> float:
  """From nats a token."""
  return loss / math.log(2) * len(part.tokens) / part.characters


def start(corpus: texts.Corpus, config: Config) -> Training:
  """Before the first step.

  Raises:
    ValueError: --clip is not positive.
  """
  if config.clip <= 0:
    raise ValueError(f"--clip={config.clip}; it must be positive.")
  key = jax.random.key(config.seed)
  params = model.init(
    key, len(corpus.vocabulary), config.embedding_size, config.hidden_size
  )
  state = optimizer_of(config).init(params)
  # Of no consequence: the first window begins at h_0.
  carry = model.initial(params, config.batch_size)
  return Training(params, state, carry)


def train(
  corpus: texts.Corpus,
  config: Config,
  training: Training,
  checkpoints: Checkpoints,
) -> tuple[Training, Rows, int]:
  """Resumes, and goes on to the last step; see `training_loop.train`.

  Raises:
    ValueError: the text is too short.
    FloatingPointError: a loss was not finite.
  """
  text = windows(corpus.train.tokens, config)
  step = training_step(config)
  mean = evaluation(config, corpus.validation)

  def validate(params):
    loss = mean(params)
    bits = bits_per_character(loss, corpus.validation)
    words = f"validation {bits:.3f} bits per character"
    return {"validation_loss": loss}, words

  return training_loop.train(
    lambda training, number: step(training, text, number),
    training,
    config.steps,
    validate,
    checkpoints,
    remedy="lower --learning_rate or --clip",
  )
