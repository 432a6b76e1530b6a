"""The training run whose examples are weighed: text, model and AdamW."""

import dataclasses
import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

import revmom
from attribution import network
from shared import texts
from shared.settings import flag

B1, B2, EPS = 0.9, 0.99, 1e-8


@dataclasses.dataclass(frozen=True)
class Config:
  """One experiment."""

  text: str | None = flag(
    None, "A text file; by default the reference that Python's help() has."
  )
  examples: int = flag(
    2000, "Windows of the text, each with a weight.", at_least=2
  )
  validation_examples: int = flag(
    256, "Other windows, to validate on.", at_least=1
  )
  context: int = flag(32, "Characters that a window predicts.", at_least=1)
  width: int = flag(32, "Of the model.", at_least=1)
  layers: int = flag(2, "Of the model.", at_least=1)
  heads: int = flag(2, "Of attention.", at_least=1)
  steps: int = flag(500, "AdamW steps.", at_least=1)
  batch_size: int = flag(
    16, "Examples a step; each is seen equally often.", at_least=1
  )
  learning_rate: float = flag(
    2e-3,
    "The largest: it warms up for a tenth of the steps and then decays to "
    "zero.",
    at_least=0.0,
  )
  weight_decay: float = flag(0.1, "Of all parameters.", at_least=0.0)
  clip: float = flag(1.0, "Largest global norm of a gradient.", at_least=0.0)
  eps_root: float = flag(
    1e-8,
    "Inside of AdamW's square root: larger makes training smoother.",
    at_least=0.0,
  )
  leave_out: int = flag(
    50, "Examples to train again without.", at_least=2, may_change=True
  )
  perturbation: float = flag(
    1.0, "What is taken off the weight of 1: 1 leaves the example out."
  )
  seed: int = flag(0, "Of all that is drawn.")


class Problem(NamedTuple):
  """A training run as a function of the weights of its examples."""

  params: dict[str, Any]
  indices: jax.Array  # int32 [steps, batch]
  rates: np.ndarray  # [steps]
  train: jax.Array  # int32 [examples, context + 1]
  validation: jax.Array  # int32 [validation examples, context + 1]
  texts: list[str]  # of the training examples
  chosen: np.ndarray  # the examples to leave out


def check(config: Config) -> None:
  """Raises ValueError for flags that don't go together."""
  if config.leave_out > config.examples:
    raise ValueError(
      f"--leave_out={config.leave_out} of --examples={config.examples}; leave "
      "out fewer."
    )
  if config.clip <= 0:
    raise ValueError(f"--clip={config.clip}; it must be positive.")
  if not config.perturbation:
    raise ValueError("--perturbation=0 changes nothing; 1 leaves out.")


def cut(text: str, config: Config) -> tuple[np.ndarray, np.ndarray]:
  """A text as int32 [windows, context + 1], and its different characters.

  Raises:
    ValueError: the text is too short.
  """
  length = config.context + 1
  wanted = config.examples + config.validation_examples
  if len(text) < wanted * length:
    raise ValueError(
      f"the text has {len(text)} characters, but {wanted} windows of {length} "
      f"need {wanted * length}; lower --examples, --validation_examples or "
      "--context, or give a longer --text."
    )
  characters, tokens = np.unique(np.array(list(text)), return_inverse=True)
  windows = len(tokens) // length
  tokens = tokens[: windows * length].reshape(windows, length)
  return tokens.astype(np.int32), characters


def pose(config: Config) -> Problem:
  """Cuts the text into windows and draws everything else.

  Raises:
    ValueError: the text is too short, or flags don't go together.
  """
  check(config)
  windows, characters = cut(texts.read_text(config.text), config)
  rng = np.random.default_rng(config.seed)
  wanted = config.examples + config.validation_examples
  order = rng.permutation(len(windows))[:wanted]
  train, validation = np.split(windows[order], [config.examples])
  sizes = network.Sizes(
    len(characters), config.context, config.width, config.layers, config.heads
  )
  return Problem(
    params=network.init(jax.random.key(config.seed), sizes),
    indices=jnp.asarray(epochs(rng, config)),
    rates=rates(config),
    train=jnp.asarray(train),
    validation=jnp.asarray(validation),
    texts=["".join(characters[window]) for window in train],
    # Of any length, so that a larger --leave_out begins like a smaller one.
    chosen=rng.permutation(config.examples)[: config.leave_out],
  )


def rates(config: Config) -> np.ndarray:
  """Learning rates that warm up and then decay, [steps]."""
  step = np.arange(config.steps)
  warm = np.minimum(1, (step + 1) / (config.steps / 10))
  cosine = (1 + np.cos(np.pi * step / config.steps)) / 2
  return (config.learning_rate * warm * cosine).astype(np.float32)


def epochs(rng: np.random.Generator, config: Config) -> np.ndarray:
  """Which examples each step sees: shuffled epochs, one after the other."""
  seen = config.steps * config.batch_size
  count = math.ceil(seen / config.examples)
  order = np.concatenate(
    [rng.permutation(config.examples) for _ in range(count)]
  )
  shape = config.steps, config.batch_size
  return order[:seen].reshape(shape).astype(np.int32)


def batch_loss(params, indices, weights, train):
  """sum_i w_i l_i over a batch, divided by its size."""
  losses = network.losses(params, train[indices])
  return jnp.mean(weights[indices] * losses)


def validation(params, problem: Problem, config: Config) -> jax.Array:
  """The losses of all validation examples, in the memory of one batch."""
  one = jax.checkpoint(lambda window: network.losses(params, window[None]))
  chunk = min(config.batch_size, config.validation_examples)
  return jax.lax.map(one, problem.validation, batch_size=chunk)[:, 0]


def optimizer_of(problem: Problem, config: Config) -> Any:
  """AdamW with a learning rate for each step."""
  optimizer = revmom.adamw(
    problem.rates,
    b1=B1,
    b2=B2,
    eps=EPS,
    eps_root=config.eps_root,
    weight_decay=config.weight_decay,
  )
  return revmom.clipped(optimizer, config.clip)


def train(problem: Problem, config: Config, weights: jax.Array) -> revmom.Run:
  """A training run, the same for each call but for the weights."""
  return revmom.train(
    batch_loss,
    optimizer_of(problem, config),
    problem.params,
    problem.indices,
    weights,
    problem.train,
  )
