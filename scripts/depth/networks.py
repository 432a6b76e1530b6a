"""Networks of any depth, their gradients at initialisation, their training.

A program is compiled for the largest depth only: of its layers, those beyond
the depth asked for are skipped when it runs.
"""

import math
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax import lax
from jax.nn import initializers

from revmom.models import (
  Affine,
  Layer,
  batch_norm,
  convolution,
  fixup_residual,
  post_norm,
  pre_norm,
  repeated,
  squared_losses,
  ugcnn,
)

CLASSES = 10
BLOCK = 2  # side of the blocks of pixels that become one position


class Params(NamedTuple):
  """Of the largest depth L."""

  stem: jax.Array  # blocks of pixels to channels
  layers: Any  # leaves [L, ...]
  heads: Affine  # [L, ...] if every layer has one, else [1, ...]


class Network(NamedTuple):
  """A kind of layer, and whether each has a loss."""

  layer: Callable[[int], Layer]  # of the depth
  supervised: bool = False
  last_norm: bool = False  # before the head


class Outcome(NamedTuple):
  """What one depth gave."""

  gradients: jax.Array  # |dL/dz_l| at initialisation, after each layer [L]
  losses: jax.Array  # of the last layer, by step [T]
  accuracy: jax.Array  # of validation images


def _convolution() -> Layer:
  return convolution()


def _pre_norm(branch: Layer) -> Layer:
  return pre_norm(branch, batch_norm())


def _post_norm(branch: Layer) -> Layer:
  return post_norm(branch, batch_norm())


NETWORKS: Mapping[str, Network] = {
  "plain": Network(lambda depth: _convolution()),
  "deeply supervised": Network(lambda depth: _convolution(), supervised=True),
  "post-norm residual": Network(lambda depth: _post_norm(_convolution())),
  "pre-norm residual": Network(
    lambda depth: _pre_norm(_convolution()), last_norm=True
  ),
  "UGCNN": Network(lambda depth: ugcnn.ugcnn()),
  "UGCNN, bias log L": Network(
    lambda depth: ugcnn.ugcnn(update_bias=math.log(depth))
  ),
  "Fixup": Network(lambda depth: fixup_residual(depth, kernel=3)),
}

# Gradients go through the sums and normalisations only, not the branches.
IDENTITY_PATHS: Mapping[str, Network] = {
  "pre-norm residual": Network(
    lambda depth: _pre_norm(_held(_convolution())), last_norm=True
  ),
  "post-norm residual": Network(
    lambda depth: _post_norm(_held(_convolution()))
  ),
}


def _held(branch: Layer) -> Layer:
  """The same values, which do not depend on the input as far as known."""
  return branch._replace(
    apply=lambda params, z: lax.stop_gradient(branch.apply(params, z))
  )


def blocks(images: jax.Array) -> jax.Array:
  """[B, H, W] to [B, H/2, W/2, 4]; odd sizes get zeros."""
  odd = [(0, -size % BLOCK) for size in images.shape[1:]]
  images = jnp.pad(images, [(0, 0), *odd])
  batch, height, width = images.shape
  grid = images.reshape(batch, height // BLOCK, BLOCK, width // BLOCK, BLOCK)
  return grid.swapaxes(2, 3).reshape(batch, grid.shape[1], grid.shape[3], -1)


def init(
  key: jax.Array,
  network: Network,
  images: jax.Array,
  channels: int,
  depth: int,
  largest: int,
) -> Params:
  """Parameters of `largest` layers, as a network of `depth` has them."""
  of_stem, of_layers, of_heads = jax.random.split(key, 3)
  grid = blocks(images)
  unit = initializers.lecun_normal()
  stem = unit(of_stem, (grid.shape[-1], channels), images.dtype)
  x = grid @ stem
  layers = repeated(network.layer(depth), largest).init(of_layers, x)
  heads = largest if network.supervised else 1
  of_each = initializers.lecun_normal(batch_axis=0)
  weights = of_each(of_heads, (heads, x[0].size, CLASSES), images.dtype)
  bias = jnp.zeros((heads, CLASSES), images.dtype)
  return Params(stem, layers, Affine(weights, bias))


def _apply(
  network: Network, params: Params, images: jax.Array, depth: Any, taps: Any
) -> jax.Array:
  """What the heads predict, [L, B, CLASSES] or [1, B, CLASSES]."""
  apply = network.layer(1).apply  # the depth only matters to `init`
  predict = lambda head, x: x.reshape(len(x), -1) @ head.weights + head.bias

  def step(x: jax.Array, row: Any) -> Any:
    number, of_layer, tap, head = row
    shift = 0.0 if tap is None else tap
    active = lambda x: apply(of_layer, x) + shift
    x = lax.cond(number < depth, active, lambda x: x, x)
    return x, predict(head, x) if network.supervised else None

  length = len(jax.tree.leaves(params.layers)[0])
  heads = params.heads if network.supervised else None
  rows = jnp.arange(length), params.layers, taps, heads
  x, predictions = lax.scan(step, blocks(images) @ params.stem, rows)
  if network.last_norm:
    norm = batch_norm()
    x = norm.apply(norm.init(jax.random.key(0), x), x)
  if not network.supervised:
    head = jax.tree.map(lambda leaf: leaf[0], params.heads)
    predictions = predict(head, x)[None]
  return predictions


def losses(
  network: Network,
  params: Params,
  images: jax.Array,
  labels: jax.Array,
  depth: Any,
  taps: Any = None,
) -> tuple[jax.Array, tuple[jax.Array, jax.Array]]:
  """The sum over layers; and that of the last, and its predictions."""
  predictions = _apply(network, params, images, depth, taps)
  targets = jax.nn.one_hot(labels, CLASSES, dtype=images.dtype)
  of_layers = squared_losses(predictions, targets)
  if not network.supervised:
    return of_layers[0], (of_layers[0], predictions[0])
  counted = jnp.arange(len(of_layers)) < depth
  last = depth - 1
  return jnp.sum(jnp.where(counted, of_layers, 0)), (
    of_layers[last],
    predictions[last],
  )


def gradients(
  network: Network,
  params: Params,
  images: jax.Array,
  labels: jax.Array,
  depth: Any,
) -> jax.Array:
  """|dL/dz_l| for what each layer returns, [L]; beyond the depth it is 0."""
  shape = jax.eval_shape(lambda: blocks(images) @ params.stem).shape
  length = len(jax.tree.leaves(params.layers)[0])
  of_taps = jax.grad(
    lambda taps: losses(network, params, images, labels, depth, taps)[0]
  )(jnp.zeros((length, *shape), images.dtype))
  rows = of_taps.reshape(length, -1)
  # Squares of what has almost vanished would be less than any float.
  largest = jnp.abs(rows).max(1)
  scaled = rows / jnp.where(largest > 0, largest, 1)[:, None]
  return largest * jnp.linalg.norm(scaled, axis=1)


def outcome(
  network: Network,
  params: Params,
  train: tuple[jax.Array, jax.Array],
  validation: tuple[jax.Array, jax.Array],
  depth: Any,
  batches: jax.Array,
  optimizer: optax.GradientTransformation,
) -> Outcome:
  """Gradients of the first batch at initialisation, then training.

  Args:
    network, params: to train.
    train, validation: images and labels.
    depth: layers in use, an integer array.
    batches: indices of training images [T, B].
    optimizer: of optax.
  """
  images, labels = train

  def step(carry: Any, indices: jax.Array) -> Any:
    params, state = carry
    (_, (loss, _)), grads = jax.value_and_grad(
      lambda params: losses(
        network, params, images[indices], labels[indices], depth
      ),
      has_aux=True,
    )(params)
    updates, state = optimizer.update(grads, state, params)
    return (optax.apply_updates(params, updates), state), loss

  first = batches[0]
  at_first = gradients(network, params, images[first], labels[first], depth)
  (params, _), curve = lax.scan(step, (params, optimizer.init(params)), batches)
  _, (_, predictions) = losses(network, params, *validation, depth)
  right = predictions.argmax(-1) == validation[1]
  return Outcome(at_first, curve, jnp.mean(right.astype(curve.dtype)))
