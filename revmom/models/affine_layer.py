"""A layer of weights and a bias, and its convolution with images."""

from typing import NamedTuple

import jax
from jax import lax


class Affine(NamedTuple):
  """One layer: weights [D, G] or [*kernel, D, G], and bias [G]."""

  weights: jax.Array
  bias: jax.Array


def convolve(layer: Affine, images: jax.Array) -> jax.Array:
  """x * W + b for images [B, H, W, C], with zeros around them."""
  if images.ndim != 4:
    raise ValueError(
      f"x has shape {images.shape}; expected images [B, H, W, C]."
    )
  return layer.bias + lax.conv_general_dilated(
    images,
    layer.weights,
    window_strides=(1, 1),
    padding="SAME",
    dimension_numbers=("NHWC", "HWIO", "NHWC"),
  )
