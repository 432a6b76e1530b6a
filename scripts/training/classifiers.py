"""Image classifiers written with Flax, as (params, images) -> logits.

Images are [batch, height, width] with values in [0, 1].  Weights are drawn in
float32; `dtype` is that of activations, and of the weights where they are used.
"""

import jax
import jax.numpy as jnp
from flax import linen as nn


class MLP(nn.Module):
  """Maclaurin et al. (2015): three hidden layers of 50 tanh units."""

  num_classes: int
  dtype: jnp.dtype

  @nn.compact
  def __call__(self, images: jax.Array) -> jax.Array:
    x = images.reshape(images.shape[0], -1)
    for _ in range(3):
      x = nn.tanh(_dense(self, 50)(x))
    return _dense(self, self.num_classes)(x)


class ConvNet(nn.Module):
  """Two 3x3 convolutions, each followed by an average pool.

  Not by a max-pool, whose backward pass has no deterministic GPU kernel; and
  not by strides, whose gradients XLA computes slowly on CPUs.
  """

  num_classes: int
  dtype: jnp.dtype

  @nn.compact
  def __call__(self, images: jax.Array) -> jax.Array:
    x = images[..., None]
    for features in (8, 16):
      convolution = nn.Conv(features, (3, 3), dtype=self.dtype)
      x = nn.avg_pool(nn.relu(convolution(x)), (2, 2), (2, 2))
    return _dense(self, self.num_classes)(x.reshape(x.shape[0], -1))


class LSTM(nn.Module):
  """Reads an image row by row, and answers after the last one."""

  num_classes: int
  dtype: jnp.dtype

  @nn.compact
  def __call__(self, images: jax.Array) -> jax.Array:
    cell = nn.OptimizedLSTMCell(48, dtype=self.dtype)
    hidden = jnp.asarray(nn.RNN(cell)(images))
    return _dense(self, self.num_classes)(hidden[:, -1])


class Attention(nn.Module):
  """One block of a vision transformer whose tokens are the rows."""

  num_classes: int
  dtype: jnp.dtype

  @nn.compact
  def __call__(self, images: jax.Array) -> jax.Array:
    features = 32
    positions = self.param(
      "positions",
      nn.initializers.normal(0.02),
      (1, images.shape[1], features),
    ).astype(self.dtype)
    x = _dense(self, features)(images)
    x = x + jnp.broadcast_to(positions, x.shape)
    attend = nn.MultiHeadDotProductAttention(num_heads=4, dtype=self.dtype)
    x = x + attend(_norm(self)(x))
    x = x + _dense(self, features)(nn.gelu(_dense(self, 64)(_norm(self)(x))))
    return _dense(self, self.num_classes)(_norm(self)(x).mean(1))


def _dense(model: nn.Module, features: int) -> nn.Dense:
  return nn.Dense(features, dtype=model.dtype)


def _norm(model: nn.Module) -> nn.LayerNorm:
  return nn.LayerNorm(dtype=model.dtype)


MODELS = {"mlp": MLP, "conv": ConvNet, "lstm": LSTM, "attention": Attention}
