"""Products with weights, normalised or not, plus a bias, and their adjoints.

Every cell sees its inputs and its state through these.  Where layer
normalisation is off, the gain is None.
"""

from typing import Any

import jax

from revmom.numerics import (
  Normalised,
  normalise,
  normalise_adjoint,
  outer_products,
  product,
  total,
)


def gained_product(
  inputs: jax.Array, weights: jax.Array, gain: jax.Array | None
) -> jax.Array:
  """x W [..., G], or norm(x W) gain."""
  result = product(inputs, weights)
  if gain is None:
    return result
  return normalise(result).values * gain.astype(result.dtype)


def normalised_product(
  hidden: jax.Array, weights: jax.Array, gain: jax.Array | None
) -> Normalised | None:
  """norm(h R), which the adjoint of a normalised product needs."""
  return None if gain is None else normalise(product(hidden, weights))


def product_adjoint(
  transposed: jax.Array,
  gain: Any,
  normalised: Normalised | None,
  bars: jax.Array,
) -> tuple[jax.Array, jax.Array]:
  """Adjoints of h R and of h, by R^T, from that of h R or of norm(h R) gain."""
  if normalised is not None:
    bars = normalise_adjoint(normalised, bars * gain.astype(bars.dtype))
  return bars, product(bars, transposed)


def gain_adjoint(normalised: Normalised | None, bars: jax.Array) -> jax.Array:
  """Adjoint of the gain of a normalised product."""
  assert normalised is not None
  return total(bars * normalised.values)


def project(
  inputs: jax.Array,
  weights: jax.Array,
  gain: jax.Array | None,
  bias: jax.Array | None,
) -> jax.Array:
  """inputs [..., D] -> x W + b [..., G], or norm(x W) gain + b."""
  drive = gained_product(inputs, weights, gain)
  return drive if bias is None else drive + bias.astype(drive.dtype)


def project_adjoint(
  inputs: jax.Array,
  weights: jax.Array,
  gain: jax.Array | None,
  bias: jax.Array | None,
  bars: jax.Array,
) -> tuple[jax.Array, jax.Array, jax.Array | None, jax.Array | None]:
  """Adjoints of the four arguments of `project`, from the result's [..., G]."""
  bias_bar = None if bias is None else total(bars)
  gain_bar = None
  if gain is not None:
    normalised = normalise(product(inputs, weights))
    gain_bar = total(bars * normalised.values)
    bars = normalise_adjoint(normalised, bars * gain.astype(bars.dtype))
  weights_bar = outer_products(inputs, bars, weights.dtype)
  return product(bars, weights.T), weights_bar, gain_bar, bias_bar
