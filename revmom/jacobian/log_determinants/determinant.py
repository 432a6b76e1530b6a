"""Determinants as logarithms, and how they multiply."""

from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np


class Determinant(NamedTuple):
  """det = sign * exp(value), with the error of an estimated value."""

  value: jax.Array  # []
  sign: jax.Array  # []: -1, 0 or 1; NaN where it is not known
  stderr: jax.Array  # []
  bias_bound: jax.Array  # []


def exact(value: Any, sign: Any, dtype: np.dtype) -> Determinant:
  """A determinant without error."""
  zero = jnp.zeros((), dtype)
  return Determinant(
    jnp.asarray(value, dtype), jnp.asarray(sign, dtype), zero, zero
  )


def wide(dtypes: Iterable[Any]) -> np.dtype:
  """The type to compute logarithms in: float64 if any is, else float32."""
  wanted = any(dtype == jnp.float64 for dtype in dtypes)
  return np.dtype("float64" if wanted else "float32")


def of_numbers(numbers: jax.Array) -> Determinant:
  """The product of numbers of any shape."""
  signs = jnp.sign(jax.lax.stop_gradient(numbers))
  value = jnp.sum(jnp.log(jnp.abs(numbers)))
  return exact(value, jnp.prod(signs), numbers.dtype)


def of_matrices(matrices: jax.Array) -> Determinant:
  """The product of the determinants of matrices [..., n, n].

  Where rounding may have changed one by all of itself, as that of a singular
  matrix, the sign is NaN and the bound of the error infinite.
  """
  if matrices.shape[-1] == 1:
    return of_numbers(matrices)
  sign, value = jnp.linalg.slogdet(matrices)
  found = exact(jnp.sum(value), jnp.prod(sign), matrices.dtype)
  noise = jnp.any(~(_relative_error(matrices) < 1)) & (found.sign != 0)
  return found._replace(
    sign=jnp.where(noise, jnp.nan, found.sign),
    bias_bound=jnp.where(noise, jnp.inf, found.bias_bound),
  )


def _relative_error(matrices: jax.Array) -> jax.Array:
  """What rounding may do to determinants [...], to first order.

  det(A + E) / det A - 1 = tr(A^-1 E), where |E| is some roundings of |A|.
  """
  matrices = jax.lax.stop_gradient(matrices)
  sizes = jnp.abs(matrices), jnp.abs(jnp.linalg.inv(matrices))
  error = jnp.einsum("...ij,...ji->...", *sizes)
  return 8 * jnp.finfo(matrices.dtype).eps * error


@jax.jit
def pivot_errors(matrices: jax.Array) -> jax.Array:
  """What rounding may do to the pivots of matrices [..., n, n], relatively.

  The LU factors are those of A + E with |E| of some roundings of |L| |U|, so
  that a singular matrix has a pivot with an error of 1 or more: [..., n].
  """
  factors = jax.lax.linalg.lu(jax.lax.stop_gradient(matrices))[0]
  sizes = jnp.abs(factors)
  lower = jnp.tril(sizes, -1) + jnp.eye(sizes.shape[-1], dtype=sizes.dtype)
  bounds = jnp.einsum("...ij,...ji->...i", lower, jnp.triu(sizes))
  pivots = jnp.diagonal(sizes, axis1=-2, axis2=-1)
  return 8 * jnp.finfo(sizes.dtype).eps * bounds / pivots


def product(
  factors: Sequence[Determinant], sign: int, dtype: np.dtype
) -> Determinant:
  """sign * the product of the factors, whose errors are independent."""
  if not factors:
    return exact(0.0, sign, dtype)
  columns = zip(*factors, strict=True)
  value, signs, stderr, bias_bound = (
    jnp.stack([number.astype(dtype) for number in numbers])
    for numbers in columns
  )
  return Determinant(
    value=jnp.sum(value),
    sign=jnp.prod(signs) * sign,
    # No gradient of a norm at zero, which is where exact factors are.
    stderr=jnp.linalg.norm(jax.lax.stop_gradient(stderr)),
    bias_bound=jnp.sum(bias_bound),
  )
