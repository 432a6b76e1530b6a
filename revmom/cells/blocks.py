"""Scans over sequences by blocks of steps.

What needs no state is done for a whole block at once, with some number of rows
(steps times sequences): enough for efficient products, few enough to stay in a
cache.
"""

import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

_SMALL = 4096  # numbers that a step leaves, collected as one array


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


def scan_steps(
  step: Callable[[Any, Any], tuple[Any, Any]],
  carry: Any,
  steps: Any,
  reverse: bool,
) -> tuple[Any, Any]:
  """`lax.scan` that collects small results [B, ...] as one array.

  XLA's CPU runtime makes tasks of the kernels of a loop if there are more than
  eight of them, which takes longer than the kernels of a small LSTM.  Cells
  whose state is one array have fewer.
  """
  if len(jax.tree.leaves(carry)) == 1:
    return lax.scan(step, carry, steps, reverse=reverse)
  results = jax.eval_shape(jax.vmap(step, (None, 0)), carry, steps)[1]
  shapes = jax.tree.leaves(results)
  if sum(math.prod(shape.shape[1:]) for shape in shapes) > _SMALL:
    return lax.scan(step, carry, steps, reverse=reverse)
  structure: Any = jax.tree.structure(results)

  def packed(carry: Any, now: Any) -> tuple[Any, jax.Array]:
    carry, results = step(carry, now)
    return carry, jnp.concatenate(jax.tree.leaves(results), -1)

  carry, packs = lax.scan(packed, carry, steps, reverse=reverse)
  ends = np.cumsum([shape.shape[-1] for shape in shapes])[:-1]
  return carry, structure.unflatten(jnp.split(packs, ends, -1))
