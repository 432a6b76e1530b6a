"""Scans over sequences by blocks of steps.

What needs no state is done for a whole block at once, with some number of rows
(steps times sequences): enough for efficient products, few enough to stay in a
cache.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax


def steps_of(steps: int, batch: int, rows: int) -> int:
  """Steps in a block: at best of equal blocks, with `rows` rows and more."""
  least = max(1, rows // max(1, batch))
  if steps < 2 * least:
    return max(1, steps)
  equal = (size for size in range(least, 2 * least) if steps % size == 0)
  return next(equal, least)


def scan(
  block: Callable[[Any, Any], tuple[Any, Any]],
  carry: Any,
  arrays: Any,
  batch: int,
  rows: int,
  reverse: bool,
) -> tuple[Any, Any]:
  """`lax.scan` by blocks of steps, of which the last may be shorter."""
  steps = len(jax.tree.leaves(arrays)[0])
  size = steps_of(steps, batch, rows)
  whole = steps - steps % size
  if steps <= size:
    return block(carry, arrays)
  blocks = jax.tree.map(
    lambda array: array[:whole].reshape(whole // size, size, *array.shape[1:]),
    arrays,
  )
  rest = jax.tree.map(lambda array: array[whole:], arrays)
  last = None
  if reverse and whole < steps:
    carry, last = block(carry, rest)
  carry, results = lax.scan(block, carry, blocks, reverse=reverse)
  if not reverse and whole < steps:
    carry, last = block(carry, rest)
  results = jax.tree.map(
    lambda array: array.reshape(whole, *array.shape[2:]), results
  )
  if last is None:
    return carry, results
  return carry, jax.tree.map(
    lambda *parts: jnp.concatenate(parts), results, last
  )
