"""Actnorm: a scale and a bias for each channel."""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from revmom.models.flows.bijection import Bijection, same_everywhere
from revmom.numerics import accumulator


class ActnormParams(NamedTuple):
  """Parameters of each channel [C]."""

  bias: jax.Array
  log_scale: jax.Array


def actnorm(event_ndim: int = 1) -> Bijection:
  """y = (x + b) exp(s) with channel-wise b and s.

  Kingma & Dhariwal (2018), section 3.1: `init` chooses b and s such that y has
  mean zero and variance one in each channel of the batch it is given; a
  channel without variance keeps its scale.  Then they are parameters like
  others.  log|det| is the sum of s, times H W for images.

  Args:
    event_ndim: 1 for vectors [C], 3 for images [H, W, C].

  Returns:
    A bijection with `ActnormParams`.
  """

  def init(key, x):
    values = x.reshape(-1, x.shape[-1]).astype(accumulator(x.dtype))
    mean, variance = values.mean(0), values.var(0)
    # The mean of equal numbers may be rounded.
    rounding = (16 * jnp.finfo(x.dtype).eps * mean) ** 2
    variance = jnp.where(variance > rounding, variance, 1)
    log_scale = -0.5 * jnp.log(variance)
    return ActnormParams((-mean).astype(x.dtype), log_scale.astype(x.dtype))

  def forward(params, x):
    y = (x + params.bias) * jnp.exp(params.log_scale)
    return y, log_det(params, x)

  def inverse(params, y):
    x = y * jnp.exp(-params.log_scale) - params.bias
    return x, -log_det(params, y)

  def log_det(params, x):
    return same_everywhere(params.log_scale, x, event_ndim)

  return Bijection(init, forward, inverse)
