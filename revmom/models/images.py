"""Images of integers as floats with a density, and bits per dimension."""

import math

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import DTypeLike

from revmom.models.bijection import Bijection, event_sum


def dequantise(
  key: jax.Array,
  images: jax.Array,
  levels: int = 256,
  dtype: DTypeLike = jnp.float32,
) -> jax.Array:
  """x = (k + u) / levels with uniform noise u in [0, 1).

  For p(x) of such x, E_u log p(x) - D log(levels) is at most log P(k) (Theis,
  van den Oord & Bethge 2016, equation 6).

  Args:
    key: of the noise.
    images: integers k in 0, ..., levels - 1, of any shape.
    levels: how many values a number has.
    dtype: of the result.

  Returns:
    x in [0, 1], of the same shape.

  Raises:
    ValueError: if the images are not integers.
  """
  if not jnp.issubdtype(jnp.result_type(images), jnp.integer):
    raise ValueError(
      f"dequantise got images of {jnp.result_type(images)}, expected integers "
      f"in 0, ..., {levels - 1}: floats have a density without noise."
    )
  noise = jax.random.uniform(key, jnp.shape(images), dtype)
  return (jnp.asarray(images).astype(dtype) + noise) / levels


def quantise(
  x: jax.Array, levels: int = 256, dtype: DTypeLike = jnp.uint8
) -> jax.Array:
  """The integers k of x = (k + u) / levels, clipped to 0, ..., levels - 1.

  >>> quantise(jnp.array([-0.1, 0.0, 0.499, 1.2]))
  Array([  0,   0, 127, 255], dtype=uint8)
  """
  return jnp.clip(jnp.floor(x * levels), 0, levels - 1).astype(dtype)


def bits_per_dim(
  log_prob: jax.Array, event_size: int, levels: int = 256
) -> jax.Array:
  r"""Bits for each number of an image.

  .. math::
    -\frac{\log p(x) - D \log(\text{levels})}{D \log 2}

  Args:
    log_prob: log p(x) in nats, of x from `dequantise`.
    event_size: D, numbers in an image.
    levels: as for `dequantise`.

  >>> print(bits_per_dim(jnp.array(0.0), 784))
  8.0
  """
  return math.log2(levels) - log_prob / (event_size * math.log(2))


def logit(alpha: float = 0.05, event_ndim: int = 3) -> Bijection:
  r"""y = logit(alpha + (1 - 2 alpha) x), from [0, 1] to real numbers.

  .. math::
    \log|\det| = \sum_i \log(1 - 2\alpha) - \log p_i - \log(1 - p_i),
    \qquad p = \alpha + (1 - 2\alpha) x

  Dinh, Sohl-Dickstein & Bengio (2017), section 4.1, and symmetric as in their
  code: the paper's alpha + (1 - alpha) x has no finite image of 1.

  Args:
    alpha: how far from 0 and 1 the argument of the logit stays.
    event_ndim: axes of an event: 3 for images, 1 for vectors.

  Returns:
    A bijection without parameters; x outside of [0, 1] may give NaN.

  Raises:
    ValueError: alpha outside of (0, 1/2).
  """
  if not 0 < alpha < 0.5:
    raise ValueError(f"got alpha={alpha}, expected 0 < alpha < 1/2.")
  width = 1 - 2 * alpha

  def init(key: jax.Array, x: jax.Array) -> tuple[()]:
    return ()

  def forward(params: tuple[()], x: jax.Array) -> tuple[jax.Array, jax.Array]:
    p = alpha + width * x
    y = jnp.log(p) - jnp.log1p(-p)
    return y, event_sum(log_slope(y), event_ndim)

  def inverse(params: tuple[()], y: jax.Array) -> tuple[jax.Array, jax.Array]:
    x = (jax.nn.sigmoid(y) - alpha) / width
    return x, -event_sum(log_slope(y), event_ndim)

  def log_slope(y: jax.Array) -> jax.Array:
    """-log p - log(1 - p) = softplus(-y) + softplus(y)."""
    constant = np.log(width).astype(y.dtype)
    return constant + jax.nn.softplus(y) + jax.nn.softplus(-y)

  return Bijection(init, forward, inverse)
