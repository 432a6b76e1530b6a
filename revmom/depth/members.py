"""Layers of the form that `reversible_scan` undoes."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from revmom.depth.layer import Updates, check_number
from revmom.exact.tracing import concrete

Branch = Callable[[Any, jax.Array], jax.Array]  # (layer, x) -> like x


def revnet(f: Branch, g: Branch) -> Updates:
  r"""A RevNet's block of two streams.

  .. math::
    x_1' = x_1 + f(x_2), \qquad x_2' = x_2 + g(x_1')

  (Gomez, Ren, Urtasun & Grosse 2017, equation 6); with attention as f and a
  perceptron as g it is a layer of a reversible Transformer (Kitaev, Kaiser &
  Levskaya 2020, equation 9).

  Args:
    f: (layer, x_2) -> increment of x_1.
    g: (layer, x_1') -> increment of x_2.
  """
  return Updates(
    (
      lambda layer, carry: f(layer, carry[1]),
      lambda layer, carry: g(layer, carry[0]),
    ),
    (None, None),
  )


def momentum(f: Branch, gamma: Any = 0.9) -> Updates:
  r"""A layer of a Momentum ResNet; the carry is (v, x).

  .. math::
    v' = \gamma v + (1 - \gamma) f(x), \qquad x' = x + v'

  (Sander, Ablin, Blondel & Peyre 2021, equation 4).

  Args:
    f: (layer, x) -> the residual.
    gamma: in (0, 1], a number or a function of the layer, through which
      gradients go.  Where it is traced it may not fall below 0.5, or give
      `reversible_scan` lower `floors`.

  Raises:
    ValueError: gamma is an array.
  """
  gamma_of = _of_layer("gamma", gamma)
  return Updates(
    (
      lambda layer, carry: (1 - gamma_of(layer)) * f(layer, carry[1]),
      lambda layer, carry: carry[0],
    ),
    (gamma, None),
  )


def leapfrog(force: Branch, step_size: Any) -> Updates:
  r"""A step of Stormer and Verlet for x'' = force(x); the carry is (v, x).

  .. math::
    v_{t + 1/2} = v_{t - 1/2} + h\, force(x_t), \qquad
    x_{t + 1} = x_t + h\, v_{t + 1/2}

  (Hairer, Lubich & Wanner 2003, equation 1.5, at half steps.)

  Args:
    force: (layer, x) -> the second derivative of x.
    step_size: h, a number or a function of the layer.

  Raises:
    ValueError: step_size is an array.
  """
  h = _of_layer("step_size", step_size)
  return Updates(
    (
      lambda layer, carry: h(layer) * force(layer, carry[1]),
      lambda layer, carry: h(layer) * carry[0],
    ),
    (None, None),
  )


def asynchronous_leapfrog(
  field: Branch, step_size: Any, sign: Callable[[Any], Any]
) -> Updates:
  r"""A step of the asynchronous leapfrog for x' = field(x), of fixed size.

  .. math::
    v_{t + 1} = 2 f(x_{t + 1/2}) - v_t, \qquad
    x_{t + 3/2} = x_{t + 1/2} + h\, v_{t + 1}

  (Mutze 2013; Zhuang, Dvornek, Tatikonda & Duncan 2021, Algorithm 2, at half
  steps.)  The carry is (v_0, x_0 + h v_0 / 2), v_0 being f(x_0), and the first
  array comes back with the sign of the last layer.

  Args:
    field: (layer, x) -> the derivative of x.
    step_size: h, a number or a function of the layer; an adaptive one would
      depend on the carry and has no inverse.
    sign: a function of the layer that gives -1, 1, -1, ... in turn, since a
      factor of -1 is kept as a sign.

  Raises:
    ValueError: step_size is no number and no function.
  """
  h = _of_layer("step_size", step_size)
  return Updates(
    (
      lambda layer, carry: 2 * sign(layer) * field(layer, carry[1]),
      lambda layer, carry: h(layer) * sign(layer) * carry[0],
    ),
    (None, None),
  )


class Signs(NamedTuple):
  """What BDIA blocks need of their gammas, with a leading axis over layers."""

  gamma: jax.Array  # -1/2 or 1/2
  product: jax.Array  # of all -sign(gamma) up to a layer


def bdia_signs(gammas: jax.Array) -> Signs:
  """Gammas in the form in which `bdia` wants them among its layers.

  Args:
    gammas: -1/2 or 1/2, [depth, ...] such that a layer's can be multiplied
      with x: [depth, batch, 1] draws one for each example.

  Raises:
    ValueError: another number is among them.

  >>> bdia_signs(jnp.array([0.5, -0.5, 0.5])).product
  Array([-1., -1.,  1.], dtype=float32)
  """
  known = concrete(gammas)
  if known is not None and not (np.abs(known) == 0.5).all():
    raise ValueError(
      f"gammas from {known.min()} to {known.max()}; give -0.5 or 0.5 for each, "
      "as in jax.random.rademacher(key, (depth, batch, 1), x.dtype) / 2.  "
      "Without an average over gammas (gamma = 0) blocks are a plain residual "
      "network, for jax.lax.scan."
    )
  gammas = lax.stop_gradient(jnp.asarray(gammas))
  return Signs(gammas, jnp.cumprod(-jnp.sign(gammas), 0))


def bdia(block: Branch, signs: Callable[[Any], Signs]) -> Updates:
  r"""A block of bidirectional integration approximation; the carry is (v, x).

  .. math::
    x_{k+1} = \gamma x_{k-1} + (1 - \gamma) x_k + (1 + \gamma) h_k(x_k),
    \qquad \gamma = \pm 1/2

  (Zhang, Lewis & Kleijn 2024).  With v_k = x_k - x_{k-1} that is

  .. math::
    v_{k+1} = -\gamma v_k + (1 + \gamma) h_k(x_k), \qquad
    x_{k+1} = x_k + v_{k+1},

  a momentum layer with a factor of -1/2 or 1/2 for each example.  Its sign is
  kept apart, and the factor costs one bit a block and element, as theirs does.
  Begin with v = x_1 - x_0, or with zeros; v comes back times `product` of the
  last layer.  At inference gamma is 0, its mean: x + h(x) in `jax.lax.scan`.

  Args:
    block: (layer, x) -> h(x), such as attention and a perceptron.
    signs: layer -> its part of `bdia_signs`, which is among the layers.
  """

  def velocity(layer: Any, carry: tuple) -> jax.Array:
    gamma, product = signs(layer)
    return product * (1 + gamma) * block(layer, carry[1])

  return Updates(
    (velocity, lambda layer, carry: signs(layer).product * carry[0]),
    (0.5, None),
  )


def _of_layer(name: str, value: Any) -> Callable[[Any], Any]:
  """A number as a function of the layer."""
  if callable(value):
    return value
  check_number(name, value)
  return lambda layer: value
