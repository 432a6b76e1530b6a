"""Update-gate convolutional network: a UGRNN whose steps are layers.

    R = tanh(conv(L) + b_R),                                            (1)
    G = sigmoid(conv(L) + b_G),                                         (2)
    L' = G L + (1 - G) R,                                               (3)

for images L, after Collins, Sohl-Dickstein & Sussillo (2017) in depth instead
of time, like a highway network (Srivastava, Greff & Schmidhuber 2015) with
coupled gates.  Biases that are subtracted elsewhere are added here.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.nn import initializers

from revmom.models.affine_layer import Affine, convolve
from revmom.models.layers.layer import Layer, init_affine


class UGCNNParams(NamedTuple):
  """Parameters; output channels are in the order G, R."""

  weights: jax.Array  # [K, K, C, 2C]
  bias: jax.Array  # [2C]


def init(
  key: jax.Array,
  channels: int,
  kernel: int = 3,
  *,
  update_bias: float = 1.0,
  dtype: jax.typing.DTypeLike = jnp.float32,
) -> UGCNNParams:
  """Parameters, with weights of variance 1 / (K^2 C).

  Args:
    key: of the random weights.
    channels: C, of images and of the layer's result.
    kernel: K.
    update_bias: b_G at first, so that images are kept.
    dtype: of the parameters.

  Raises:
    ValueError: if there are no channels, or no filter.

  >>> params = init(jax.random.key(0), 3)
  >>> apply(params, jnp.ones((2, 8, 8, 3))).shape
  (2, 8, 8, 3)
  """
  shape = kernel, kernel, channels, 2 * channels
  weights, bias = init_affine(
    key, shape, initializers.lecun_normal(), initializers.zeros, dtype
  )
  return UGCNNParams(weights, bias.at[:channels].set(update_bias))


def apply(params: UGCNNParams, images: jax.Array) -> jax.Array:
  """Equations (1) to (3).

  Args:
    params: from `init`.
    images: [B, H, W, C], of the type of the parameters.

  Returns:
    [B, H, W, C].

  Raises:
    ValueError: if the images have another number of axes or channels.
  """
  if images.shape[-1] != params.weights.shape[-2]:
    raise ValueError(
      f"images have {images.shape[-1]} channels; expected "
      f"{params.weights.shape[-2]}."
    )
  both = convolve(Affine(*params), images)
  update, candidate = jnp.split(both, 2, -1)
  gate = jax.nn.sigmoid(update)
  return gate * images + (1 - gate) * jnp.tanh(candidate)


def ugcnn(kernel: int = 3, *, update_bias: float = 1.0) -> Layer:
  """The same as a layer, to be `repeated`.

  Args:
    kernel, update_bias: as for `init`.

  >>> from revmom.models import repeated
  >>> net, images = repeated(ugcnn(), 50), jnp.ones((2, 8, 8, 3))
  >>> net.init(jax.random.key(0), images).weights.shape
  (50, 3, 3, 3, 6)
  """

  def init_like(key: jax.Array, x: jax.Array) -> UGCNNParams:
    return init(
      key, x.shape[-1], kernel, update_bias=update_bias, dtype=x.dtype
    )

  return Layer(init_like, apply)
