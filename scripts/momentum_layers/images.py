"""Digits by Momentum ResNets of many depths, trained in constant memory."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax import lax

from momentum_layers.gradients import kept, restored
from shared import image_data

GAMMA = 0.9
WIDTH = 32
_CHUNK = 1000  # images that are classified at once


class Params(NamedTuple):
  """Layers tanh(x w + b) v between a linear map and another one."""

  first: jax.Array  # [pixels, width]
  w: jax.Array  # [depth, width, width]
  b: jax.Array  # [depth, width]
  v: jax.Array  # [depth, width, width]
  last: jax.Array  # [width, classes]


def init(seed: int, number: int, pixels: int, classes: int) -> Params:
  """Random weights; the increments of layers begin at zero."""
  rng = np.random.default_rng(seed)
  normal = lambda *shape: jnp.asarray(
    rng.normal(size=shape) / shape[-2] ** 0.5, jnp.float32
  )
  return Params(
    first=normal(pixels, WIDTH),
    w=normal(number, WIDTH, WIDTH),
    b=jnp.zeros((number, WIDTH)),
    v=jnp.zeros((number, WIDTH, WIDTH)),
    last=normal(WIDTH, classes),
  )


def logits(name: str, params: Params, images: jax.Array) -> jax.Array:
  """[B, pixels] -> [B, classes].

  Args:
    name: "resnet", whose activations are kept, or "momentum".
    params: of the network.
    images: flat.
  """
  number = len(params.w)
  f = lambda layer, x: (
    jnp.tanh(x @ layer[0] + layer[1]) @ layer[2] / number**0.5
  )
  layers = params.w, params.b, params.v
  x = images @ params.first
  if name == "momentum":
    return restored(layers, x, GAMMA, f) @ params.last
  return kept(layers, x, 0.0, f) @ params.last


def train(
  name: str,
  number: int,
  data: image_data.Data,
  steps: int,
  batch_size: int,
  rate: float,
  seed: int,
) -> dict[str, Any]:
  """Trains by Adam; the losses, and the accuracy on test images."""
  flat = lambda images: jnp.asarray(images.reshape(len(images), -1))
  images, labels = flat(data.train_images), jnp.asarray(data.train_labels)
  classes = int(data.train_labels.max()) + 1
  optimizer = optax.adam(optax.cosine_decay_schedule(rate, steps))
  key = jax.random.key(seed)

  def loss_fn(params, indices):
    scores = logits(name, params, images[indices])
    return optax.softmax_cross_entropy_with_integer_labels(
      scores, labels[indices]
    ).mean()

  def step(carry, t):
    params, state = carry
    indices = jax.random.randint(
      jax.random.fold_in(key, t), (batch_size,), 0, len(labels)
    )
    loss, gradients = jax.value_and_grad(loss_fn)(params, indices)
    updates, state = optimizer.update(gradients, state)
    return (optax.apply_updates(params, updates), state), loss

  params = init(seed, number, images.shape[1], classes)
  start = params, optimizer.init(params)
  (params, _), losses = jax.jit(
    lambda start: lax.scan(step, start, jnp.arange(steps))
  )(start)
  evaluate = jax.jit(lambda images: logits(name, params, images).argmax(-1))
  test = flat(data.test_images)
  decided = [
    np.asarray(evaluate(test[i : i + _CHUNK]))
    for i in range(0, len(test), _CHUNK)
  ]
  right = np.concatenate(decided) == data.test_labels
  return {
    "depth": number,
    "losses": np.asarray(losses).tolist(),
    "accuracy": float(right.mean()),
  }
