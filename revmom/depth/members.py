"""Layers of the form that `reversible_scan` undoes."""

from collections.abc import Callable
from typing import Any

import jax

from revmom.depth.layer import Updates, check_number

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


def _of_layer(name: str, value: Any) -> Callable[[Any], Any]:
  """A number as a function of the layer."""
  if callable(value):
    return value
  check_number(name, value)
  return lambda layer: value
