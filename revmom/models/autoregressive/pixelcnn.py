r"""PixelCNN: masked convolutions on images.

Van den Oord, Kalchbrenner & Kavukcuoglu (2016), "Pixel recurrent neural
networks", section 3.5.  With masks :math:`M_1` of kind A and others of kind B,

.. math::
  h^{(l)} = \text{relu}\big((M_l \odot W_l) * h^{(l-1)} + b_l + V_l y\big),
  \qquad h^{(0)} = x,

y being the class, and outputs (M ⊙ W) h + b of the last layer.  Of positions
before, an output sees no more than one column to its right for each radius of
rows above: what lies beyond is its blind spot, which `gated_pixelcnn` has not.
"""

from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from revmom.models.affine_layer import Affine
from revmom.models.autoregressive.causal_convolution import (
  Offset,
  check_images,
  check_kernels,
  convolve,
  groups,
  init_masked,
  kernel_mask,
  masked,
  neighbours,
  output_mask,
  pointwise,
  reach,
  taps,
  window,
)
from revmom.models.autoregressive.causal_network import (
  CausalNetwork,
  add_class,
  class_embedding,
  class_table,
)
from revmom.numerics import accumulator


class Params(NamedTuple):
  """Weights of a PixelCNN of kernels k and F features; masked where used."""

  layers: tuple[Affine, ...]  # [(k + 1) / 2, k, F, F], the first [..., C, F]
  last: Affine  # [F, C P]
  classes: tuple[jax.Array | None, ...]  # of each layer [classes, F]


class Cache(NamedTuple):
  """Rows of what layers saw, and weights as they are used."""

  # Of all layers but the first: [(k + 1) / 2, W + k - 1, B, F].
  rows: tuple[jax.Array, ...]
  layers: tuple[Affine, ...]  # masked, [taps, F, F]
  last: Affine  # masked
  classes: tuple[jax.Array | None, ...]  # [B, F]


def pixelcnn(
  kernel_sizes: Sequence[int] = (3,) * 8,
  features: int = 64,
  num_classes: int = 0,
) -> CausalNetwork:
  """A PixelCNN for images [H, W, C].

  Generation keeps the last rows of what each layer saw; a step computes one
  pixel of each layer.

  Args:
    kernel_sizes: k of each layer, odd; the paper has 7 and then 3.
    features: F of each layer; C or more, in groups for each channel.
    num_classes: 0 for a network without classes.

  Returns:
    A `CausalNetwork` of events [H, W, C].

  Raises:
    ValueError: a kernel is not odd, or a size is too small.

  >>> network = pixelcnn(kernel_sizes=(3, 3))
  >>> sorted(network.receptive_field)  # doctest: +NORMALIZE_WHITESPACE
  [(-2, -2), (-2, -1), (-2, 0), (-2, 1), (-2, 2),
   (-1, -2), (-1, -1), (-1, 0), (-1, 1), (0, -2), (0, -1)]
  """
  kernel_sizes = tuple(kernel_sizes)
  check_kernels(kernel_sizes, features, num_classes)

  def init(key, inputs, num_outputs):
    channels, dtype = inputs.shape[-1], inputs.dtype
    last, *keys = jax.random.split(key, 1 + len(kernel_sizes))
    masks = _masks(kernel_sizes, features, channels)
    table = class_table(num_classes, features, dtype)
    return Params(
      tuple(
        init_masked(key, mask, dtype)
        for key, mask in zip(keys, masks, strict=True)
      ),
      init_masked(last, output_mask(features, channels, num_outputs), dtype),
      (table,) * len(kernel_sizes),
    )

  def masked_layers(params, channels):
    masks = _masks(kernel_sizes, features, channels)
    num_outputs = params.last.bias.size // channels
    return tuple(map(masked, params.layers, masks)), masked(
      params.last, output_mask(features, channels, num_outputs)
    )

  def forward(params, inputs, label):
    check_images(inputs, params.layers[0].weights.shape[-2])
    layers, last = masked_layers(params, inputs.shape[-1])
    h = inputs
    for layer, table in zip(layers, params.classes, strict=True):
      radius = layer.weights.shape[1] // 2
      drive = convolve(layer, h, ((radius, 0), (radius, radius)))
      h = jax.nn.relu(add_class(drive, class_embedding(table, label)))
    return pointwise(last, h).reshape(*inputs.shape, -1)

  def start(params, shape, label):
    batch, _, width, channels = shape
    layers, last = masked_layers(params, channels)
    rows = tuple(
      jnp.zeros(
        (size // 2 + 1, width + size - 1, batch, features),
        accumulator(last.weights.dtype),
      )
      for size in kernel_sizes[1:]
    )
    classes = tuple(class_embedding(table, label) for table in params.classes)
    return Cache(rows, tuple(map(_seen_taps, layers)), last, classes)

  def step(params, cache, inputs, position):
    row, column = jnp.divmod(position, inputs.shape[2])
    above, beside = window(kernel_sizes[0] // 2)
    seen = neighbours(inputs, row + above, column + beside)
    drive = taps(cache.layers[0], list(seen))
    h = jax.nn.relu(add_class(drive, cache.classes[0]))
    rows = []
    for kept, layer, classes in zip(
      cache.rows, cache.layers[1:], cache.classes[1:], strict=True
    ):
      kept, seen = _push(kept, h, row, column)
      h = jax.nn.relu(add_class(taps(layer, list(seen)), classes))
      rows.append(kept)
    outputs = pointwise(cache.last, h)
    outputs = outputs.reshape(len(inputs), inputs.shape[-1], -1)
    return outputs, cache._replace(rows=tuple(rows))

  seen = receptive_field(kernel_sizes)
  return CausalNetwork(init, forward, start, step, 3, True, seen)


def receptive_field(kernel_sizes: Sequence[int]) -> frozenset[Offset]:
  """The pixels that an output sees, as offsets (rows, columns) from its own.

  Of images with several channels it sees some further pixels in part where
  kernels are larger than the first one: all but their last channel.
  """
  windows = [
    {(int(i), int(j)) for i, j in zip(*window(size // 2), strict=True)}
    for size in kernel_sizes
  ]
  seen: frozenset[Offset] = frozenset(windows[0] - {(0, 0)})  # mask A
  for offsets in windows[1:]:
    seen = reach(seen, offsets)
  return seen


def _push(
  kept: jax.Array, h: jax.Array, row: jax.Array, column: jax.Array
) -> tuple[jax.Array, jax.Array]:
  """Rows [r + 1, W + 2 r, B, F] with a new pixel, and its taps [taps, B, F].

  Row i is in place i modulo r + 1.  There are r columns of zeros on each side.
  """
  height = len(kept)
  radius = height - 1
  above, beside = window(radius)
  kept = kept.at[row % height, column + radius].set(h)
  return kept, kept[(row + above) % height, column + radius + beside]


def _seen_taps(layer: Affine) -> Affine:
  """The taps of `window`: [taps, D, G]."""
  rows, side, *sizes = layer.weights.shape
  weights = layer.weights.reshape(rows * side, *sizes)
  return layer._replace(weights=weights[: rows * side - side // 2])


def _masks(
  kernel_sizes: tuple[int, ...], features: int, channels: int
) -> list[np.ndarray]:
  """Of all layers: A and then B."""
  of_features = groups(features, channels)
  inputs = [np.arange(channels)] + [of_features] * (len(kernel_sizes) - 1)
  return [
    kernel_mask(size, its_inputs, of_features, strict=number == 0)
    for number, (size, its_inputs) in enumerate(
      zip(kernel_sizes, inputs, strict=True)
    )
  ]
