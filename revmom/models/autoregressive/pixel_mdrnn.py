r"""Multidimensional recurrent networks as densities of images.

Layers of `mdrnn` from the upper left corner see everything above and to the
left of a pixel and the pixel itself.  What they say of the pixels above and to
the left of (i, j) makes the conditional of x(i, j):

.. math::
  h_l(i, j) &= \tanh\left(W_l^\top h_{l-1}(i, j) + R_l^\top h_l(i - 1, j)
    + Q_l^\top h_l(i, j - 1) + b_l\right), \qquad h_0 = x, \\
  \text{outputs}(i, j) &= V^\top h_d(i - 1, j) + U^\top h_d(i, j - 1) + c

(Graves, Fernandez & Schmidhuber 2007; Theis & Bethge 2015, "Generative image
modeling using spatial LSTMs", for images).
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from revmom.cells.grids import grid, mdrnn
from revmom.models.affine_layer import Affine
from revmom.models.autoregressive.causal_convolution import (
  check_images,
  init_affine,
  pointwise,
)
from revmom.models.autoregressive.causal_network import (
  CausalNetwork,
  class_embedding,
)
from revmom.models.sizes import at_least
from revmom.numerics import accumulator


class Params(NamedTuple):
  """Weights of a network of d layers of K units."""

  layers: tuple[mdrnn.Params, ...]  # the first of C channels, and classes
  read_out: Affine  # V above U [2 K, C P]


class Cache(NamedTuple):
  """Of generation."""

  classes: jax.Array | None  # [B, classes], one of them 1
  hidden: jax.Array  # of two rows of pixels [d, 2, W + 1, B, K]


def pixel_mdrnn(
  hidden_size: int = 32,
  num_layers: int = 1,
  num_classes: int = 0,
  *,
  schedule: str | None = None,
) -> CausalNetwork:
  """Layers of MDRNNs for images [H, W, C].

  An output sees the pixels above and to the left, those of the upper left
  quadrant, and none to the right.  Channels are independent given the pixels
  before.

  Args:
    hidden_size: K, of every layer.
    num_layers: d.
    num_classes: 0 for a network without classes; else an image's class is a
      further input of every pixel.
    schedule: as for `mdrnn.apply`; "pipelined" for all layers at once.

  Returns:
    A `CausalNetwork` of images [H, W, C].

  Raises:
    ValueError: a size is too small, or the schedule is unknown.

  >>> from revmom.models import Autoregressive
  >>> from revmom.models import gaussian
  >>> model = Autoregressive(pixel_mdrnn(4), gaussian(0.1))
  >>> x = jnp.zeros((2, 4, 5, 1))
  >>> params = model.init(jax.random.key(0), x)
  >>> model.log_prob(params, x).shape
  (2,)
  """
  at_least(1, hidden_size=hidden_size, num_layers=num_layers)
  at_least(0, num_classes=num_classes)
  grid.plan(2, schedule=schedule)

  def init(key, inputs, num_outputs):
    channels, dtype = inputs.shape[-1], inputs.dtype
    of_layers, of_outputs = jax.random.split(key)
    sizes = [channels + num_classes] + [hidden_size] * (num_layers - 1)
    keys = jax.random.split(of_layers, num_layers)
    layers = [
      mdrnn.init(key, size, hidden_size, dtype=dtype)
      for key, size in zip(keys, sizes, strict=True)
    ]
    shape = (2 * hidden_size, channels * num_outputs)
    return Params(tuple(layers), init_affine(of_outputs, shape, dtype))

  def forward(params, inputs, label):
    classes = _one_hot(params, label, num_classes)
    check_images(inputs, len(params.layers[0].input_weights) - num_classes)
    dtype = accumulator(params.read_out.bias.dtype)
    h = jnp.moveaxis(inputs, 0, 2).astype(dtype)  # [H, W, B, C]
    if classes is not None:
      classes = jnp.broadcast_to(classes, (*h.shape[:3], num_classes))
      h = jnp.concatenate([h, classes.astype(dtype)], -1)
    if schedule == grid.PIPELINED:
      h = mdrnn.apply(params.layers, h, schedule=schedule)
    else:
      for layer in params.layers:
        h = mdrnn.apply(layer, h, schedule=schedule)
    neighbours = [grid.previous(h, axis, 1) for axis in (0, 1)]
    outputs = pointwise(params.read_out, jnp.concatenate(neighbours, -1))
    return jnp.moveaxis(outputs, 2, 0).reshape(*inputs.shape, -1)

  def start(params, shape, label):
    batch, _, width, _ = shape
    dtype = accumulator(params.read_out.bias.dtype)
    hidden = jnp.zeros((num_layers, 2, width + 1, batch, hidden_size), dtype)
    return Cache(_one_hot(params, label, num_classes), hidden)

  def step(params, cache, inputs, position):
    batch, height, width, channels = inputs.shape
    # The pixel before is known now; before the first there is none.
    hidden = _advance(params, cache, inputs, jnp.maximum(position - 1, 0))
    hidden = jnp.where(position > 0, hidden, cache.hidden)
    row, column = jnp.divmod(position, width)
    h = hidden[-1]
    neighbours = [h[(row - 1) % 2, column + 1], h[row % 2, column]]
    outputs = pointwise(params.read_out, jnp.concatenate(neighbours, -1))
    outputs = outputs.reshape(batch, channels, -1)
    return outputs, cache._replace(hidden=hidden)

  return CausalNetwork(init, forward, start, step, 3, ordered_channels=False)


def _advance(
  params: Params, cache: Cache, inputs: jax.Array, position: jax.Array
) -> jax.Array:
  """The states with those of one more pixel, whose value is known."""
  row, column = jnp.divmod(position, inputs.shape[2])
  x = inputs[:, row, column].astype(cache.hidden.dtype)  # [B, C]
  if cache.classes is not None:
    x = jnp.concatenate([x, cache.classes.astype(x.dtype)], -1)
  states = []
  for layer, h in zip(params.layers, cache.hidden, strict=True):
    above, left = h[(row - 1) % 2, column + 1], h[row % 2, column]
    x = mdrnn.step(layer, x, (above, left))
    states.append(x)
  return cache.hidden.at[:, row % 2, column + 1].set(jnp.stack(states))


def _one_hot(
  params: Params, label: jax.Array | None, num_classes: int
) -> jax.Array | None:
  table = jnp.eye(num_classes, dtype=params.read_out.bias.dtype)
  return class_embedding(table if num_classes else None, label)
