"""Residual layers, and the two places where they can be normalised.

    z' = z + f(z)         residual
    z' = z + f(norm(z))   pre-norm: normalised inside the branch
    z' = norm(z + f(z))   post-norm: normalised after the sum

(He, Zhang, Ren & Sun 2016, "Identity mappings in deep residual networks").
The Jacobians of the first two are I + J: whatever the branches do, the gradient
of the last z is part of that of the first.  In the third the identity, too, is
multiplied by that of the normalisation, about gamma / sqrt(var(z + f(z))): by
2^(-1/2) in each layer if the branch has the variance of z, so that 2^(-L/2) is
what is left of the identity path through L layers.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.nn import initializers

from revmom.models.affine_layer import Affine, convolve
from revmom.models.layers.layer import Activation, Layer
from revmom.models.sizes import at_least


class NormParams(NamedTuple):
  """Of a branch and of the normalisation before or after it."""

  branch: Any
  norm: Any


class FixupParams(NamedTuple):
  """Of a branch of two layers; biases and the multiplier are scalars []."""

  first: jax.Array  # weights
  second: jax.Array  # weights, zero at first
  biases: jax.Array  # [4], before and after each layer
  multiplier: jax.Array


def residual(branch: Layer) -> Layer:
  """z' = z + f(z).

  Args:
    branch: f, which keeps the shape.

  Raises:
    ValueError: if the branch changes the shape.

  >>> from revmom.models import dense
  >>> layer, z = residual(dense(weights=initializers.zeros)), jnp.ones((2, 3))
  >>> bool((layer.apply(layer.init(jax.random.key(0), z), z) == z).all())
  True
  """

  def apply(params: Any, z: jax.Array) -> jax.Array:
    return residual_sum(z, branch.apply(params, z))

  return Layer(branch.init, apply)


def pre_norm(branch: Layer, norm: Layer) -> Layer:
  """z' = z + f(norm(z)): the identity path has a Jacobian of I.

  Args:
    branch: f, which keeps the shape.
    norm: such as `batch_norm()`.

  Raises:
    ValueError: if the branch changes the shape.

  >>> from revmom.models import batch_norm, dense
  >>> layer, z = pre_norm(dense(), batch_norm()), jnp.eye(3)
  >>> layer.apply(layer.init(jax.random.key(0), z), z).shape
  (3, 3)
  """

  def apply(params: NormParams, z: jax.Array) -> jax.Array:
    return residual_sum(
      z, branch.apply(params.branch, norm.apply(params.norm, z))
    )

  return Layer(_init(branch, norm), apply)


def post_norm(branch: Layer, norm: Layer) -> Layer:
  """z' = norm(z + f(z)): the identity path shrinks with every layer.

  Args:
    branch: f, which keeps the shape.
    norm: such as `batch_norm()`.

  Raises:
    ValueError: if the branch changes the shape.

  >>> from revmom.models import batch_norm, dense
  >>> layer, z = post_norm(dense(), batch_norm()), jnp.eye(3)
  >>> layer.apply(layer.init(jax.random.key(0), z), z).shape
  (3, 3)
  """

  def apply(params: NormParams, z: jax.Array) -> jax.Array:
    total = residual_sum(z, branch.apply(params.branch, z))
    return norm.apply(params.norm, total)

  return Layer(_init(branch, norm), apply)


def fixup_residual(
  num_branches: int,
  *,
  kernel: int | None = None,
  activation: Activation = jax.nn.relu,
) -> Layer:
  """z' = z + a W_2(phi(W_1(z + b_1) + b_2) + b_3) + b_4, without normalisation.

  (Zhang, Dauphin & Ma 2019, figure 1, right.)  W_2 is zero at first, so that
  the network starts as the identity; W_1 is He's times L^(-1/2), the biases b
  are scalars that start at 0, and the multiplier a starts at 1.

  Args:
    num_branches: residual branches of the whole network, L.
    kernel: side of the filters, for images [B, H, W, C]; None is for vectors.
    activation: phi.

  Raises:
    ValueError: if there is no branch.

  >>> layer, z = fixup_residual(50), jnp.ones((2, 3))
  >>> bool((layer.apply(layer.init(jax.random.key(0), z), z) == z).all())
  True
  """
  at_least(1, num_branches=num_branches)
  window = () if kernel is None else (kernel, kernel)
  # He's times L^(-1 / (2m - 2)), for branches of m = 2 layers.
  weights = initializers.variance_scaling(2 / num_branches, "fan_in", "normal")

  def init(key: jax.Array, z: jax.Array) -> FixupParams:
    shape = *window, z.shape[-1], z.shape[-1]
    return FixupParams(
      first=weights(key, shape, z.dtype),
      second=jnp.zeros(shape, z.dtype),
      biases=jnp.zeros(4, z.dtype),
      multiplier=jnp.ones((), z.dtype),
    )

  def product(weights: jax.Array, x: jax.Array) -> jax.Array:
    if kernel is None:
      return x @ weights
    return convolve(Affine(weights, jnp.zeros((), x.dtype)), x)

  def apply(params: FixupParams, z: jax.Array) -> jax.Array:
    before, inner, after, outer = params.biases
    hidden = activation(product(params.first, z + before) + inner)
    branch = product(params.second, hidden + after)
    return residual_sum(z, params.multiplier * branch + outer)

  return Layer(init, apply)


def _init(branch: Layer, norm: Layer) -> Any:
  def init(key: jax.Array, z: jax.Array) -> NormParams:
    keys = jax.random.split(key)
    return NormParams(branch.init(keys[0], z), norm.init(keys[1], z))

  return init


def residual_sum(z: jax.Array, branch: jax.Array) -> jax.Array:
  """z + f(z), of the same shape only: no broadcasting."""
  if branch.shape != z.shape:
    raise ValueError(
      f"the branch makes shape {branch.shape} of {z.shape}; a residual branch "
      "must keep the shape."
    )
  return z + branch
