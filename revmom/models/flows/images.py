"""Images of integers as floats with a density, and bits per dimension."""

import math

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike, DTypeLike

from revmom.models.events import event_sum
from revmom.models.flows.bijection import Bijection
from revmom.numerics import accumulator


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
    x in [0, 1], of the same shape, of which `quantise` gives the images.

  Raises:
    ValueError: if the images are not integers, or the type has too few digits
      for so many levels.
  """
  if not jnp.issubdtype(jnp.result_type(images), jnp.integer):
    raise ValueError(
      f"dequantise got images of {jnp.result_type(images)}, expected integers "
      f"in 0, ..., {levels - 1}: floats have a density without noise."
    )
  digits = jnp.finfo(dtype).nmant + 1
  if not 1 <= levels <= 2**digits:
    raise ValueError(
      f"got levels={levels} and {jnp.dtype(dtype)}, which tells numbers of "
      f"{digits} binary digits apart: expected 1 to {2**digits} levels."
    )
  wide = accumulator(jnp.dtype(dtype))
  images = jnp.asarray(images).astype(wide)
  noise = jax.random.uniform(key, images.shape, wide)
  x = ((images + noise) / levels).astype(dtype)
  for _ in range(2):  # rounding may have made it a neighbour's
    found = jnp.floor(x.astype(wide) * levels)
    x = jnp.where(found > images, jnp.nextafter(x, jnp.zeros_like(x)), x)
    x = jnp.where(found < images, jnp.nextafter(x, jnp.ones_like(x)), x)
  return x


def quantise(
  x: ArrayLike, levels: int = 256, dtype: DTypeLike = jnp.uint8
) -> jax.Array:
  """The integers k of x = (k + u) / levels, clipped to 0, ..., levels - 1.

  Raises:
    ValueError: if x is no float, or `dtype` does not hold so many levels.

  >>> quantise(jnp.array([-0.1, 0.0, 0.499, 1.2]))
  Array([  0,   0, 127, 255], dtype=uint8)
  """
  x = jnp.asarray(x)
  if not jnp.issubdtype(x.dtype, jnp.floating):
    raise ValueError(f"quantise got x of {x.dtype}, expected floats in [0, 1].")
  if not jnp.issubdtype(dtype, jnp.integer) or not (
    1 <= levels <= int(jnp.iinfo(dtype).max) + 1
  ):
    raise ValueError(
      f"got levels={levels}, which {jnp.dtype(dtype)} can't hold: give an "
      "integer type that does, such as dtype=jnp.int32."
    )
  x = x.astype(accumulator(x.dtype))
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
