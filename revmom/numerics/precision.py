"""Types in which sums and states are kept."""

from typing import Any

import jax
import jax.numpy as jnp


def accumulator(dtype: jax.typing.DTypeLike) -> jnp.dtype:
  """The type of sums and of states: float32 in place of shorter floats.

  >>> accumulator(jnp.bfloat16)
  dtype('float32')
  """
  dtype = jnp.dtype(dtype)
  return dtype if dtype.itemsize >= 4 else jnp.dtype("float32")


def cast(tree: Any, dtype: jax.typing.DTypeLike) -> Any:
  """A pytree of arrays, all of one type."""
  return jax.tree.map(lambda array: array.astype(dtype), tree)
