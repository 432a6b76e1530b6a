"""Expectations of functions of Gaussian numbers, by Gauss-Legendre quadrature.

The line is split at 0, at the kinks of the function (up to four points between
-800 and 800 where its slope jumps, found numerically) and at nine standard
deviations.
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


def as_float(value: ArrayLike) -> jax.Array:
  """A float of the default type."""
  return jnp.asarray(value, jnp.result_type(float))


class Kinks(NamedTuple):
  """Where to split integrals, and how much the slope of phi jumps there [4]."""

  places: jax.Array
  jumps: jax.Array


def find_kinks(phi: Activation) -> Kinks:
  """By closing in on the intervals where the slope changes most.

  Its change goes on to be the jump only where there is one, so that the largest
  are kinks in the end.
  """
  slope, ends = derivative(phi), as_float(_GRID)
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
  return lax.stop_gradient(Kinks(places, jnp.where(real, jumps, 0)))


def deviation(variance: jax.Array) -> jax.Array:
  """sqrt(q); at q = 0 its limit from above.

  Of relu, which has no derivative at 0, it is the limit that matters.
  """
  smallest = jnp.finfo(variance.dtype).tiny
  return jnp.sqrt(jnp.where(variance == 0, smallest, variance))


def gaussian(kinks: Kinks, variance: jax.Array) -> tuple[jax.Array, jax.Array]:
  """Points sqrt(q) z of the quadrature, and their masses."""
  root = deviation(variance)
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


def correlated(
  kinks: Kinks, correlation: ArrayLike, variance: ArrayLike
) -> tuple[jax.Array, jax.Array, jax.Array]:
  """u_1 [N, 1] and u_2 [N, N] at the points of a quadrature, and masses."""
  c, q = as_float(correlation), as_float(variance)
  u, of_first = gaussian(kinks, q)
  info = jnp.finfo(c.dtype)
  inside = jnp.abs(c) <= 1 + 8 * info.eps
  rest = jnp.where(inside, jnp.sqrt(jnp.maximum(1 - c * c, 0)), jnp.nan)
  width = deviation(q) * rest
  # For every u_1 the kinks of u_2 are elsewhere.
  away = jnp.append(kinks.places, 0) - c * u[:, None]
  z, of_second = _panels(away / jnp.maximum(width, info.tiny))
  second = c * u[:, None] + width * z
  return u[:, None], second, of_first[:, None] * of_second


def derivative(phi: Activation) -> Activation:
  """The slope of an activation, which keeps NaN."""

  def slope(u: jax.Array) -> jax.Array:
    _, tangent = jax.jvp(phi, (u,), (jnp.ones_like(u),))
    return jnp.where(jnp.isnan(u), u, tangent)  # of relu it would be 0

  return slope
