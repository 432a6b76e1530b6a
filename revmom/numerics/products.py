"""Products with weights and sums, which accumulate in float32 or wider.

Arrays have any number of leading axes, so that the same equation serves one
step [B, D] and many steps [T, B, D].
"""

import jax
import jax.numpy as jnp
from jax import lax
from jax.sharding import NamedSharding, PartitionSpec

from revmom.numerics.precision import accumulator


def product(inputs: jax.Array, weights: jax.Array) -> jax.Array:
  """inputs [..., D] times weights [D, G], accumulated: [..., G]."""
  return lax.dot_general(
    inputs.astype(weights.dtype),
    weights,
    (((inputs.ndim - 1,), (0,)), ((), ())),
    preferred_element_type=accumulator(weights.dtype),
  )


def outer_products(
  left: jax.Array, right: jax.Array, dtype: jax.typing.DTypeLike
) -> jax.Array:
  """The sum over leading axes of left^T right: the adjoint of weights.

  Args:
    left: [..., D], such as the inputs of a product.
    right: [..., G], such as the adjoint of its result.
    dtype: of the factors, as they are multiplied.

  Returns:
    [D, G], accumulated.
  """
  leading = tuple(range(left.ndim - 1))
  return lax.dot_general(
    left.astype(dtype),
    right.astype(dtype),
    ((leading, leading), ((), ())),
    preferred_element_type=accumulator(dtype),
    out_sharding=_sharding_of_sum(left, right),
  )


def _sharding_of_sum(left: jax.Array, right: jax.Array) -> NamedSharding | None:
  """The sharding of the result, if a summed axis is one of an explicit mesh."""
  of_left, of_right = jax.typeof(left).sharding, jax.typeof(right).sharding
  if not any(of_left.spec[:-1]):
    return None
  return NamedSharding(
    of_left.mesh, PartitionSpec(of_left.spec[-1], of_right.spec[-1])
  )


def total(bars: jax.Array) -> jax.Array:
  """Sum over all axes but the last: the adjoint of what was broadcast."""
  return jnp.sum(bars, tuple(range(bars.ndim - 1)))
