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

Expectations are those of `quadrature`.  In float64 the relative errors of q,
chi and the slope of q were below 2e-8 for tanh, sigmoid, elu, softplus and hard
tanh, at q from 0.01 to 1e5.

Arguments are scalars, for `vmap`; results are of the default float type, and
NaN where there is none.  phi is applied elementwise and must be continuous.
"""

import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jax.typing import ArrayLike

from revmom.analysis.closed_forms.quadrature import (
  Activation,
  Kinks,
  as_float,
  correlated,
  derivative,
  deviation,
  find_kinks,
  gaussian,
)

_DOUBLINGS = 60  # of a variance, until it exceeds the fixed point
_NEWTON_STEPS = 60  # each halves the error even on the edge of chaos


class Moments(NamedTuple):
  """Mean and variance of a random number."""

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
  y, masses = gaussian(find_kinks(phi), as_float(variance))
  mean = masses @ phi(y)
  return Moments(mean, masses @ (phi(y) - mean) ** 2)


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
  return _variance_map(phi, find_kinks(phi), variance, sigma_w, sigma_b)


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
  u, masses = gaussian(find_kinks(phi), as_float(variance))
  return as_float(sigma_w) ** 2 * (masses @ derivative(phi)(u) ** 2)


def variance_slope(
  phi: Activation, variance: ArrayLike, sigma_w: ArrayLike
) -> jax.Array:
  """dq_{l+1}/dq_l = sigma_w^2 E[phi'^2 + phi phi''], which is chi + the rest.

  (Schoenholz et al. 2017, equation 8.)  A kink adds phi times the jump of the
  slope times the density of the pre-activations there.

  Args:
    phi: elementwise.
    variance: q_l.
    sigma_w: sqrt(N) times the standard deviation of the weights.

  >>> print(variance_slope(jnp.tanh, 0.0, 0.5).round(4))
  0.25
  """
  return _variance_slope(phi, find_kinks(phi), variance, sigma_w)


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
  kinks = find_kinks(phi)
  above = lambda q: _variance_map(phi, kinks, q, sigma_w, sigma_b) - q

  def enlarge(_: int, q: jax.Array) -> jax.Array:
    return jnp.where(above(q) > 0, 2 * q, q)

  def newton(_: int, q: jax.Array) -> jax.Array:
    slope = _variance_slope(phi, kinks, q, sigma_w) - 1
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
  first, second, masses = correlated(find_kinks(phi), correlation, variance)
  power = jnp.sum(masses * phi(first) * phi(second))
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
  first, second, masses = correlated(find_kinks(phi), correlation, variance)
  slope = derivative(phi)
  return as_float(sigma_w) ** 2 * jnp.sum(masses * slope(first) * slope(second))


def _variance_map(
  phi: Activation,
  kinks: Kinks,
  variance: ArrayLike,
  sigma_w: ArrayLike,
  sigma_b: ArrayLike,
) -> jax.Array:
  u, masses = gaussian(kinks, as_float(variance))
  power = masses @ phi(u) ** 2
  return as_float(sigma_w) ** 2 * power + as_float(sigma_b) ** 2


def _variance_slope(
  phi: Activation, kinks: Kinks, variance: ArrayLike, sigma_w: ArrayLike
) -> jax.Array:
  root, slope = deviation(as_float(variance)), derivative(phi)
  u, masses = gaussian(kinks, as_float(variance))
  density = jnp.exp(-((kinks.places / root) ** 2) / 2) / root
  at_kinks = phi(kinks.places) * kinks.jumps * density / math.sqrt(2 * math.pi)
  smooth = masses @ (slope(u) ** 2 + phi(u) * derivative(slope)(u))
  return as_float(sigma_w) ** 2 * (smooth + jnp.sum(at_kinks))
