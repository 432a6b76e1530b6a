"""What is trained: a network, its loss and batches made from a seed."""

import math
from collections.abc import Callable
from itertools import pairwise
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

PIXELS, CLASSES, BATCHES = 784, 10, 50
WIDTHS = (PIXELS, 50, 50, 50, CLASSES)
CHANNELS = (1, 8, 16)


class Workload(NamedTuple):
  """A network and its data."""

  name: str
  description: str
  params: Any
  loss: Callable[[Any, Any], jax.Array]  # (params, batch) -> []
  batches: Any  # images [BATCHES, batch, 784], labels [BATCHES, batch, 10]
  held_out: Any  # one batch

  @property
  def size(self) -> int:
    """How many parameters there are."""
    return sum(leaf.size for leaf in jax.tree.leaves(self.params))


def batch_at(batches: Any, step: jax.Array) -> Any:
  """The batch of a step; the data is passed over again and again."""
  pick = lambda a: lax.dynamic_index_in_dim(a, step % BATCHES, keepdims=False)
  return jax.tree.map(pick, batches)


def _data(key: jax.Array, batch_size: int) -> tuple[Any, Any]:
  """Noisy class means: learnable, but not at once."""
  means_key, label_key, noise_key = jax.random.split(key, 3)
  shape = (BATCHES + 1, batch_size)
  means = jax.random.normal(means_key, (CLASSES, PIXELS))
  labels = jax.random.randint(label_key, shape, 0, CLASSES)
  images = 0.1 * means[labels] + jax.random.normal(noise_key, (*shape, PIXELS))
  data = images, jax.nn.one_hot(labels, CLASSES)
  held_out = jax.tree.map(lambda a: a[-1], data)
  return jax.tree.map(lambda a: a[:-1], data), held_out


def _cross_entropy(logits: jax.Array, labels: jax.Array) -> jax.Array:
  return -jnp.mean(jnp.sum(jax.nn.log_softmax(logits) * labels, -1))


def _weights(key: jax.Array, shape: tuple[int, ...]) -> dict[str, jax.Array]:
  scale = 1 / math.sqrt(np.prod(shape[:-1]))
  weights = scale * jax.random.normal(key, shape)
  return {"weights": weights, "biases": jnp.zeros(shape[-1])}


def _mlp_loss(params: Any, batch: Any) -> jax.Array:
  hidden, labels = batch
  for layer in params[:-1]:
    hidden = jnp.tanh(hidden @ layer["weights"] + layer["biases"])
  logits = hidden @ params[-1]["weights"] + params[-1]["biases"]
  return _cross_entropy(logits, labels)


def _conv_loss(params: Any, batch: Any) -> jax.Array:
  images, labels = batch
  hidden = images.reshape(-1, 28, 28, 1)
  for layer in params[:-1]:
    hidden = lax.conv_general_dilated(
      hidden,
      layer["weights"],
      (2, 2),
      "SAME",
      dimension_numbers=("NHWC", "HWIO", "NHWC"),
    )
    hidden = jnp.tanh(hidden + layer["biases"])
  hidden = hidden.reshape(hidden.shape[0], -1)
  logits = hidden @ params[-1]["weights"] + params[-1]["biases"]
  return _cross_entropy(logits, labels)


def mlp(batch_size: int) -> Workload:
  """784-50-50-50-10, tanh, as Maclaurin, Duvenaud & Adams (2015)."""
  data_key, *keys = jax.random.split(jax.random.key(0), len(WIDTHS))
  params = [
    _weights(key, shape)
    for key, shape in zip(keys, pairwise(WIDTHS), strict=True)
  ]
  name = "-".join(str(width) for width in WIDTHS) + " tanh"
  return Workload(
    "mlp",
    f"{name}, batch {batch_size}",
    params,
    _mlp_loss,
    *_data(data_key, batch_size),
  )


def conv(batch_size: int) -> Workload:
  """Two strided 5x5 convolutions of 28x28 images and a linear layer."""
  data_key, *keys = jax.random.split(jax.random.key(1), len(CHANNELS) + 1)
  shapes = [(5, 5, *pair) for pair in pairwise(CHANNELS)]
  shapes.append((7 * 7 * CHANNELS[-1], CLASSES))
  params = [
    _weights(key, shape) for key, shape in zip(keys, shapes, strict=True)
  ]
  widths = "-".join(str(width) for width in CHANNELS[1:])
  return Workload(
    "conv",
    f"28x28 images, two 5x5 convolutions (stride 2, {widths} channels) tanh, "
    f"linear, batch {batch_size}",
    params,
    _conv_loss,
    *_data(data_key, batch_size),
  )


MAKERS = {"mlp": mlp, "conv": conv}
