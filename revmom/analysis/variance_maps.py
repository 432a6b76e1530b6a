"""How wide random networks pass on variances, correlations and gradients.

A layer h_{l+1} = W phi(h_l) + b of N units, N large, with independent Gaussian
weights of variance sigma_w^2 / N and biases of variance sigma_b^2, has Gaussian
pre-activations, whose variance q, correlation c of two inputs, and gradients
obey (Poole et al. 2016, equations 3, 5 and 7; Schoenholz et al. 2017)

    q_{l+1} = sigma_w^2 E[phi(sqrt(q_l) z)^2] + sigma_b^2,
    c_{l+1} = (sigma_w^2 E[phi(u_1) phi(u_2)] + sigma_b^2) / q,
    chi     = sigma_w^2 E[phi'(sqrt(q) z)^2],

for standard normal z, and u_1 and u_2 of variance q and correlation c_l.  chi
is the mean square growth of a perturbation in a layer, and of a gradient on its
way back: below 1 networks are ordered and gradients vanish, above 1 chaotic and
they explode; chi = 1 is the edge of chaos.

Expectations are by the trapezoidal rule, whose error is exp(-(pi^2 / step) /
sqrt(q)) for tanh: below 1e-8 up to q = 25, where 99 Gauss-Hermite points are
off by a quarter, for they are repelled by the poles of tanh.  Where phi has a
kink the error is 1e-3 at most.

Arguments are scalars, for `vmap`; results are of the default float type, and
NaN where there is none.  phi is applied elementwise and must be continuous.
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.typing import ArrayLike

Activation = Callable[[jax.Array], jax.Array]

# Beyond is e^(-81/2), less than rounding; 0, where kinks are, is no point.
_POINTS = np.linspace(-9, 9, 256)
_MASSES = np.exp(-(_POINTS**2) / 2) / np.exp(-(_POINTS**2) / 2).sum()
_DOUBLINGS = 60  # of a variance, until it exceeds the fixed point
_NEWTON_STEPS = 60  # each halves the error even on the edge of chaos


class Moments(NamedTuple):
  """Of a random number."""

  mean: jax.Array
  variance: jax.Array


def moments(phi: Activation, variance: ArrayLike) -> Moments:
  """Mean and variance of phi(y) for y ~ N(0, variance).

  For a sum y = sum_i W_i x_i of d terms of unit variance and weights of
  standard deviation 1 / sqrt(d), the variance of y is 1.  A sigmoid of it has
  mean 1/2, by symmetry, and a variance below that of y, as its slope is at most
  1/4, and below 1/4, as it lies between 0 and 1.

  Args:
    phi: elementwise.
    variance: of y.

  >>> mean, variance = moments(jax.nn.sigmoid, 1.0)
  >>> print(f"{mean:.4f} {variance:.4f}")
  0.5000 0.0434
  """
  y = _gaussian(as_float(variance))
  mean = _expectation(phi(y))
  return Moments(mean, _expectation((phi(y) - mean) ** 2))


def variance_map(
  phi: Activation, variance: ArrayLike, sigma_w: ArrayLike, sigma_b: ArrayLike
) -> jax.Array:
  """q_{l+1} of q_l (Poole et al. 2016, equation 3).

  Args:
    phi: elementwise.
    variance: q_l, of the pre-activations.
    sigma_w: sqrt(N) times the standard deviation of the weights.
    sigma_b: that of the biases.

  >>> print(variance_map(jax.nn.relu, 3.0, 2**0.5, 0.0).round(4))  # He
  3.0
  """
  power = _expectation(phi(_gaussian(as_float(variance))) ** 2)
  return as_float(sigma_w) ** 2 * power + as_float(sigma_b) ** 2


def chi(phi: Activation, variance: ArrayLike, sigma_w: ArrayLike) -> jax.Array:
  """Mean square growth of perturbations and gradients in a layer.

  chi = sigma_w^2 E[phi'(sqrt(q) z)^2] (Poole et al. 2016, equation 7).

  Args:
    phi: elementwise.
    variance: q, such as `fixed_variance`.
    sigma_w: sqrt(N) times the standard deviation of the weights.

  >>> print(chi(jax.nn.relu, 3.0, 2**0.5).round(4))  # He
  1.0
  """
  slope = _derivative(phi)(_gaussian(as_float(variance)))
  return as_float(sigma_w) ** 2 * _expectation(slope**2)


def variance_slope(
  phi: Activation, variance: ArrayLike, sigma_w: ArrayLike
) -> jax.Array:
  """dq_{l+1}/dq_l = sigma_w^2 E[phi'^2 + phi phi''], which is chi + the rest.

  (Schoenholz et al. 2017, equation 8.)

  Args:
    phi: elementwise.
    variance: q_l.
    sigma_w: sqrt(N) times the standard deviation of the weights.

  >>> print(variance_slope(jnp.tanh, 0.0, 0.5).round(4))
  0.25
  """
  u, slope = _gaussian(as_float(variance)), _derivative(phi)
  return as_float(sigma_w) ** 2 * _expectation(
    slope(u) ** 2 + phi(u) * _derivative(slope)(u)
  )


def fixed_variance(
  phi: Activation, sigma_w: ArrayLike, sigma_b: ArrayLike
) -> jax.Array:
  """q*, the variance that layers approach from any larger one.

  By Newton's method from above, which converges for maps that are concave, as
  those of tanh and the sigmoid.

  Args:
    phi: elementwise.
    sigma_w: sqrt(N) times the standard deviation of the weights.
    sigma_b: that of the biases.

  Returns:
    q*; NaN if variances grow without bound, or the method did not converge.

  >>> print(fixed_variance(jnp.tanh, 1.5, 0.0).round(4))
  0.7934
  """
  above = lambda q: variance_map(phi, q, sigma_w, sigma_b) - q

  def enlarge(_: int, q: jax.Array) -> jax.Array:
    return jnp.where(above(q) > 0, 2 * q, q)

  def newton(_: int, q: jax.Array) -> jax.Array:
    slope = variance_slope(phi, q, sigma_w) - 1
    return jnp.maximum(q - jnp.where(slope < 0, above(q) / slope, 0), 0)

  start = lax.fori_loop(0, _DOUBLINGS, enlarge, as_float(1.0))
  q = lax.fori_loop(0, _NEWTON_STEPS, newton, start)
  settled = jnp.abs(above(q)) <= 16 * jnp.finfo(q.dtype).eps * (1 + q)
  return jnp.where((above(start) <= 0) & settled, q, jnp.nan)


def correlation_map(
  phi: Activation,
  correlation: ArrayLike,
  variance: ArrayLike,
  sigma_w: ArrayLike,
  sigma_b: ArrayLike,
) -> jax.Array:
  """c_{l+1} of c_l, both variances being q* (Poole et al. 2016, equation 5).

  Args:
    phi: elementwise.
    correlation: c_l of the pre-activations of two inputs, from -1 to 1.
    variance: q*, from `fixed_variance`.
    sigma_w: sqrt(N) times the standard deviation of the weights.
    sigma_b: that of the biases.

  >>> print(f"{correlation_map(jax.nn.relu, 0.0, 1.0, 2**0.5, 0.0):.3f}")
  0.318
  """
  first, second = _correlated(correlation, variance)
  power = _expectation(_expectation(phi(first) * phi(second)))
  sigma_w, sigma_b = as_float(sigma_w), as_float(sigma_b)
  return (sigma_w**2 * power + sigma_b**2) / as_float(variance)


def correlation_slope(
  phi: Activation,
  correlation: ArrayLike,
  variance: ArrayLike,
  sigma_w: ArrayLike,
) -> jax.Array:
  """dc_{l+1}/dc_l = sigma_w^2 E[phi'(u_1) phi'(u_2)]; at c_l = 1 it is chi.

  (Schoenholz et al. 2017, equation 11.)

  Args:
    phi: elementwise.
    correlation: c_l.
    variance: q*.
    sigma_w: sqrt(N) times the standard deviation of the weights.

  >>> print(f"{correlation_slope(jax.nn.relu, 0.0, 1.0, 2**0.5):.3f}")
  0.500
  """
  first, second = map(_derivative(phi), _correlated(correlation, variance))
  return as_float(sigma_w) ** 2 * _expectation(_expectation(first * second))


def as_float(value: ArrayLike) -> jax.Array:
  """A float of the default type."""
  return jnp.asarray(value, jnp.result_type(float))


def _gaussian(variance: jax.Array) -> jax.Array:
  """sqrt(q) z at the points of the quadrature; at q = 0 its limit from above.

  Of relu, which has no derivative at 0, it is the limit that matters.
  """
  smallest = jnp.finfo(variance.dtype).tiny
  positive = jnp.where(variance == 0, smallest, variance)
  return jnp.sqrt(positive) * as_float(_POINTS)


def _expectation(values: jax.Array) -> jax.Array:
  """Over the last axis."""
  return values @ as_float(_MASSES)


def _correlated(
  correlation: ArrayLike, variance: ArrayLike
) -> tuple[jax.Array, jax.Array]:
  """u_1 and u_2 at the points of the quadrature over both, [z_1, z_2]."""
  c, u = as_float(correlation), _gaussian(as_float(variance))
  rounding = 8 * jnp.finfo(c.dtype).eps
  inside = jnp.abs(c) <= 1 + rounding
  rest = jnp.where(inside, jnp.sqrt(jnp.maximum(1 - c * c, 0)), jnp.nan)
  return u[:, None], c * u[:, None] + rest * u


def _derivative(phi: Activation) -> Activation:
  def slope(u: jax.Array) -> jax.Array:
    _, tangent = jax.jvp(phi, (u,), (jnp.ones_like(u),))
    return jnp.where(jnp.isnan(u), u, tangent)  # of relu it would be 0

  return slope
