"""Convolutions of causal networks: values, masks, and what they see.

Weights are in the type of the parameters; products accumulate and results are
in float32 or wider.
"""

import math
from collections.abc import Iterable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from revmom.models.affine_layer import Affine
from revmom.models.sizes import at_least
from revmom.numerics import accumulator, product, sigmoid

Offset = tuple[int, ...]


def init_affine(
  key: jax.Array, shape: Sequence[int], dtype: Any, fan_in: int | None = None
) -> Affine:
  """Normal weights of variance 1 / fan-in, biases zero.

  Args:
    key: of the weights.
    shape: of the weights, [..., D, G].
    dtype: of both.
    fan_in: how many weights a result has that are not masked; all if None.
  """
  *fan, outputs = shape
  weights = jax.random.normal(key, tuple(shape), dtype)
  fan_in = fan_in or math.prod(fan)
  return Affine(weights / fan_in**0.5, jnp.zeros(outputs, dtype))


def pointwise(layer: Affine, x: jax.Array) -> jax.Array:
  """x W + b at every position: [..., D] to [..., G]."""
  result = product(x, layer.weights)
  return result + layer.bias.astype(result.dtype)


def gate(drive: jax.Array) -> jax.Array:
  """tanh(a) sigmoid(b), of the two halves of [..., 2 F]: [..., F]."""
  filtered, opened = jnp.split(drive, 2, -1)
  return jnp.tanh(filtered) * sigmoid(opened)


def read_out(hidden: Affine, last: Affine, x: jax.Array) -> jax.Array:
  """Two layers at every position, each after a relu."""
  x = jax.nn.relu(pointwise(hidden, jax.nn.relu(x)))
  return pointwise(last, x)


def convolve(
  layer: Affine,
  x: jax.Array,
  padding: Sequence[tuple[int, int]],
  dilation: int = 1,
) -> jax.Array:
  """Convolution of x [B, *positions, D] with weights [*kernel, D, G], and bias.

  Args:
    layer: its kernel has one axis or two.
    x: floats of any type.
    padding: zeros before and after, for each axis of positions.
    dilation: distance between the taps.

  Returns:
    [B, *positions, G], float32 or wider.
  """
  weights, bias = layer
  axes = "HW"[-len(padding) :]
  result = lax.conv_general_dilated(
    x.astype(weights.dtype),
    weights,
    window_strides=(1,) * len(padding),
    padding=padding,
    rhs_dilation=(dilation,) * len(padding),
    dimension_numbers=(f"N{axes}C", f"{axes}IO", f"N{axes}C"),
  )
  dtype = accumulator(weights.dtype)
  return result.astype(dtype) + bias.astype(dtype)


def taps(layer: Affine, windows: Sequence[jax.Array]) -> jax.Array:
  """One position of a convolution: its taps' inputs [B, D] to [B, G].

  Args:
    layer: with a kernel of as many taps, in the order of its axes.
    windows: the inputs.
  """
  weights = layer.weights.reshape(-1, layer.weights.shape[-1])
  return pointwise(
    layer._replace(weights=weights), jnp.concatenate(windows, -1)
  )


def groups(features: int, channels: int) -> np.ndarray:
  """The channel that each feature belongs to: it may see those before.

  >>> groups(5, 3)
  array([0, 0, 1, 1, 2])
  """
  if features < channels:
    raise ValueError(
      f"got {features} features, expected {channels} or more, so that each "
      "channel of a position has some."
    )
  return np.arange(features) * channels // features


def channel_mask(
  inputs: np.ndarray, outputs: np.ndarray, strict: bool
) -> np.ndarray:
  """Which inputs, of the same position, outputs may see: [D, G].

  Args:
    inputs: the channel that each belongs to, [D].
    outputs: likewise, [G].
    strict: mask A, which hides a channel from itself; or else mask B (van den
      Oord, Kalchbrenner & Kavukcuoglu 2016, section 3.4).
  """
  inputs, outputs = inputs[:, None], outputs[None]
  return inputs < outputs if strict else inputs <= outputs


def kernel_mask(
  kernel_size: int, inputs: np.ndarray, outputs: np.ndarray, strict: bool
) -> np.ndarray:
  """What a k x k kernel may see: [(k + 1) / 2, k, D, G].

  The rows below the centre, of which nothing may be seen, are left out.
  """
  radius = kernel_size // 2
  mask = np.ones((radius + 1, kernel_size, len(inputs), len(outputs)), bool)
  mask[radius, radius] = channel_mask(inputs, outputs, strict)
  mask[radius, radius + 1 :] = False
  return mask


def feature_mask(features: int, channels: int) -> np.ndarray:
  """Mask B from the features of a position to as many of it: [F, F]."""
  of_features = groups(features, channels)
  return channel_mask(of_features, of_features, strict=False)


def output_mask(features: int, channels: int, num_outputs: int) -> np.ndarray:
  """Mask B of the last layer, of the outputs of all channels: [F, C P]."""
  outputs = np.repeat(np.arange(channels), num_outputs)
  return channel_mask(groups(features, channels), outputs, strict=False)


def masked(layer: Affine, mask: np.ndarray) -> Affine:
  """The layer with zeros for weights that would see too much."""
  weights = layer.weights
  return layer._replace(weights=jnp.asarray(mask, weights.dtype) * weights)


def init_masked(key: jax.Array, mask: np.ndarray, dtype: Any) -> Affine:
  """As `init_affine`, for the mean number of weights that a result sees."""
  fan_in = max(1, round(mask.sum() / mask.shape[-1]))
  return init_affine(key, mask.shape, dtype, fan_in)


def reach(
  seen: Iterable[Offset], kernel: Iterable[Offset]
) -> frozenset[Offset]:
  """What a convolution's result sees, if its input sees `seen`.

  >>> sorted(reach([(-1,)], [(0,), (-4,)]))
  [(-5,), (-1,)]
  """
  kernel = list(kernel)
  return frozenset(
    tuple(a + b for a, b in zip(one, other, strict=True))
    for one in seen
    for other in kernel
  )


def check_images(inputs: jax.Array, channels: int) -> None:
  """Refuses what is not a batch of images with so many channels."""
  if inputs.ndim != 4 or inputs.shape[-1] != channels:
    raise ValueError(
      f"got inputs of shape {inputs.shape}, expected [B, H, W, {channels}], "
      "which the parameters are for."
    )


def window(radius: int) -> tuple[np.ndarray, np.ndarray]:
  """Offsets of the taps that are not hidden: rows and columns, in order."""
  side = 2 * radius + 1
  rows, columns = np.divmod(np.arange(radius * side + radius + 1), side)
  return rows - radius, columns - radius


def neighbours(
  inputs: jax.Array, rows: jax.Array, columns: jax.Array
) -> jax.Array:
  """Pixels of images [B, H, W, C], zeros beyond them: [taps, B, C]."""
  pixels = inputs.at[:, rows, columns].get(
    mode="fill", fill_value=0, wrap_negative_indices=False
  )
  return jnp.moveaxis(pixels, 1, 0)


def check_kernels(
  kernel_sizes: tuple[int, ...], features: int, num_classes: int
) -> None:
  """Refuses what is no PixelCNN."""
  if not kernel_sizes or any(k < 3 or k % 2 == 0 for k in kernel_sizes):
    raise ValueError(
      f"got kernel_sizes={kernel_sizes}, expected one or more odd numbers of 3 "
      "or more."
    )
  at_least(1, features=features)
  at_least(0, num_classes=num_classes)
