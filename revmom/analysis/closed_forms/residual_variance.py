"""What residual filters do to the variance, forward and backward.

A residual layer of linear filters, z_{l+1} = z_l + w_l * z_l, with filters of
D x D pixels over J channels whose weights are independent, of mean 0 and
variance sigma_W^2, has

    var_l = (1 + D^2 J sigma_W^2)^l        forward, of activations,
    var_l = (1 + D^2 J sigma_W^2)^(L - l)  backward, of adjoints,

times that of the image, or of the loss's adjoint: the two terms of the sum are
uncorrelated, and each filter's output has D^2 J terms (backward it is the
number of output channels that counts).  It is exact where the image wraps
around, in the mean over weights; zeros around an image lose some at its edges.

The sum doubles over all L layers if

    sigma_W = sqrt(ln 2 / (L D^2 J)),   as  (1 + ln 2 / L)^L -> 2  for large L;

for L of 1, 10 and 100 it is 1.69, 1.95 and 1.995.
"""

import math

import jax.numpy as jnp
from jax.typing import ArrayLike


def residual_forward_variance(
  layer: ArrayLike, sigma: ArrayLike, fan: int
) -> ArrayLike:
  """(1 + D^2 J sigma_W^2)^l, relative to the variance of the input.

  Args:
    layer: l, the number of residual layers before; any shape.
    sigma: standard deviation of the weights.
    fan: D^2 J, the terms in each output of a filter.

  Returns:
    The factor, of the shape of `layer`.

  Raises:
    ValueError: if `fan` is not positive.

  >>> print(residual_forward_variance(2, 0.5, 4))
  4.0
  """
  return _power(layer, sigma, fan)


def residual_backward_variance(
  layer: ArrayLike, depth: int, sigma: ArrayLike, fan: int
) -> ArrayLike:
  """(1 + D^2 J sigma_W^2)^(L - l), relative to that of the last adjoint.

  Args:
    layer: l, whose adjoint dL/dz_l it is; any shape.
    depth: L.
    sigma: standard deviation of the weights.
    fan: D^2 J, with J the number of output channels.

  Returns:
    The factor, of the shape of `layer`.

  Raises:
    ValueError: if `fan` is not positive.

  >>> print(residual_backward_variance(jnp.array([0, 2]), 2, 0.5, 4))
  [4. 1.]
  """
  return _power(depth - jnp.asarray(layer), sigma, fan)


def residual_sigma(depth: int, fan: int) -> float:
  """sigma_W = sqrt(ln 2 / (L D^2 J)), which doubles the variance in L layers.

  Args:
    depth: L, the number of residual layers.
    fan: D^2 J.

  Raises:
    ValueError: if one of them is not positive.

  >>> sigma = residual_sigma(100, 9 * 16)
  >>> print(f"{sigma:.5f} {residual_forward_variance(100, sigma, 9 * 16):.3f}")
  0.00694 1.995
  """
  if depth < 1 or fan < 1:
    raise ValueError(
      f"got depth={depth} and fan={fan}; expected both to be 1 or more."
    )
  return math.sqrt(math.log(2) / (depth * fan))


def _power(layers: ArrayLike, sigma: ArrayLike, fan: int) -> ArrayLike:
  if fan < 1:
    raise ValueError(f"got fan={fan}; expected 1 or more terms in a sum.")
  sigma = jnp.asarray(sigma)
  return jnp.exp(
    jnp.asarray(layers, sigma.dtype) * jnp.log1p(fan * sigma * sigma)
  )
