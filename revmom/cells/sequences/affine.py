"""Products with weights, normalised or not, and their adjoints.

Every cell sees its inputs and its state through products with weights.  Here
they take any number of leading axes, so that the same equation serves one step
[B, D] and many [T, B, D], and low-precision products accumulate in float32.
"""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple, ParamSpec, TypeVar

import jax
import jax.numpy as jnp
from jax import lax
from jax.sharding import NamedSharding, PartitionSpec

EPSILON = 1e-5  # added to the variance by layer normalisation


_P = ParamSpec("_P")
_R = TypeVar("_R")


def broadcasting(function: Callable[_P, _R]) -> Callable[_P, _R]:
  """The function, whose arrays may have fewer axes than what they act on.

  That is meant here, and no mistake of users whose `jax_numpy_rank_promotion`
  is "raise" or "warn".
  """

  @functools.wraps(function)
  def allowed(*args: _P.args, **kwargs: _P.kwargs) -> _R:
    with jax.numpy_rank_promotion("allow"):
      return function(*args, **kwargs)

  return allowed


def accumulator(dtype: jax.typing.DTypeLike) -> jnp.dtype:
  """The type that sums and states have: float32 for shorter floats.

  >>> accumulator(jnp.bfloat16)
  dtype('float32')
  """
  dtype = jnp.dtype(dtype)
  return dtype if dtype.itemsize >= 4 else jnp.dtype("float32")


def product(inputs: jax.Array, weights: jax.Array) -> jax.Array:
  """inputs [..., D] times weights [D, G], accumulated: [..., G]."""
  return lax.dot_general(
    inputs.astype(weights.dtype),
    weights,
    (((inputs.ndim - 1,), (0,)), ((), ())),
    preferred_element_type=accumulator(weights.dtype),
  )


def weights_adjoint(
  inputs: jax.Array, bars: jax.Array, dtype: jax.typing.DTypeLike
) -> jax.Array:
  """Adjoint [D, G] of weights, from inputs [..., D] and products' [..., G]."""
  leading = tuple(range(inputs.ndim - 1))
  return lax.dot_general(
    inputs.astype(dtype),
    bars.astype(dtype),
    ((leading, leading), ((), ())),
    preferred_element_type=accumulator(dtype),
    out_sharding=_summed_sharding(inputs, bars),
  )


def _summed_sharding(
  inputs: jax.Array, bars: jax.Array
) -> NamedSharding | None:
  """Of the sum over leading axes, if an axis of an explicit mesh is summed."""
  of_inputs, of_bars = jax.typeof(inputs).sharding, jax.typeof(bars).sharding
  if not any(of_inputs.spec[:-1]):
    return None
  return NamedSharding(
    of_inputs.mesh, PartitionSpec(of_inputs.spec[-1], of_bars.spec[-1])
  )


def sigmoid(values: jax.Array) -> jax.Array:
  """1 / (1 + exp(-x)) as (1 + tanh(x / 2)) / 2, which vectorises far better.

  It is exact to the spacing of floats near one; `jax.nn.sigmoid` is to that of
  the result, for results close to zero.
  """
  return 0.5 * jnp.tanh(0.5 * values) + 0.5


def total(bars: jax.Array) -> jax.Array:
  """Sum over all axes but the last: the adjoint of what was broadcast."""
  return jnp.sum(bars, tuple(range(bars.ndim - 1)))


class Normalised(NamedTuple):
  """Values with mean zero and variance one along their last axis."""

  values: jax.Array  # [..., G]
  scale: jax.Array  # [..., 1]: what they were multiplied by


def normalise(values: jax.Array) -> Normalised:
  """Layer normalisation (Ba, Kiros & Hinton 2016, equations 3 and 4)."""
  centred = values - jnp.mean(values, -1, keepdims=True)
  variance = jnp.mean(centred * centred, -1, keepdims=True)
  scale = lax.rsqrt(variance + EPSILON)
  return Normalised(centred * scale, scale)


def normalise_adjoint(normalised: Normalised, bars: jax.Array) -> jax.Array:
  """Adjoint of the values that were normalised, from the results' [..., G]."""
  values, scale = normalised
  mean = jnp.mean(bars, -1, keepdims=True)
  along = jnp.mean(bars * values, -1, keepdims=True)
  return (bars - mean - values * along) * scale


def gained_product(
  inputs: jax.Array, weights: jax.Array, gain: jax.Array | None
) -> jax.Array:
  """x W [..., G], or norm(x W) gain."""
  result = product(inputs, weights)
  if gain is None:
    return result
  return normalise(result).values * gain.astype(result.dtype)


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
  weights_bar = weights_adjoint(inputs, bars, weights.dtype)
  return product(bars, weights.T), weights_bar, gain_bar, bias_bar


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
