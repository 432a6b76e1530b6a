"""Which depths and gains a plain network can be trained at.

Fully connected tanh networks with weights of variance sigma_w^2 / N and biases
of variance sigma_b^2 (Schoenholz, Gilmer, Ganguli & Sohl-Dickstein 2017, figure
5).  All gains are trained at once, and one program serves all depths.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax import lax

from revmom.models import Affine

CLASSES = 10


class Params(NamedTuple):
  """Of the largest depth L."""

  first: Affine
  layers: Affine  # [L, ...]
  last: Affine


class Trained(NamedTuple):
  """Of one network."""

  loss: jax.Array  # mean over the last tenth of the steps
  accuracy: jax.Array  # of training images


def init(
  key: jax.Array,
  pixels: int,
  width: int,
  largest: int,
  sigma_w: jax.Array,
  sigma_b: float,
) -> Params:
  """Parameters of `largest` layers after the first."""

  def affine(key: jax.Array, *shape: int) -> Affine:
    of_weights, of_bias = jax.random.split(key)
    weights = jax.random.normal(of_weights, shape) / shape[-2] ** 0.5
    bias = jax.random.normal(of_bias, (*shape[:-2], shape[-1]))
    return Affine(sigma_w * weights, sigma_b * bias)

  keys = jax.random.split(key, 3)
  last = affine(keys[2], width, CLASSES)
  return Params(
    affine(keys[0], pixels, width), affine(keys[1], largest, width, width), last
  )


def logits(params: Params, x: jax.Array, depth: Any) -> jax.Array:
  """Of images [B, pixels]; `depth` counts the first layer."""
  product = lambda layer, x: x @ layer.weights + layer.bias

  def step(x: jax.Array, row: tuple[jax.Array, Affine]) -> tuple[Any, None]:
    number, layer = row
    active = lambda x: product(layer, jnp.tanh(x))
    return lax.cond(number < depth - 1, active, lambda x: x, x), None

  rows = jnp.arange(len(params.layers.bias)), params.layers
  x, _ = lax.scan(step, product(params.first, x), rows)
  return product(params.last, jnp.tanh(x))


def train(
  key: jax.Array,
  images: jax.Array,
  labels: jax.Array,
  depth: Any,
  sigma_w: jax.Array,
  *,
  sigma_b: float,
  width: int,
  largest: int,
  batches: jax.Array,
  optimizer: optax.GradientTransformation,
) -> Trained:
  """One network; a gain each under `vmap`.

  Args:
    key: of the weights.
    images: [N, pixels], of unit mean square.
    labels: [N].
    depth: hidden layers, an integer array.
    sigma_w, sigma_b: of the weights and biases.
    width, largest: N, and the largest depth.
    batches: indices of images [T, B].
    optimizer: of optax.
  """
  params = init(key, images.shape[-1], width, largest - 1, sigma_w, sigma_b)

  def loss_fn(params: Params, indices: jax.Array) -> tuple[Any, Any]:
    scores = logits(params, images[indices], depth)
    losses = optax.softmax_cross_entropy_with_integer_labels(
      scores, labels[indices]
    )
    right = scores.argmax(-1) == labels[indices]
    return losses.mean(), right.astype(scores.dtype).mean()

  def step(carry: Any, indices: jax.Array) -> Any:
    params, state = carry
    measured, gradients = jax.value_and_grad(loss_fn, has_aux=True)(
      params, indices
    )
    updates, state = optimizer.update(gradients, state, params)
    return (optax.apply_updates(params, updates), state), measured

  start = params, optimizer.init(params)
  _, (losses, right) = lax.scan(step, start, batches)
  late = -max(1, len(batches) // 10)
  return Trained(losses[late:].mean(), right[late:].mean())
