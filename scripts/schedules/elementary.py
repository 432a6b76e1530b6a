"""Training with a rate and a momentum for every step and array.

The experiment of Maclaurin, Duvenaud & Adams (2015), Section 3: a tanh network
whose initial scales and training schedule are hyperparameters.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

import revmom
from shared import image_data

_HIDDEN = 50, 50, 50
# Where learning starts, from the paper.
LOG_SCALE, LOG_RATE, LOGIT_MOMENTUM = -3.0, -1.0, 0.0
# Buffers leave room for momenta that are no smaller than this in any step.
_MOMENTUM_FLOOR = 0.1


class Hypers(NamedTuple):
  """What is learned; arrays are weights 1, biases 1, weights 2, ..."""

  log_scale: Any  # [arrays]
  log_rate: Any  # [steps, arrays]
  logit_momentum: Any  # [steps, arrays]


class Problem(NamedTuple):
  """The network, its data and the keys of all randomness."""

  shapes: list[tuple[int, ...]]  # of the arrays
  train: tuple[jax.Array, jax.Array]  # images [N, pixels] and labels
  validation: tuple[jax.Array, jax.Array]
  test: tuple[jax.Array, jax.Array]
  meta_key: jax.Array
  evaluation_key: jax.Array


def array_shapes(sizes: tuple[int, ...]) -> list[tuple[int, ...]]:
  """Shapes of weights 1, biases 1, weights 2, ... of a fully connected net."""
  shapes: list[tuple[int, ...]] = []
  for fan_in, fan_out in zip(sizes[:-1], sizes[1:], strict=True):
    shapes += [(fan_in, fan_out), (fan_out,)]
  return shapes


def pose(data: image_data.Data, seed: int) -> Problem:
  """The mean training image is subtracted everywhere."""
  mean = data.train_images.mean(0)
  prepare = lambda images, labels: (
    jnp.asarray((images - mean).reshape(len(images), -1)),
    jnp.asarray(labels),
  )
  sizes = mean.size, *_HIDDEN, int(data.train_labels.max()) + 1
  meta_key, evaluation_key = jax.random.split(jax.random.key(seed))
  return Problem(
    array_shapes(sizes),
    prepare(data.train_images, data.train_labels),
    prepare(data.validation_images, data.validation_labels),
    prepare(data.test_images, data.test_labels),
    meta_key,
    evaluation_key,
  )


def initial_hypers(problem: Problem, steps: int) -> Hypers:
  """The paper's: scales e^-3, learning rates e^-1, momenta 1/2."""
  arrays = len(problem.shapes)
  # With a dtype, or they would be weakly typed and the step compiled twice.
  fill = lambda shape, value: jnp.full(shape, value, jnp.float32)
  return Hypers(
    fill(arrays, LOG_SCALE),
    fill((steps, arrays), LOG_RATE),
    fill((steps, arrays), LOGIT_MOMENTUM),
  )


def mean_loss(params: list, images: jax.Array, labels: jax.Array) -> jax.Array:
  """Cross-entropy of the network, in nats."""
  x = images
  for weights, biases in zip(params[0::2], params[1::2], strict=True):
    scores = x @ weights + biases
    x = jnp.tanh(scores)
  losses = optax.softmax_cross_entropy_with_integer_labels(scores, labels)
  return losses.mean()


def losses(problem: Problem, params: list) -> dict[str, jax.Array]:
  """Of the images for training, validation and tests."""
  return {
    "train": mean_loss(params, *problem.train),
    "validation": mean_loss(params, *problem.validation),
    "test": mean_loss(params, *problem.test),
  }


def batch_loss(params, indices, images, labels):
  """The loss of one SGD step."""
  return mean_loss(params, images[indices], labels[indices])


def optimizer_of(hypers: Hypers) -> Any:
  """SGD v' = b v - (1 - b) g, x' = x + a v' with all a and b learned."""
  columns = lambda table: list(table.T)
  return revmom.sgd(
    learning_rate=columns(jnp.exp(hypers.log_rate)),
    momentum=columns(jax.nn.sigmoid(hypers.logit_momentum)),
    form="ema",
    grid=revmom.Grid(floors={"velocity": _MOMENTUM_FLOOR}),
  )


def train(
  problem: Problem, batch_size: int, hypers: Hypers, key: jax.Array
) -> revmom.Run:
  """One training run, from weights and biases that `key` draws."""
  weights_key, batch_key = jax.random.split(key)
  keys = jax.random.split(weights_key, len(problem.shapes))
  params = [
    scale * jax.random.normal(k, shape)
    for scale, k, shape in zip(
      jnp.exp(hypers.log_scale), keys, problem.shapes, strict=True
    )
  ]
  indices = jax.random.randint(
    batch_key,
    (hypers.log_rate.shape[0], batch_size),
    0,
    problem.train[1].shape[0],
  )
  return revmom.train(
    batch_loss, optimizer_of(hypers), params, indices, *problem.train
  )


def scale_columns(problem: Problem) -> list[str]:
  """Names of the log scales."""
  return [
    f"log_scale_{kind}_{layer}"
    for layer in range(1, len(problem.shapes) // 2 + 1)
    for kind in ("weights", "biases")
  ]


class EarlyAdamState(NamedTuple):
  """Of `early_adam`."""

  step: jax.Array  # int32 []
  first: Any  # moments, like the parameters
  second: Any


def early_adam(
  learning_rate: float,
  b1: float = 0.1,
  b2: float = 0.01,
  eps: float = 1e-4,
  lam: float = 1e-4,
) -> optax.GradientTransformation:
  """The Adam of the paper's code, after version 1 of Kingma & Ba (2014).

  With i = 0, 1, ... and B_i = 1 - (1 - b1) lam^i,

    m <- B_i g + (1 - B_i) m,      v <- b2 g^2 + (1 - b2) v,
    x <- x - a (m / (1 - (1 - b1)^(i+1)))
               / (sqrt(v / (1 - (1 - b2)^(i+1))) + eps).

  b1 and b2 are the complements of today's.  From i = 1 on B_i is nearly 1, so
  that m is g; dividing it by 1 - 0.9^(i+1) nevertheless makes the second step
  5.3 times, the third 3.7 times as long, ..., falling to 1.
  """

  def init(params):
    zeros = lambda: jax.tree.map(jnp.zeros_like, params)
    return EarlyAdamState(jnp.zeros((), jnp.int32), zeros(), zeros())

  def update(gradients, state, params=None):
    del params
    number = state.step.astype(jnp.float32)
    decay = 1 - (1 - b1) * jnp.power(jnp.float32(lam), number)
    blend = lambda weight, new, old: weight * new + (1 - weight) * old
    first = jax.tree.map(
      lambda g, m: blend(decay.astype(g.dtype), g, m), gradients, state.first
    )
    second = jax.tree.map(
      lambda g, v: blend(b2, g * g, v), gradients, state.second
    )
    correct = lambda b: 1 - jnp.power(jnp.float32(1 - b), number + 1)

    def step(m, v):
      m = m / correct(b1).astype(m.dtype)
      v = v / correct(b2).astype(v.dtype)
      return -learning_rate * m / (jnp.sqrt(v) + eps)

    updates = jax.tree.map(step, first, second)
    return updates, EarlyAdamState(state.step + 1, first, second)

  return optax.GradientTransformation(init, update)
