"""Cotangents of pytrees that hold integers, too."""

from typing import Any

import jax
import jax.numpy as jnp


def is_float(array: jax.Array) -> bool:
  """Whether an array has derivatives."""
  return jnp.issubdtype(array.dtype, jnp.inexact)


def only_floats(tree: Any) -> Any:
  """A pytree with None for arrays of integers."""
  return jax.tree.map(lambda a: a if is_float(a) else None, tree)


def of_floats(bars: Any) -> Any:
  """Cotangents, or tangents, with None for those of integers."""
  return jax.tree.map(
    lambda bar: None if bar.dtype == jax.dtypes.float0 else bar, bars
  )


def total(bars: list[Any]) -> Any:
  """The sum of cotangents of one pytree."""
  add = lambda a, b: a if a.dtype == jax.dtypes.float0 else a + b
  first, *others = bars
  for other in others:
    first = jax.tree.map(add, first, other)
  return first
