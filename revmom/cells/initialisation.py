"""Weights that cells start with."""

import jax
import numpy as np


def check_sizes(**sizes: int) -> None:
  """Raises ValueError for sizes of arrays that are not positive integers."""
  for name, size in sizes.items():
    if not isinstance(size, int | np.integer) or size < 1:
      raise ValueError(f"{name}={size!r}; give at least 1, an integer.")


def uniform(
  key: jax.Array,
  shape: tuple[int, ...],
  fan: int,
  dtype: jax.typing.DTypeLike,
) -> jax.Array:
  """Weights uniform within 1 / sqrt(fan), as PyTorch initialises its cells."""
  bound = 1 / max(1, fan) ** 0.5
  return jax.random.uniform(key, shape, dtype, -bound, bound)
