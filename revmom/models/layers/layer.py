"""Layers that deep networks are stacked from, with nothing but their equations.

A layer maps a batch [B, *event] to a batch, and its parameters are a pytree.
`repeated` stacks one that keeps the shape; its `apply`, and the parameters with
their leading axis of layers, are what `analysis.gradient_flow` takes.
"""

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jax.nn import initializers

from revmom.models.affine_layer import Affine, convolve
from revmom.models.sizes import at_least

Activation = Callable[[jax.Array], jax.Array]

EPSILON = 1e-5  # of normalisation

_UNIT_VARIANCE = initializers.lecun_normal()


class Layer(NamedTuple):
  """A function with parameters.

  Attributes:
    init: (key, x) -> params, for a batch x [B, *event], whose type they take;
      its values do not matter.
    apply: (params, x) -> y.
  """

  init: Callable[[jax.Array, jax.Array], Any]
  apply: Callable[[Any, jax.Array], Any]


class Scale(NamedTuple):
  """Of a normalisation, along the last axis."""

  gamma: jax.Array
  beta: jax.Array


def dense(
  size: int | None = None,
  *,
  activation: Activation = jnp.tanh,
  weights: initializers.Initializer = _UNIT_VARIANCE,
  bias: initializers.Initializer = initializers.zeros,
) -> Layer:
  """y = phi(x W + b), on vectors [B, D].

  Args:
    size: of y; None is that of x.
    activation: phi.
    weights, bias: their initializers.

  >>> layer, x = dense(5), jnp.ones((2, 3))
  >>> layer.apply(layer.init(jax.random.key(0), x), x).shape
  (2, 5)
  """

  def init(key: jax.Array, x: jax.Array) -> Affine:
    shape = x.shape[-1], size or x.shape[-1]
    return init_affine(key, shape, weights, bias, x.dtype)

  def apply(params: Affine, x: jax.Array) -> jax.Array:
    return activation(x @ params.weights + params.bias)

  return Layer(init, apply)


def convolution(
  channels: int | None = None,
  kernel: int = 3,
  *,
  activation: Activation = jnp.tanh,
  weights: initializers.Initializer = _UNIT_VARIANCE,
  bias: initializers.Initializer = initializers.zeros,
) -> Layer:
  """y = phi(x * W + b), on images [B, H, W, C], with zeros around them.

  Args:
    channels: of y; None is as many as x has.
    kernel: side of the filters.
    activation: phi.
    weights, bias: their initializers.

  >>> layer, x = convolution(5), jnp.ones((2, 4, 4, 3))
  >>> layer.apply(layer.init(jax.random.key(0), x), x).shape
  (2, 4, 4, 5)
  """

  def init(key: jax.Array, x: jax.Array) -> Affine:
    shape = kernel, kernel, x.shape[-1], channels or x.shape[-1]
    return init_affine(key, shape, weights, bias, x.dtype)

  def apply(params: Affine, x: jax.Array) -> jax.Array:
    return activation(convolve(params, x))

  return Layer(init, apply)


def batch_norm(epsilon: float = EPSILON) -> Layer:
  """y = gamma x_hat + beta over the batch and all axes but the last.

  (Ioffe & Szegedy 2015, algorithm 1.)  The statistics are those of the batch,
  always: there are no running averages.

  Args:
    epsilon: added to variances.

  >>> layer, x = batch_norm(), jnp.array([[1.0], [5.0]])
  >>> print(layer.apply(layer.init(jax.random.key(0), x), x).round(4).ravel())
  [-1.  1.]
  """

  def init(key: jax.Array, x: jax.Array) -> Scale:
    del key
    size = x.shape[-1:]
    return Scale(jnp.ones(size, x.dtype), jnp.zeros(size, x.dtype))

  def apply(params: Scale, x: jax.Array) -> jax.Array:
    rows, _ = normalise(x.reshape(-1, x.shape[-1]), epsilon)
    return params.gamma * rows.reshape(x.shape) + params.beta

  return Layer(init, apply)


def repeated(layer: Layer, depth: int) -> Layer:
  """A layer that keeps the shape, `depth` times, each with its own parameters.

  One `lax.scan`: programs do not grow with depth.

  Args:
    layer: of events of some shape to events of the same.
    depth: how often.

  Returns:
    A layer whose parameters are those of `layer` with a leading axis [depth].

  Raises:
    ValueError: if there is no layer, or it changes the shape.

  >>> net, x = repeated(dense(), 100), jnp.ones((2, 3))
  >>> params = net.init(jax.random.key(0), x)
  >>> params.weights.shape, net.apply(params, x).shape
  ((100, 3, 3), (2, 3))
  """
  at_least(1, depth=depth)

  def init(key: jax.Array, x: jax.Array) -> Any:
    params = jax.vmap(lambda key: layer.init(key, x))(
      jax.random.split(key, depth)
    )
    first = jax.tree.map(lambda leaf: leaf[0], params)
    y = jax.eval_shape(layer.apply, first, x)
    if (y.shape, y.dtype) != (x.shape, x.dtype):
      raise ValueError(
        f"the layer makes {y.dtype}{list(y.shape)} of {x.dtype}{list(x.shape)};"
        " only one that keeps shape and type can be repeated."
      )
    return params

  def apply(params: Any, x: jax.Array) -> jax.Array:
    return lax.scan(lambda x, p: (layer.apply(p, x), None), x, params)[0]

  return Layer(init, apply)


def normalise(x: jax.Array, epsilon: float) -> tuple[jax.Array, jax.Array]:
  """x_hat and sqrt(var + epsilon), over the first axis."""
  if x.ndim == 0 or len(x) == 0:
    raise ValueError(
      f"x has shape {x.shape}; expected a mini-batch of one example or more "
      "along its first axis."
    )
  scale = jnp.sqrt(jnp.var(x, 0) + epsilon)
  return (x - jnp.mean(x, 0)) / scale, scale


def init_affine(
  key: jax.Array,
  shape: tuple[int, ...],
  weights: initializers.Initializer,
  bias: initializers.Initializer,
  dtype: Any,
) -> Affine:
  """Weights of a shape [..., D, G] and their bias [G]."""
  if not math.prod(shape):
    raise ValueError(f"weights of shape {list(shape)} would be empty.")
  keys = jax.random.split(key)
  return Affine(
    weights(keys[0], shape, dtype), bias(keys[1], shape[-1:], dtype)
  )
