"""Random keys as the numbers that they are: no branch can select keys."""

from typing import Any

import jax
import jax.numpy as jnp


def kind_of_key(leaf: Any) -> Any:
  """The kind of random key that a leaf holds, None for any other."""
  dtype = getattr(leaf, "dtype", None)
  if dtype is None or not jnp.issubdtype(dtype, jax.dtypes.prng_key):
    return None
  return jax.random.key_impl(leaf)


def without_key(leaf: Any) -> jax.Array:
  """The numbers of a key; any other leaf as an array.

  >>> key = jax.random.key(7)
  >>> numbers = without_key(key)
  >>> with_keys([numbers], [kind_of_key(key)])[0] == key
  Array(True, dtype=bool)
  """
  if kind_of_key(leaf) is None:
    return jnp.asarray(leaf)
  return jax.random.key_data(leaf)


def with_keys(leaves: list, kinds: list) -> list:
  """Undoes `without_key`; the kinds are None for what was no key."""
  wrap = lambda leaf, kind: jax.random.wrap_key_data(leaf, impl=kind)
  return [
    leaf if kind is None else wrap(leaf, kind)
    for leaf, kind in zip(leaves, kinds, strict=True)
  ]
