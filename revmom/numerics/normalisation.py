"""Layer normalisation without gain and bias, and its adjoint."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

EPSILON = 1e-5  # added to the variance


class Normalised(NamedTuple):
  """Values with mean zero and variance one along their last axis."""

  values: jax.Array  # [..., G]
  scale: jax.Array  # [..., 1]: the factor that made the variance one


def normalise(values: jax.Array) -> Normalised:
  """Layer normalisation (Ba, Kiros & Hinton 2016, equations 3 and 4)."""
  centred = values - jnp.mean(values, -1, keepdims=True)
  variance = jnp.mean(centred * centred, -1, keepdims=True)
  scale = lax.rsqrt(variance + EPSILON)
  return Normalised(centred * scale, scale)


def normalise_adjoint(normalised: Normalised, bars: jax.Array) -> jax.Array:
  """The adjoint of the argument of `normalise`, from that of its values."""
  values, scale = normalised
  mean = jnp.mean(bars, -1, keepdims=True)
  along = jnp.mean(bars * values, -1, keepdims=True)
  return (bars - mean - values * along) * scale
