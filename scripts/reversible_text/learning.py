"""How the models of scripts/reversible_language_model.py are trained."""

import dataclasses
import functools
import math
from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax import lax

from reversible_text import networks
from reversible_text.networks import Network
from shared import texts
from shared.settings import flag

_STREAMS = 16  # of an evaluation


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
  limits: tuple[float, ...] = flag(
    (1, 2, 3, 5, 8),
    "Bits that gates of reversible cells may forget a step; 8 is the most that "
    "a step can.",
    at_least=0.01,
    at_most=8,
  )
  embedding_size: int = flag(64, "Of the embeddings.", at_least=1)
  hidden_size: int = flag(128, "Units of the cell, an even number.", at_least=2)
  steps: int = flag(400, "Adam steps of each model.", at_least=1)
  batch_size: int = flag(
    16, "Places of the text that are read at once.", at_least=1
  )
  window: int = flag(64, "Tokens to propagate back through.", at_least=2)
  learning_rate: float = flag(
    1e-3,
    "Of Adam; it warms up for a tenth of the steps and decays to zero.",
    at_least=0.0,
  )
  clip: float = flag(1.0, "Largest global norm of a gradient.", at_least=1e-6)
  seed: int = flag(0, "Of the weights.")


def networks_of(config: Config) -> list[Network]:
  """The usual cells, and the reversible ones with each limit."""
  limits = sorted(set(config.limits))
  return [
    *(Network(cell) for cell in networks.USUAL),
    *(Network(cell, limit) for cell in networks.REVERSIBLE for limit in limits),
  ]


def windows(
  tokens: np.ndarray, streams: int, length: int
) -> tuple[jax.Array, jax.Array]:
  """Tokens and those that follow them, int32 [windows, T, B] each.

  Raises:
    ValueError: the text is too short for one window.
  """
  count = (len(tokens) - 1) // (streams * length)
  if not count:
    raise ValueError(
      f"a text has {len(tokens)} tokens, but one step takes {streams} windows "
      f"of {length} and what follows; lower --batch_size or --window, or give "
      "a longer --text."
    )
  used = streams * count * length

  def cut(tokens):
    parts = tokens[:used].reshape(streams, count, length)
    return jnp.asarray(parts.transpose(1, 2, 0))

  return cut(tokens), cut(tokens[1:])


def optimizer_of(config: Config) -> optax.GradientTransformation:
  """Adam with clipped gradients."""
  rate = optax.warmup_cosine_decay_schedule(
    0.0, config.learning_rate, max(1, config.steps // 10), config.steps + 1
  )
  return optax.chain(optax.clip_by_global_norm(config.clip), optax.adam(rate))


def training_step(
  network: Network, config: Config, optimizer: optax.GradientTransformation
) -> Callable:
  """(params, optimizer's state, carry, windows, number) -> those, the loss."""

  @functools.partial(jax.jit, donate_argnums=(0, 1, 2))
  def step(params, state, carry, windows, number):
    place = number % len(windows[0])
    window = jax.tree.map(lambda tokens: tokens[place], windows)
    fresh = network.start(params, config.batch_size)
    carry = jax.tree.map(
      lambda fresh, carried: jnp.where(place == 0, fresh, carried),
      fresh,
      carry,
    )

    def loss_fn(params):
      values, after = network.losses(params, window, carry)
      return values.mean(), after

    (loss, carry), gradients = jax.value_and_grad(loss_fn, has_aux=True)(params)
    changes, state = optimizer.update(gradients, state, params)
    return optax.apply_updates(params, changes), state, carry, loss

  return step


def evaluate(network: Network, params: Any, part: texts.Part, length: int):
  """The mean loss of a token, in nats."""
  streams = max(1, min(_STREAMS, (len(part.tokens) - 1) // length))
  pairs = windows(part.tokens, streams, min(length, len(part.tokens) - 1))

  @jax.jit
  def mean(params, pairs):
    def window(carry, pair):
      values, carry = network.losses(params, pair, carry)
      return carry, values.mean()

    return lax.scan(window, network.start(params, streams), pairs)[1].mean()

  return float(mean(params, pairs))


def learn(
  network: Network, config: Config, corpus: texts.Corpus
) -> dict[str, Any]:
  """Trains a model and measures it.

  Raises:
    FloatingPointError: a loss was not finite.
  """
  optimizer = optimizer_of(config)
  params = network.init(
    jax.random.key(config.seed),
    len(corpus.vocabulary),
    config.embedding_size,
    config.hidden_size,
  )
  state = optimizer.init(params)
  carry = network.start(params, config.batch_size)
  pairs = windows(corpus.train.tokens, config.batch_size, config.window)
  step = training_step(network, config, optimizer)
  losses = []
  for number in range(config.steps):
    params, state, carry, loss = step(
      params, state, carry, pairs, np.int32(number)
    )
    losses.append(float(loss))
    if not math.isfinite(losses[-1]):
      raise FloatingPointError(
        f"the loss of step {number} of {network.name} is {losses[-1]}; lower "
        "--learning_rate or --clip."
      )
  held_out = windows(corpus.validation.tokens, 1, config.window)
  first = jax.tree.map(lambda tokens: tokens[0], held_out)
  measured = {
    "losses": losses,
    "validation_loss": evaluate(
      network, params, corpus.validation, config.window
    ),
    "test_loss": evaluate(network, params, corpus.test, config.window),
    "bytes_a_step": networks.growth(
      network, params, config.batch_size, config.window
    ),
  }
  if network.limit is not None:
    window = jax.tree.map(lambda a: jnp.repeat(a, config.batch_size, 1), first)
    measured["bits"] = network.bits(params, window)
  return measured


def runs(
  config: Config, corpus: texts.Corpus
) -> Iterator[tuple[str, Callable[[], dict[str, Any]]]]:
  """Each model under its name."""
  for network in networks_of(config):
    yield network.name, functools.partial(learn, network, config, corpus)
