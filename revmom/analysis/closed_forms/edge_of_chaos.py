"""How deep signals and gradients get in wide random networks, and their edge.

What the maps of `variance_maps` do near their fixed points; conventions are
those of that module.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.typing import ArrayLike

from revmom.analysis.closed_forms.quadrature import Activation, as_float
from revmom.analysis.closed_forms.variance_maps import (
  chi,
  correlation_map,
  correlation_slope,
  fixed_variance,
  variance_slope,
)

_BISECTIONS = 50


class DepthScales(NamedTuple):
  """Layers after which 1/e is left; see `depth_scales`."""

  variance: jax.Array  # xi_q
  correlation: jax.Array  # xi_c
  gradient: jax.Array  # xi_grad, of its vanishing or explosion


def fixed_correlation(
  phi: Activation, sigma_w: ArrayLike, sigma_b: ArrayLike
) -> jax.Array:
  """c*, the correlation that layers give to any two inputs.

  It is 1 where chi <= 1, and the zero of the map below 1 in chaotic networks,
  found by bisection of [0, 1].

  Args:
    phi: elementwise.
    sigma_w: sqrt(N) times the standard deviation of the weights.
    sigma_b: that of the biases.

  Returns:
    c*; NaN where q* is.

  >>> print(fixed_correlation(jnp.tanh, 0.9, 0.1))
  1.0
  """
  q = fixed_variance(phi, sigma_w, sigma_b)
  growth = chi(phi, q, sigma_w)

  def halve(_: int, bracket: tuple[jax.Array, jax.Array]):
    low, high = bracket
    middle = (low + high) / 2
    rises = correlation_map(phi, middle, q, sigma_w, sigma_b) > middle
    return jnp.where(rises, middle, low), jnp.where(rises, high, middle)

  bracket = jnp.zeros_like(q), jnp.ones_like(q)
  low, high = lax.fori_loop(0, _BISECTIONS, halve, bracket)
  c = jnp.where(growth > 1, (low + high) / 2, 1)
  return jnp.where(jnp.isnan(growth), jnp.nan, c)


def depth_scales(
  phi: Activation, sigma_w: ArrayLike, sigma_b: ArrayLike
) -> DepthScales:
  """xi_q, xi_c and xi_grad: how deep signals and gradients get.

    1 / xi_q    = -log(dq_{l+1}/dq_l) at q*,
    1 / xi_c    = -log(dc_{l+1}/dc_l) at c*,
    1 / xi_grad = |log chi|

  (Schoenholz et al. 2017, equations 9, 12 and 19).  A plain network is found
  to be trainable if it has at most about 6 xi_c layers (their section 4).

  Args:
    phi: elementwise.
    sigma_w: sqrt(N) times the standard deviation of the weights.
    sigma_b: that of the biases.

  Returns:
    `DepthScales` in layers; infinite on the edge of chaos, NaN where q* is.

  >>> print(depth_scales(jnp.tanh, 0.5, 0.0).gradient.round(4))  # 1 / log 4
  0.7213
  """
  q = fixed_variance(phi, sigma_w, sigma_b)
  c = fixed_correlation(phi, sigma_w, sigma_b)
  growth = chi(phi, q, sigma_w)
  return DepthScales(
    -1 / jnp.log(variance_slope(phi, q, sigma_w)),
    -1 / jnp.log(correlation_slope(phi, c, q, sigma_w)),
    1 / jnp.abs(jnp.log(growth)),
  )


def edge_of_chaos(
  phi: Activation, sigma_b: ArrayLike, low: float = 0.01, high: float = 100.0
) -> jax.Array:
  """sigma_w with chi = 1 at q*, by bisection of log sigma_w.

  Args:
    phi: elementwise.
    sigma_b: standard deviation of the biases.
    low, high: where to look for it, once.

  Returns:
    sigma_w; NaN if networks are not ordered at `low`, or turn from ordered to
    something else at no point in between where chi is 1.

  Raises:
    ValueError: if low and high are not positive numbers in this order.

  >>> print(edge_of_chaos(jnp.tanh, 0.0).round(4))
  1.0
  """
  if not 0 < low < high:
    raise ValueError(f"got low={low}, high={high}; expected 0 < low < high.")

  def growth(log_sigma: jax.Array) -> jax.Array:
    sigma_w = jnp.exp(log_sigma)
    return chi(phi, fixed_variance(phi, sigma_w, sigma_b), sigma_w)

  def halve(_: int, bracket: tuple[jax.Array, jax.Array, jax.Array]):
    low, high, below = bracket
    middle = (low + high) / 2
    at_middle = growth(middle)
    # Without a fixed point, as relu beyond its edge, it is not ordered.
    ordered = at_middle < 1
    return (
      jnp.where(ordered, middle, low),
      jnp.where(ordered, high, middle),
      jnp.where(ordered, at_middle, below),
    )

  bracket = as_float(np.log(low)), as_float(np.log(high)), as_float(0.0)
  found, _, below = lax.fori_loop(0, _BISECTIONS, halve, bracket)
  return jnp.where(below > 0.999, jnp.exp(found), jnp.nan)
