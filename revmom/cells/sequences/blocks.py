"""Scans over sequences by blocks of steps.

What needs no state is computed for a whole block at once.  A block has so many
rows (steps times sequences) that products are efficient, and so few that they
stay in a cache.
"""

import math
from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from revmom.exact.pytree import Pytree, static

_SMALL = 4096  # numbers that a step leaves, collected as one array


def steps_of(steps: int, batch: int, rows: int) -> int:
  """How many steps a block has, so that it has at least `rows` rows.

  If some size below twice that divides the sequence, all blocks are equal.
  """
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
  # XLA's CPU compiler copies what has an axis of one on its way into a loop.
  blocks = jax.tree.map(
    lambda array: array[:whole].reshape(
      whole // size, size, *(n for n in array.shape[1:] if n != 1)
    ),
    arrays,
  )
  shapes = jax.tree.map(lambda array: (size, *array.shape[1:]), arrays)
  rest = jax.tree.map(lambda array: array[whole:], arrays)

  def thin_block(carry: Any, thin: Any) -> tuple[Any, Any]:
    return block(carry, jax.tree.map(jnp.reshape, thin, shapes))

  last = None
  if reverse and whole < steps:
    carry, last = block(carry, rest)
  carry, results = lax.scan(thin_block, carry, blocks, reverse=reverse)
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


class Collected(Pytree):
  """Results of steps [T, B, ...]; small ones lie side by side in one array."""

  values: Any
  sizes: tuple[int, ...] | None = static(default=None)
  structure: Any = static(default=None)

  def results(self) -> Any:
    """The results as the steps gave them."""
    if self.sizes is None:
      return self.values
    ends = np.cumsum(self.sizes)[:-1]
    return self.structure.unflatten(jnp.split(self.values, ends, -1))


def scan_steps(
  step: Callable[[Any, Any], tuple[Any, Any]],
  carry: Any,
  steps: Any,
  reverse: bool,
) -> tuple[Any, Collected]:
  """`lax.scan` that collects small results [B, ...] as one array.

  XLA's CPU runtime makes tasks of the kernels of a loop if there are more than
  eight of them, which takes longer than the kernels of a small LSTM.  Cells
  whose state is one array have fewer.
  """
  results = jax.eval_shape(jax.vmap(step, (None, 0)), carry, steps)[1]
  shapes, structure = jax.tree.flatten(results)
  numbers = sum(math.prod(shape.shape[1:]) for shape in shapes)
  if len(jax.tree.leaves(carry)) == 1 or numbers > _SMALL:
    carry, results = lax.scan(step, carry, steps, reverse=reverse)
    return carry, Collected(results)

  def packed(carry: Any, now: Any) -> tuple[Any, jax.Array]:
    carry, results = step(carry, now)
    return carry, jnp.concatenate(jax.tree.leaves(results), -1)

  carry, packs = lax.scan(packed, carry, steps, reverse=reverse)
  sizes = tuple(shape.shape[-1] for shape in shapes)
  return carry, Collected(packs, sizes, structure)


@partial(jax.custom_jvp, nondiff_argnums=(0, 4))
def scan_late(
  step: Callable[[Any, Any, Any], tuple[Any, Any]],
  constants: Any,
  carry: Any,
  arrays: Any,
  reverse: bool,
) -> tuple[Any, Any]:
  """`lax.scan` of step(constants, carry, now) that allocates its results late.

  XLA's CPU compiler fills the results of a scan with zeros before anything
  else, when what `arrays` are computed from still takes memory.  Here the
  results begin as copies of some of `arrays`, whose contents do not matter.
  Derivatives are those of `lax.scan`.
  """
  begun = _begun(partial(step, constants), carry, arrays)
  if begun is None:
    return lax.scan(partial(step, constants), carry, arrays, reverse=reverse)
  steps = len(jax.tree.leaves(begun)[0])

  def body(count: jax.Array, state: Any) -> Any:
    carry, results = state
    time = steps - 1 - count if reverse else count
    now = jax.tree.map(partial(_read, time), arrays)
    carry, new = step(constants, carry, now)
    return carry, jax.tree.map(partial(_write, time), results, new)

  return lax.fori_loop(0, steps, body, (carry, begun))


@scan_late.defjvp
def _scan_late_jvp(
  step: Callable, reverse: bool, primals: tuple, tangents: tuple
) -> tuple[Any, Any]:
  def scan(constants: Any, carry: Any, arrays: Any) -> tuple[Any, Any]:
    return lax.scan(partial(step, constants), carry, arrays, reverse=reverse)

  return jax.jvp(scan, primals, tangents)


def _begun(step: Callable, carry: Any, arrays: Any) -> Any:
  """An array of the type of each result of a scan; None if one has none."""
  _, results = jax.eval_shape(partial(lax.scan, step), carry, arrays)
  found = {_kind(a): a for a in jax.tree.leaves(arrays) if a.size}
  kinds = [_kind(result) for result in jax.tree.leaves(results)]
  if not found.keys() >= set(kinds):
    return None
  structure: Any = jax.tree.structure(results)
  return structure.unflatten([found[kind] for kind in kinds])


def _kind(array: Any) -> str:
  """Shape, dtype, and the axes of a mesh over which an array is spread."""
  return str(jax.typeof(array))


def _read(time: jax.Array, array: jax.Array) -> jax.Array:
  return lax.dynamic_index_in_dim(
    array, time, keepdims=False, allow_negative_indices=False
  )


def _write(time: jax.Array, array: jax.Array, row: jax.Array) -> jax.Array:
  return lax.dynamic_update_index_in_dim(
    array, row, time, 0, allow_negative_indices=False
  )
