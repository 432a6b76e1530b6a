r"""PixelRNN: recurrent networks over the rows or the diagonals of an image.

Van den Oord, Kalchbrenner & Kavukcuoglu, "Pixel recurrent neural networks"
(2016).  A masked convolution A of the image, LSTM layers with residual
connections, and masked 1 x 1 convolutions,

.. math::
  x^{(0)} &= K_A * x + V_y, \qquad
  x^{(l)} = x^{(l-1)} + U_l^\top h_l(x^{(l-1)}), \\
  \text{outputs} &= W_2^\top \text{relu}(W_1^\top \text{relu}(x^{(d)}))

(figure 5 and table 1; biases not written), y being the class.  Pixels are known
to the groups of features as masks of channels let them be.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from revmom.models.affine_layer import Affine
from revmom.models.autoregressive.causal_convolution import (
  channel_mask,
  check_images,
  convolve,
  feature_mask,
  groups,
  init_masked,
  kernel_mask,
  masked,
  neighbours,
  output_mask,
  pointwise,
  read_out,
  taps,
  window,
)
from revmom.models.autoregressive.causal_network import (
  CausalNetwork,
  class_embedding,
  class_table,
)
from revmom.models.autoregressive.diagonal_bilstm_layer import (
  diagonal_bilstm_layer,
)
from revmom.models.autoregressive.pixel_layers import Layer, Place
from revmom.models.autoregressive.row_lstm_layer import row_lstm_layer
from revmom.models.sizes import at_least


class Block(NamedTuple):
  """A layer with a residual connection."""

  layer: Any
  up: Affine  # U [h, 2h]


class Params(NamedTuple):
  """Weights of a PixelRNN; h is its hidden size."""

  first: Affine  # K_A [k / 2 + 1, k, C, 2h]: nothing below is seen
  classes: jax.Array | None  # V [classes, 2h]
  blocks: tuple[Block, ...]
  hidden: Affine  # W_1 [2h, 2h]
  last: Affine  # W_2 [2h, C P]


class Cache(NamedTuple):
  """Of generation."""

  masked: Params  # as they are used
  classes: jax.Array | None  # [B, 2h]
  layers: tuple[Any, ...]


def row_lstm(
  hidden_size: int = 16,
  num_layers: int = 4,
  kernel_size: int = 7,
  num_classes: int = 0,
) -> CausalNetwork:
  """PixelRNN with row LSTMs, for images [H, W, C].

  It goes down the image by rows, all of whose pixels are computed at once.  An
  output sees a triangle: with every row upwards one column more on both sides.

  Args:
    hidden_size: h, features of a layer; there are 2h between layers.
    num_layers: of them.
    kernel_size: k, odd: of the first convolution.
    num_classes: 0 for a network without classes.

  Returns:
    A `CausalNetwork` of images [H, W, C].

  Raises:
    ValueError: a size is too small, or the kernel's even; in `init`, if there
      are fewer features than channels.

  >>> from revmom.models import Autoregressive
  >>> from revmom.models import categorical
  >>> model = Autoregressive(row_lstm(4, 1, 3), categorical(2))
  >>> x = jnp.zeros((2, 4, 5, 1), jnp.int32)
  >>> params = jax.jit(model.init)(jax.random.key(0), x)
  >>> jax.jit(model.log_prob)(params, x).shape
  (2,)
  """
  sizes = _Sizes(hidden_size, num_layers, kernel_size, num_classes)
  return _pixel_rnn(row_lstm_layer, sizes)


def diagonal_bilstm(
  hidden_size: int = 16,
  num_layers: int = 4,
  kernel_size: int = 7,
  num_classes: int = 0,
) -> CausalNetwork:
  """PixelRNN with diagonal BiLSTMs, for images [H, W, C].

  An output sees all pixels before.  Generation sweeps over a finished row from
  the right, so that a row of W pixels takes 2 W rounds.

  Arguments, result and errors are those of `row_lstm`.
  """
  sizes = _Sizes(hidden_size, num_layers, kernel_size, num_classes)
  return _pixel_rnn(diagonal_bilstm_layer, sizes)


class _Sizes(NamedTuple):
  hidden_size: int
  num_layers: int
  kernel_size: int
  num_classes: int


def _pixel_rnn(
  make_layer: Callable[[int, int], Layer], sizes: _Sizes
) -> CausalNetwork:
  _check(sizes)
  radius = sizes.kernel_size // 2

  def init(key, inputs, num_outputs):
    channels, dtype = inputs.shape[-1], inputs.dtype
    layer = make_layer(sizes.hidden_size, channels)
    masks = _masks(sizes, channels, num_outputs)
    features = 2 * sizes.hidden_size
    keys = jax.random.split(key, 3 + 2 * sizes.num_layers)
    blocks = [
      Block(
        layer.init(of_layer, features, dtype),
        init_masked(of_up, masks.up, dtype),
      )
      for of_layer, of_up in zip(keys[3::2], keys[4::2], strict=True)
    ]
    return Params(
      init_masked(keys[0], masks.first, dtype),
      class_table(sizes.num_classes, features, dtype),
      tuple(blocks),
      init_masked(keys[1], masks.hidden, dtype),
      init_masked(keys[2], masks.last, dtype),
    )

  def masked_params(params, channels, layer):
    num_outputs = params.last.bias.size // channels
    masks = _masks(sizes, channels, num_outputs)
    blocks = [
      Block(layer.masked(block.layer), masked(block.up, masks.up))
      for block in params.blocks
    ]
    return params._replace(
      first=masked(params.first, masks.first),
      blocks=tuple(blocks),
      hidden=masked(params.hidden, masks.hidden),
      last=masked(params.last, masks.last),
    )

  def forward(params, inputs, label):
    check_images(inputs, params.first.weights.shape[-2])
    channels = inputs.shape[-1]
    layer = make_layer(sizes.hidden_size, channels)
    params = masked_params(params, channels, layer)
    x = convolve(params.first, inputs, ((radius, 0), (radius, radius)))
    x, pixels = jnp.moveaxis(x, 0, 2), jnp.moveaxis(inputs, 0, 2)
    x = _of_class(x, class_embedding(params.classes, label))
    for block in params.blocks:
      h = layer.forward(block.layer, x, pixels)  # [H, W, B, h]
      x = x + pointwise(block.up, h)
    outputs = jnp.moveaxis(read_out(params.hidden, params.last, x), 2, 0)
    return outputs.reshape(*inputs.shape, -1)

  def start(params, shape, label):
    batch, _, width, channels = shape
    layer = make_layer(sizes.hidden_size, channels)
    params = masked_params(params, channels, layer)
    layers = [layer.start(b.layer, width, batch) for b in params.blocks]
    classes = class_embedding(params.classes, label)
    return Cache(params, classes, tuple(layers))

  def step(params, cache, inputs, position):
    batch, _, width, channels = inputs.shape
    layer = make_layer(sizes.hidden_size, channels)
    params = cache.masked
    place = Place(*jnp.divmod(position, width))
    above, beside = window(radius)
    seen = neighbours(inputs, place.row + above, place.column + beside)
    kernel, bias = params.first
    kernel = kernel.reshape(-1, *kernel.shape[2:])[: len(above)]
    x = taps(Affine(kernel, bias), list(seen))
    x = _of_class(x, cache.classes)
    layers = []
    for block, its_cache in zip(params.blocks, cache.layers, strict=True):
      h, after = layer.step(block.layer, its_cache, place, x, inputs)
      x = x + pointwise(block.up, h)
      layers.append(after)
    outputs = read_out(params.hidden, params.last, x).reshape(
      batch, channels, -1
    )
    return outputs, cache._replace(layers=tuple(layers))

  return CausalNetwork(init, forward, start, step, event_ndim=3)


class _Masks(NamedTuple):
  first: np.ndarray
  up: np.ndarray
  hidden: np.ndarray
  last: np.ndarray


def _masks(sizes: _Sizes, channels: int, num_outputs: int) -> _Masks:
  """A for the first, B for all others."""
  of_h = groups(sizes.hidden_size, channels)
  of_x = groups(2 * sizes.hidden_size, channels)
  return _Masks(
    kernel_mask(sizes.kernel_size, np.arange(channels), of_x, strict=True),
    channel_mask(of_h, of_x, strict=False),
    feature_mask(2 * sizes.hidden_size, channels),
    output_mask(2 * sizes.hidden_size, channels, num_outputs),
  )


def _of_class(x: jax.Array, classes: jax.Array | None) -> jax.Array:
  return x if classes is None else x + classes.astype(x.dtype)


def _check(sizes: _Sizes) -> None:
  if sizes.kernel_size < 3 or sizes.kernel_size % 2 == 0:
    raise ValueError(
      f"got kernel_size={sizes.kernel_size}, expected an odd number, 3 or more."
    )
  at_least(1, hidden_size=sizes.hidden_size, num_layers=sizes.num_layers)
  at_least(0, num_classes=sizes.num_classes)
