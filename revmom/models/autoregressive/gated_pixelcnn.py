r"""Gated PixelCNN, which has no blind spot.

Van den Oord, Kalchbrenner, Vinyals, Espeholt, Graves & Kavukcuoglu (2016),
"Conditional image generation with PixelCNN decoders", Figure 2 and equation 4.
A vertical stack v sees the rows above, without masks; a horizontal stack h sees
the own row to the left and, of the vertical one, its position.  With :math:`u,
w` before the gates, and y the class,

.. math::
  u &= W_v * v + V_v y, &
  v' &= \tanh(u_1) \odot \sigma(u_2), \\
  w &= (M \odot W_h) * h + B u + V_h y, &
  h' &= h + (M_1 \odot W_o) [\tanh(w_1) \odot \sigma(w_2)],

biases not written; :math:`u_1, u_2` are the two halves of u.  The first block
has mask A and no residual connection.
"""

from collections.abc import Sequence
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from revmom.models.affine_layer import Affine
from revmom.models.autoregressive.causal_convolution import (
  Offset,
  check_images,
  check_kernels,
  convolve,
  feature_mask,
  gate,
  groups,
  init_affine,
  init_masked,
  kernel_mask,
  masked,
  neighbours,
  output_mask,
  pointwise,
  reach,
  read_out,
  taps,
)
from revmom.models.autoregressive.causal_network import (
  CausalNetwork,
  add_class,
  class_embedding,
  class_table,
)
from revmom.numerics import accumulator, product


class Block(NamedTuple):
  """Weights of a block of radius r = (k - 1) / 2; the first has D = C."""

  vertical: Affine  # [r + 1, k, F, 2 F], the first [r, k, C, 2 F]
  between: jax.Array  # [2 F, 2 F]
  horizontal: Affine  # [1, r + 1, D, 2 F]
  out: Affine  # [F, F]
  vertical_classes: jax.Array | None  # [classes, 2 F]
  horizontal_classes: jax.Array | None  # [classes, 2 F]


class Params(NamedTuple):
  """Weights of a gated PixelCNN; masked where used."""

  blocks: tuple[Block, ...]
  hidden: Affine  # [F, F]
  last: Affine  # [F, C P]


class Cache(NamedTuple):
  """What blocks saw, a tuple of one for each, and weights as they are used.

  The vertical stack is computed a row at a time, as soon as all rows above are
  known; the horizontal one a pixel at a time.
  """

  rows: tuple[jax.Array, ...]  # of v, but the first: [r + 1, B, W, F]
  between: tuple[jax.Array, ...]  # B u of the row: [W, B, 2 F]
  columns: tuple[jax.Array, ...]  # of h, but the first: [r + W, B, F]
  params: Params  # masked, classes [B, 2 F]


def gated_pixelcnn(
  kernel_sizes: Sequence[int] = (3,) * 8,
  features: int = 64,
  num_classes: int = 0,
) -> CausalNetwork:
  """A gated PixelCNN for images [H, W, C].

  Args:
    kernel_sizes: k of each block, odd; the paper has 7 and then 5.
    features: F of each stack; C or more, in groups for each channel.
    num_classes: 0 for a network without classes.

  Returns:
    A `CausalNetwork` of events [H, W, C].

  Raises:
    ValueError: a kernel is not odd, or a size is too small.

  >>> network = gated_pixelcnn(kernel_sizes=(3, 3))
  >>> sorted(network.receptive_field)  # doctest: +NORMALIZE_WHITESPACE
  [(-2, -2), (-2, -1), (-2, 0), (-2, 1), (-2, 2),
   (-1, -2), (-1, -1), (-1, 0), (-1, 1), (-1, 2), (0, -2), (0, -1)]
  """
  kernel_sizes = tuple(kernel_sizes)
  check_kernels(kernel_sizes, features, num_classes)

  init = partial(_init, kernel_sizes, features, num_classes)

  def forward(params, inputs, label):
    check_images(inputs, params.blocks[0].horizontal.weights.shape[-2])
    params = _embedded(_masked(params, inputs.shape[-1]), label)
    v = h = inputs
    for number, block in enumerate(params.blocks):
      rows, columns = block.vertical.weights.shape[:2]
      radius = columns // 2
      # The first block's kernel ends in the row above.
      up, beside = (radius, rows - radius - 1), (radius, radius)
      u = convolve(block.vertical, v, (up, beside))
      u = add_class(u, block.vertical_classes)
      w = convolve(block.horizontal, h, ((0, 0), (radius, 0)))
      w = w + product(u, block.between)
      w = add_class(w, block.horizontal_classes)
      v, h = gate(u), _residual(block, h if number else None, w)
    return read_out(params.hidden, params.last, h).reshape(*inputs.shape, -1)

  def start(params, shape, label):
    batch, _, width, channels = shape
    dtype = accumulator(params.last.weights.dtype)
    zeros = lambda *sizes: jnp.zeros(sizes, dtype)
    radii = [size // 2 for size in kernel_sizes]
    return Cache(
      tuple(zeros(r + 1, batch, width, features) for r in radii[1:]),
      tuple(zeros(width, batch, 2 * features) for _ in radii),
      tuple(zeros(r + width, batch, features) for r in radii[1:]),
      _embedded(_masked(params, channels), label),
    )

  def step(params, cache, inputs, position):
    row, column = jnp.divmod(position, inputs.shape[2])
    cache = lax.cond(
      column == 0,
      lambda cache: _next_row(cache, inputs, row),
      lambda cache: cache,
      cache,
    )
    first, *others = cache.params.blocks
    left = np.arange(first.horizontal.weights.shape[1])
    left = left - left[-1]  # -r, ..., 0
    seen = neighbours(inputs, row + 0 * left, column + left)
    w = taps(first.horizontal, list(seen)) + cache.between[0][column]
    w = add_class(w, first.horizontal_classes)
    h = _residual(first, None, w)
    columns = []
    for block, kept, of_row in zip(
      others, cache.columns, cache.between[1:], strict=True
    ):
      radius = block.horizontal.weights.shape[1] - 1
      kept = kept.at[column + radius].set(h)
      seen = lax.dynamic_slice_in_dim(kept, column, radius + 1)
      w = taps(block.horizontal, list(seen)) + of_row[column]
      h = _residual(block, h, add_class(w, block.horizontal_classes))
      columns.append(kept)
    outputs = read_out(cache.params.hidden, cache.params.last, h)
    outputs = outputs.reshape(len(inputs), inputs.shape[-1], -1)
    return outputs, cache._replace(columns=tuple(columns))

  seen = receptive_field(kernel_sizes)
  return CausalNetwork(init, forward, start, step, 3, True, seen)


def receptive_field(kernel_sizes: Sequence[int]) -> frozenset[Offset]:
  """The pixels that an output sees, as `pixelcnn.receptive_field`."""
  own: frozenset[Offset] = frozenset({(0, 0)})
  above: frozenset[Offset] = frozenset()
  # From the outputs backwards: what was seen of h, and of v.
  for number, size in reversed(list(enumerate(kernel_sizes))):
    radius = size // 2
    across = range(-radius, radius + 1)
    upwards = range(-radius, 1 if number else 0)
    above = reach(above | own, [(i, j) for i in upwards for j in across])
    own = reach(own, [(0, j) for j in range(-radius, 1 if number else 0)])
  return above | own


def _init(
  kernel_sizes: tuple[int, ...],
  features: int,
  num_classes: int,
  key: jax.Array,
  inputs: jax.Array,
  num_outputs: int,
) -> Params:
  channels, dtype = inputs.shape[-1], inputs.dtype
  square = feature_mask(features, channels)

  def block(number: int, key: jax.Array) -> Block:
    vertical, horizontal, between, out = jax.random.split(key, 4)
    radius = kernel_sizes[number] // 2
    rows, seen = (radius + 1, features) if number else (radius, channels)
    shape = rows, kernel_sizes[number], seen, 2 * features
    mask = _horizontal_mask(number, kernel_sizes[number], channels, features)
    table = class_table(num_classes, 2 * features, dtype)
    return Block(
      init_affine(vertical, shape, dtype),
      init_affine(between, (2 * features, 2 * features), dtype).weights,
      init_masked(horizontal, mask, dtype),
      init_masked(out, square, dtype),
      table,
      table,
    )

  hidden, last, *keys = jax.random.split(key, 2 + len(kernel_sizes))
  return Params(
    tuple(block(number, key) for number, key in enumerate(keys)),
    init_masked(hidden, square, dtype),
    init_masked(last, output_mask(features, channels, num_outputs), dtype),
  )


def _masked(params: Params, channels: int) -> Params:
  """The parameters with zeros for weights that would see too much."""
  features = params.hidden.bias.size
  square = feature_mask(features, channels)

  def of_block(number: int, block: Block) -> Block:
    kernel_size = 2 * block.horizontal.weights.shape[1] - 1
    mask = _horizontal_mask(number, kernel_size, channels, features)
    return block._replace(
      horizontal=masked(block.horizontal, mask), out=masked(block.out, square)
    )

  num_outputs = params.last.bias.size // channels
  return Params(
    tuple(of_block(*block) for block in enumerate(params.blocks)),
    masked(params.hidden, square),
    masked(params.last, output_mask(features, channels, num_outputs)),
  )


def _horizontal_mask(
  number: int, kernel_size: int, channels: int, features: int
) -> np.ndarray:
  """Of the own row up to the centre: A for the first block, then B."""
  of_features = groups(features, channels)
  inputs = of_features if number else np.arange(channels)
  mask = kernel_mask(
    kernel_size, inputs, np.tile(of_features, 2), strict=number == 0
  )
  return mask[-1:, : kernel_size // 2 + 1]


def _embedded(params: Params, label: jax.Array | None) -> Params:
  """The parameters with rows [B, 2 F] in the place of tables of classes."""
  embedded = lambda block: block._replace(
    vertical_classes=class_embedding(block.vertical_classes, label),
    horizontal_classes=class_embedding(block.horizontal_classes, label),
  )
  return params._replace(blocks=tuple(map(embedded, params.blocks)))


def _residual(block: Block, h: jax.Array | None, w: jax.Array) -> jax.Array:
  out = pointwise(block.out, gate(w))
  return out if h is None else h + out


def _next_row(cache: Cache, inputs: jax.Array, row: jax.Array) -> Cache:
  """The vertical stack at a row, from the rows above."""
  rows, between = [], []
  radius = cache.params.blocks[0].vertical.weights.shape[0]
  above = row + np.arange(-radius, 0)
  seen = inputs.at[:, above].get(
    mode="fill", fill_value=0, wrap_negative_indices=False
  )  # [B, r, W, C]
  for number, block in enumerate(cache.params.blocks):
    radius = block.vertical.weights.shape[1] // 2
    u = convolve(block.vertical, seen, ((0, 0), (radius, radius)))
    u = add_class(u, block.vertical_classes)
    between.append(jnp.moveaxis(product(u[:, 0], block.between), 0, 1))
    if number < len(cache.rows):
      kept = cache.rows[number]
      kept = kept.at[row % len(kept)].set(gate(u)[:, 0])
      above = row + np.arange(1 - len(kept), 1)
      seen = jnp.moveaxis(kept[above % len(kept)], 0, 1)
      rows.append(kept)
  return cache._replace(rows=tuple(rows), between=tuple(between))
