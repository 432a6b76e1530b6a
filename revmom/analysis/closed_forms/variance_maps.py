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

Expectations are by Gauss-Legendre quadrature between 0, the kinks of phi (up to
four points between -800 and 800 where its slope jumps, found numerically)
and nine standard deviations.  In float64 the relative errors of q, chi and the
slope of q were below 2e-8 for tanh, sigmoid, elu, softplus and hard tanh, at
q from 0.01 to 1e5.

Arguments are scalars, for `vmap`; results are of the default float type, and
NaN where there is none.  phi is applied elementwise and must be continuous.
"""

import math
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.typing import ArrayLike

Activation = Callable[[jax.Array], jax.Array]

_EDGE = 9.0  # standard deviations; beyond is e^(-81/2), less than rounding
_NODES, _WEIGHTS = np.polynomial.legendre.leggauss(48)  # of each panel
# Where to split (in u) if there are not as many kinks, for steep activations.
_ELSEWHERE = np.array([30.0, -30.0, 3.0, -3.0])
# Ends of intervals where kinks are looked for; none is a round number.
_GRID = 0.01 * np.sinh(np.linspace(-12.0137, 12.0071, 1024))
_CANDIDATES = 32  # intervals, of which most turn out smooth
_SECTIONS = 64  # of each of them, again and again
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
  y, masses = _gaussian(_kinks(phi), as_float(variance))
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
  return _variance_map(phi, _kinks(phi), variance, sigma_w, sigma_b)


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
  u, masses = _gaussian(_kinks(phi), as_float(variance))
  return as_float(sigma_w) ** 2 * (masses @ _derivative(phi)(u) ** 2)


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
  return _variance_slope(phi, _kinks(phi), variance, sigma_w)


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
  kinks = _kinks(phi)
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
  first, second, masses = _correlated(_kinks(phi), correlation, variance)
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
  first, second, masses = _correlated(_kinks(phi), correlation, variance)
  slope = _derivative(phi)
  return as_float(sigma_w) ** 2 * jnp.sum(masses * slope(first) * slope(second))


def as_float(value: ArrayLike) -> jax.Array:
  """A float of the default type."""
  return jnp.asarray(value, jnp.result_type(float))


class _Kinks(NamedTuple):
  """Where to split integrals, and how much the slope of phi jumps there [4]."""

  places: jax.Array
  jumps: jax.Array


def _kinks(phi: Activation) -> _Kinks:
  """By closing in on the intervals where the slope changes most.

  Its change goes on to be the jump only where there is one, so that the largest
  are kinks in the end.
  """
  slope, ends = _derivative(phi), as_float(_GRID)
  eps = jnp.finfo(ends.dtype).eps
  slopes = slope(ends)
  slopes = jnp.where(jnp.isfinite(slopes), slopes, 0)
  _, most = lax.top_k(jnp.abs(jnp.diff(slopes)), _CANDIDATES)
  low, high = ends[most], ends[most + 1]
  shares = as_float(np.linspace(0, 1, _SECTIONS + 1))
  for _ in range(math.ceil(-math.log(eps / 16, _SECTIONS))):
    points = low[:, None] + (high - low)[:, None] * shares
    at = jnp.abs(jnp.diff(slope(points), axis=-1)).argmax(-1, keepdims=True)
    low = jnp.take_along_axis(points, at, -1)[:, 0]
    high = jnp.take_along_axis(points, at + 1, -1)[:, 0]
  # Clear of the kink itself, whose slope is a convention.
  aside = 4 * eps * (jnp.abs(low) + eps)
  jumps = slope(high + aside) - slope(low - aside)
  jumps = jnp.where(jnp.isfinite(jumps), jumps, 0)
  _, most = lax.top_k(jnp.abs(jumps), len(_ELSEWHERE))
  places, jumps = (low + high)[most] / 2, jumps[most]
  real = jnp.abs(jumps) > 8 * eps**0.5 * jnp.abs(slopes).max()
  places = jnp.where(real, places, as_float(_ELSEWHERE))
  return lax.stop_gradient(_Kinks(places, jnp.where(real, jumps, 0)))


def _variance_map(
  phi: Activation,
  kinks: _Kinks,
  variance: ArrayLike,
  sigma_w: ArrayLike,
  sigma_b: ArrayLike,
) -> jax.Array:
  u, masses = _gaussian(kinks, as_float(variance))
  power = masses @ phi(u) ** 2
  return as_float(sigma_w) ** 2 * power + as_float(sigma_b) ** 2


def _variance_slope(
  phi: Activation, kinks: _Kinks, variance: ArrayLike, sigma_w: ArrayLike
) -> jax.Array:
  root, slope = _deviation(as_float(variance)), _derivative(phi)
  u, masses = _gaussian(kinks, as_float(variance))
  density = jnp.exp(-((kinks.places / root) ** 2) / 2) / root
  at_kinks = phi(kinks.places) * kinks.jumps * density / math.sqrt(2 * math.pi)
  smooth = masses @ (slope(u) ** 2 + phi(u) * _derivative(slope)(u))
  return as_float(sigma_w) ** 2 * (smooth + jnp.sum(at_kinks))


def _deviation(variance: jax.Array) -> jax.Array:
  """sqrt(q); at q = 0 its limit from above.

  Of relu, which has no derivative at 0, it is the limit that matters.
  """
  smallest = jnp.finfo(variance.dtype).tiny
  return jnp.sqrt(jnp.where(variance == 0, smallest, variance))


def _gaussian(
  kinks: _Kinks, variance: jax.Array
) -> tuple[jax.Array, jax.Array]:
  """Points sqrt(q) z of the quadrature, and their masses."""
  root = _deviation(variance)
  z, masses = _panels(jnp.append(kinks.places, 0) / root)
  return root * z, masses


def _panels(inner: jax.Array) -> tuple[jax.Array, jax.Array]:
  """Standard normal z and masses [..., N], split at inner points [..., n]."""
  ends = jnp.sort(jnp.clip(inner, -_EDGE, _EDGE))
  edge = jnp.full_like(ends[..., :1], _EDGE)
  ends = jnp.concatenate([-edge, ends, edge], -1)
  half = jnp.diff(ends)[..., None] / 2
  z = (ends[..., :-1, None] + half) + half * as_float(_NODES)
  masses = half * as_float(_WEIGHTS) * jnp.exp(-(z**2) / 2)
  z, masses = (a.reshape(*inner.shape[:-1], -1) for a in (z, masses))
  return z, masses / masses.sum(-1, keepdims=True)


def _correlated(
  kinks: _Kinks, correlation: ArrayLike, variance: ArrayLike
) -> tuple[jax.Array, jax.Array, jax.Array]:
  """u_1 [N, 1] and u_2 [N, N] at the points of a quadrature, and masses."""
  c, q = as_float(correlation), as_float(variance)
  u, of_first = _gaussian(kinks, q)
  info = jnp.finfo(c.dtype)
  inside = jnp.abs(c) <= 1 + 8 * info.eps
  rest = jnp.where(inside, jnp.sqrt(jnp.maximum(1 - c * c, 0)), jnp.nan)
  width = _deviation(q) * rest
  # Of u_2 the kinks are elsewhere for every u_1.
  away = jnp.append(kinks.places, 0) - c * u[:, None]
  z, of_second = _panels(away / jnp.maximum(width, info.tiny))
  second = c * u[:, None] + width * z
  return u[:, None], second, of_first[:, None] * of_second


def _derivative(phi: Activation) -> Activation:
  def slope(u: jax.Array) -> jax.Array:
    _, tangent = jax.jvp(phi, (u,), (jnp.ones_like(u),))
    return jnp.where(jnp.isnan(u), u, tangent)  # of relu it would be 0

  return slope
