"""Weights that cells start with."""

from typing import Any

import jax
import jax.numpy as jnp
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


def shared_fields(
  key: jax.Array,
  input_size: int,
  hidden_size: int,
  gates: int,
  *,
  layer_norm: bool,
  learned_carry: bool,
  dtype: jax.typing.DTypeLike,
) -> dict[str, Any]:
  """What the parameters of most cells have: all but their biases.

  Args:
    key: of the random weights.
    input_size, hidden_size: D and H.
    gates: G, so that there are G H columns.
    layer_norm: whether there are gains.
    learned_carry: whether the initial carry [H] is a parameter.
    dtype: of the parameters.
  """
  check_sizes(input_size=input_size, hidden_size=hidden_size)
  keys, columns = jax.random.split(key, 2), gates * hidden_size
  gain = jnp.ones(columns, dtype) if layer_norm else None
  return {
    "input_weights": uniform(
      keys[0], (input_size, columns), hidden_size, dtype
    ),
    "recurrent_weights": uniform(
      keys[1], (hidden_size, columns), hidden_size, dtype
    ),
    "input_gain": gain,
    "recurrent_gain": gain,
    "initial_carry": jnp.zeros(hidden_size, dtype) if learned_carry else None,
  }
