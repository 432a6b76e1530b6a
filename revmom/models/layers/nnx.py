"""Layers that keep gradients alive in deep networks, as modules of Flax NNX.

They take any modules as branches, normalisations and layers:

>>> rngs = nnx.Rngs(0)
>>> block = PreNormResidual(
...   nnx.Linear(3, 3, rngs=rngs), nnx.BatchNorm(3, rngs=rngs)
... )
>>> block(jnp.ones((2, 3))).shape
(2, 3)
"""

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jax.typing import DTypeLike

from revmom.cells.exchange.nnx_weights import Weighted
from revmom.models.layers import ugcnn
from revmom.models.layers.residual import residual_sum

__all__ = [
  "UGCNN",
  "DeepSupervision",
  "PostNormResidual",
  "PreNormResidual",
  "Residual",
]

Function = Callable[[jax.Array], jax.Array]


class UGCNN(Weighted):
  """L' = G L + (1 - G) R on images; see `revmom.models.ugcnn`.

  >>> layer = UGCNN(3, rngs=nnx.Rngs(0))
  >>> layer(jnp.ones((2, 8, 8, 3))).shape
  (2, 8, 8, 3)
  """

  def __init__(
    self,
    channels: int,
    kernel_size: int = 3,
    *,
    rngs: nnx.Rngs,
    update_bias: float = 1.0,
    dtype: DTypeLike | None = None,
    param_dtype: DTypeLike = jnp.float32,
  ):
    """Draws the weights.

    Args:
      channels: of images, and of the result.
      kernel_size: side of the filters.
      rngs: of the weights ("params").
      update_bias: of the gate at first.
      dtype: to cast images and parameters to; None is as they are.
      param_dtype: of the parameters.

    Raises:
      ValueError: if there are no channels, or no filter.
    """
    self.dtype = dtype
    self._hold(
      ugcnn.init(
        rngs.params(),
        channels,
        kernel_size,
        update_bias=update_bias,
        dtype=param_dtype,
      )
    )

  def __call__(self, images: jax.Array) -> jax.Array:
    """Images [B, H, W, C] to images of the same shape."""
    return ugcnn.apply(self.weights(), self._cast(images))


class Residual(nnx.Module):
  """z' = z + f(z).

  >>> layer = Residual(nnx.Linear(3, 3, rngs=nnx.Rngs(0)))
  >>> layer(jnp.ones((2, 3))).shape
  (2, 3)
  """

  def __init__(self, branch: Function):
    """`branch` is f, a module or a function that keeps the shape."""
    self.branch = branch

  def __call__(self, z: jax.Array) -> jax.Array:
    """z' of the shape of z.

    Raises:
      ValueError: if the branch changes the shape.
    """
    return residual_sum(z, self.branch(z))


class PreNormResidual(nnx.Module):
  """z' = z + f(norm(z)): the identity path has a Jacobian of I.

  >>> norm = nnx.LayerNorm(3, rngs=nnx.Rngs(0))
  >>> PreNormResidual(jnp.tanh, norm)(jnp.ones((2, 3))).shape
  (2, 3)
  """

  def __init__(self, branch: Function, norm: Function):
    """`branch` is f; `norm` such as `nnx.BatchNorm` or `nnx.LayerNorm`."""
    self.branch = branch
    self.norm = norm

  def __call__(self, z: jax.Array) -> jax.Array:
    """z' of the shape of z.

    Raises:
      ValueError: if the branch changes the shape.
    """
    return residual_sum(z, self.branch(self.norm(z)))


class PostNormResidual(nnx.Module):
  """z' = norm(z + f(z)): the identity path shrinks with every layer.

  >>> norm = nnx.LayerNorm(3, rngs=nnx.Rngs(0))
  >>> PostNormResidual(jnp.tanh, norm)(jnp.ones((2, 3))).shape
  (2, 3)
  """

  def __init__(self, branch: Function, norm: Function):
    """`branch` is f; `norm` such as `nnx.BatchNorm` or `nnx.LayerNorm`."""
    self.branch = branch
    self.norm = norm

  def __call__(self, z: jax.Array) -> jax.Array:
    """z' of the shape of z.

    Raises:
      ValueError: if the branch changes the shape.
    """
    return self.norm(residual_sum(z, self.branch(z)))


class DeepSupervision(nnx.Module):
  """A linear regression on the activations of every layer.

  Predictions are a list, and layers may be of different shapes; the sum of a
  loss over the list is that of deep supervision.

  >>> rngs = nnx.Rngs(0)
  >>> layers = [nnx.Linear(3, 5, rngs=rngs), nnx.Linear(5, 4, rngs=rngs)]
  >>> net = DeepSupervision(layers, sizes=[5, 4], outputs=1, rngs=rngs)
  >>> [prediction.shape for prediction in net(jnp.ones((2, 3)))]
  [(2, 1), (2, 1)]
  """

  def __init__(
    self,
    layers: Sequence[Function],
    sizes: Sequence[int],
    outputs: int,
    *,
    rngs: nnx.Rngs,
    **options: Any,
  ):
    """Draws the weights of the heads.

    Args:
      layers: one after the other.
      sizes: of what each returns, for one example: H W C of an image.
      outputs: numbers to predict.
      rngs: of the heads ("params").
      **options: of `nnx.Linear`, such as dtypes.

    Raises:
      ValueError: if there are not as many sizes as layers.
    """
    if len(layers) != len(sizes):
      raise ValueError(
        f"got {len(layers)} layers and {len(sizes)} sizes; expected as many."
      )
    self.layers = nnx.List(layers)
    self.heads = nnx.List(
      nnx.Linear(size, outputs, rngs=rngs, **options) for size in sizes
    )

  def __call__(self, x: jax.Array) -> list[jax.Array]:
    """The predictions [B, outputs] of every layer, for x [B, ...]."""
    predictions = []
    for layer, head in zip(self.layers, self.heads, strict=True):
      x = layer(x)
      predictions.append(head(x.reshape(len(x), -1)))
    return predictions
