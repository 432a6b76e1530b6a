"""An invertible matrix, and Glow's invertible 1x1 convolution."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from revmom.models.flows.bijection import Bijection, same_everywhere
from revmom.numerics import accumulator


class LinearParams(NamedTuple):
  """L, U and s in one array.

  Attributes:
    lu: [C, C]; L below the diagonal, U above it, log s on it.
  """

  lu: jax.Array


def linear(event_ndim: int = 1) -> Bijection:
  r"""y = W x with W = L (U + diag s); for images, the same at every pixel.

  .. math::
    \log|\det| = H W \sum_i \log s_i

  Kingma & Dhariwal (2018), equations 9 to 11, with unit lower triangular L and
  strictly upper triangular U.  They have W = P L (U + diag s) start from a
  random rotation, and keep the permutation P and the signs of s.  Permuting and
  negating rows leaves a rotation or reflection, so here it starts from one
  whose P is the identity and whose s is positive: all parameters are free, and
  det W > 0.

  Args:
    event_ndim: 1 for vectors [C], 3 for images [H, W, C].

  Returns:
    A bijection with `LinearParams`.

  >>> layer, x = linear(), jnp.ones((1, 3))
  >>> params = layer.init(jax.random.key(0), x)
  >>> y, log_det = layer.forward_and_log_det(params, x)
  >>> print(jnp.sum(y * y).round(4), jnp.abs(log_det).round(4))
  3.0 [0.]
  """

  def init(key, x):
    channels, dtype = x.shape[-1], accumulator(x.dtype)
    rotation = jax.random.orthogonal(key, channels, dtype=dtype)
    lu, _, _ = lax.linalg.lu(rotation)
    scales = jnp.diag(lu)
    signs = jnp.sign(scales)  # of rows: W = D L U has L -> D L D, U -> D U
    lower = jnp.tril(lu, -1) * signs * signs[:, None]
    upper = jnp.triu(lu, 1) * signs[:, None]
    lu = lower + upper + jnp.diag(jnp.log(jnp.abs(scales)))
    return LinearParams(lu.astype(x.dtype))

  def forward(params, x):
    lower, upper = factors(params)
    return x @ (lower @ upper).T.astype(x.dtype), log_det(params, x)

  def inverse(params, y):
    lower, upper = factors(params)
    rows = y.reshape(-1, y.shape[-1]).astype(lower.dtype)
    rows = _solve(upper, _solve(lower, rows, lower=True), lower=False)
    return rows.reshape(y.shape).astype(y.dtype), -log_det(params, y)

  def log_det(params, x):
    return same_everywhere(jnp.diag(params.lu), x, event_ndim)

  return Bijection(init, forward, inverse)


def factors(params: LinearParams) -> tuple[jax.Array, jax.Array]:
  """L and U + diag s [C, C], in float32 or wider."""
  lu = params.lu.astype(accumulator(params.lu.dtype))
  identity = jnp.eye(lu.shape[0], dtype=lu.dtype)
  lower = jnp.tril(lu, -1) + identity
  upper = jnp.triu(lu, 1) + jnp.diag(jnp.exp(jnp.diag(lu)))
  return lower, upper


def _solve(triangle: jax.Array, rows: jax.Array, lower: bool) -> jax.Array:
  """The x with x triangle^T = rows [N, C]."""
  return lax.linalg.triangular_solve(
    triangle, rows, left_side=False, lower=lower, transpose_a=True
  )
