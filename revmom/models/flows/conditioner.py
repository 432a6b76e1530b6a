"""Networks that tell couplings how to transform one part from the other.

Their last layers start at zero, so that couplings start as the identity, or
near it (Kingma & Dhariwal 2018, section 3.3).
"""

from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from revmom.models.affine_layer import Affine, convolve


class Conditioner(NamedTuple):
  """A network, or any function, that is not inverted.

  Attributes:
    init: (key, x, outputs) -> params, for x [*batch, *event]; `outputs` is the
      size of the result's last axis.
    apply: (params, x) -> [*batch, *event[:-1], outputs].
    event_ndim: axes of an event: 1 for vectors [D], 3 for images [H, W, C].
  """

  init: Callable[[jax.Array, jax.Array, int], Any]
  apply: Callable[[Any, jax.Array], jax.Array]
  event_ndim: int


def _init(
  key: jax.Array, shape: Sequence[int], gain: float, like: jax.Array
) -> Affine:
  """Normal weights of variance gain / fan-in (He, Zhang, Ren & Sun 2015)."""
  *fan, outputs = shape
  fan_in = 1
  for size in fan:
    fan_in *= size
  weights = jax.random.normal(key, tuple(shape), like.dtype)
  return Affine(
    weights * (gain / max(1, fan_in)) ** 0.5, jnp.zeros(outputs, like.dtype)
  )


def mlp(
  hidden: Sequence[int] = (128, 128),
  activation: Callable[[jax.Array], jax.Array] = jax.nn.relu,
) -> Conditioner:
  """A fully connected network on vectors.

  Args:
    hidden: sizes of the hidden layers; none makes it affine.
    activation: after each of them.

  Returns:
    A conditioner of events [D].
  """

  def init(key: jax.Array, x: jax.Array, outputs: int) -> tuple[Affine, ...]:
    shapes = list(pairwise((x.shape[-1], *hidden, outputs)))
    gains = [2.0] * len(hidden) + [0.0]
    keys = jax.random.split(key, len(shapes))
    return tuple(
      _init(key, shape, gain, x)
      for key, shape, gain in zip(keys, shapes, gains, strict=True)
    )

  def apply(params: tuple[Affine, ...], x: jax.Array) -> jax.Array:
    *inner, last = params
    for layer in inner:
      x = activation(x @ layer.weights + layer.bias)
    return x @ last.weights + last.bias

  return Conditioner(init, apply, event_ndim=1)


def convnet(
  hidden: int = 512, kernels: Sequence[int] = (3, 1, 3)
) -> Conditioner:
  """Convolutions with relu between them, as Glow's couplings have.

  The sizes are those of Kingma & Dhariwal (2018), section 5.  Their actnorm
  inside the network and the learned gain of its last layer are left out.

  Args:
    hidden: channels between the convolutions.
    kernels: side of each convolution's kernel; one alone makes it affine.

  Returns:
    A conditioner of events [H, W, C].
  """

  def init(key: jax.Array, x: jax.Array, outputs: int) -> tuple[Affine, ...]:
    inner = [hidden] * (len(kernels) - 1)
    sizes = pairwise((x.shape[-1], *inner, outputs))
    gains = [2.0] * len(inner) + [0.0]
    keys = jax.random.split(key, len(kernels))
    return tuple(
      _init(key, (kernel, kernel, *size), gain, x)
      for key, kernel, size, gain in zip(
        keys, kernels, sizes, gains, strict=True
      )
    )

  def apply(params: tuple[Affine, ...], x: jax.Array) -> jax.Array:
    images = x.reshape(-1, *x.shape[-3:])
    *inner, last = params
    for layer in inner:
      images = jax.nn.relu(_convolve(layer, images))
    images = _convolve(last, images)
    return images.reshape(*x.shape[:-3], *images.shape[1:])

  return Conditioner(init, apply, event_ndim=3)


def _convolve(layer: Affine, images: jax.Array) -> jax.Array:
  """Convolution [N, H, W, C] to [N, H, W, G], with zeros around."""
  if layer.weights.shape[0] == 1:
    return images @ layer.weights[0, 0] + layer.bias
  return convolve(layer, images)
