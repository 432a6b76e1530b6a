"""Sweeps over grids of cells, forward and backward.

The forward pass hands hidden states from cell to cell, the backward pass hands
adjoints the other way; both are a `sweep` of a `Recurrence`.
"""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from revmom.cells.grids.grid import Plan, previous
from revmom.numerics import product


class Recurrence(NamedTuple):
  """What is computed at each cell, and what reaches the next ones.

  Attributes:
    weights: for each axis, what the message of a neighbour is multiplied with
      [K, N]; or [S_1, K, N], by the place of that neighbour along the first
      axis, in wavefronts that go along it.
    cell: (received [..., B, N], memories, local) -> state; `received` sums
      the products of all neighbours' messages with the weights and the
      position's own input, `memories` holds each neighbour's memory.
    message: state -> [..., B, K].
    memory: (state, axis) -> what the next cell along an axis gets to see, a
      pytree of [..., B, *].
    boundary: the state beyond the grid, of zeros, at one position [B, *].
  """

  weights: tuple[jax.Array, ...]
  cell: Callable[..., Any]
  message: Callable[..., jax.Array]
  memory: Callable[..., Any]
  boundary: Any


def sweep(
  recurrence: Recurrence,
  received: jax.Array,
  local: Any,
  plan: Plan,
  keep: Callable[..., Any] = lambda state: state,
) -> Any:
  """Computes the cells of a whole grid.

  Args:
    recurrence: what to compute.
    received: the positions' own inputs [S_1, ..., S_n, B, N].
    local: a pytree of further inputs [S_1, ..., S_n, B, *].
    plan: direction and schedule.
    keep: chooses what to return of the states.

  Returns:
    keep(state) of every position, with leading axes S_1, ..., S_n.
  """
  shape = received.shape[:-2]
  if plan.schedule == "rows":
    return _rows(recurrence, received, local, plan.direction, keep)
  # An empty grid gets a cell, so that there are diagonals.
  received, local = _resized((received, local), [max(1, s) for s in shape])
  states = _wavefront(recurrence, received, local, plan.direction, keep)
  return _resized(states, shape)


def _resized(tree: Any, shape: Sequence[int]) -> Any:
  """Values on a grid of other sizes, with zeros at new places."""

  def resize(values):
    if values.shape[: len(shape)] == tuple(shape):
      return values
    changes = [new - old for new, old in zip(shape, values.shape, strict=False)]
    rest = [(0, 0, 0)] * (values.ndim - len(shape))
    padding = [*((0, change, 0) for change in changes), *rest]
    return lax.pad(values, jnp.zeros((), values.dtype), padding)

  return jax.tree.map(resize, tree)


def _rows(
  recurrence: Recurrence,
  received: jax.Array,
  local: Any,
  direction: tuple[int, ...],
  keep: Callable[..., Any],
) -> Any:
  """A scan over slabs, each of which is a scan over its slabs, and so on."""

  def along(axis: int, received: Any, memories: Any, local: Any) -> Any:
    innermost = axis + 1 == len(direction)

    def slab(neighbour, here):
      message, memory = neighbour
      received, memories, local = here
      received = received + product(message, recurrence.weights[axis])
      memories = (*memories, memory)
      if innermost:
        state = recurrence.cell(received, memories, local)
      else:
        state = along(axis + 1, received, memories, local)
      emitted = recurrence.message(state), recurrence.memory(state, axis)
      return emitted, keep(state) if axis == 0 else state

    boundary = recurrence.boundary
    start = recurrence.message(boundary), recurrence.memory(boundary, axis)
    return lax.scan(
      slab,
      _everywhere(start, received.shape[1:-2]),
      (received, memories, local),
      reverse=direction[axis] < 0,
    )[1]

  return along(0, received, (), local)


def _wavefront(
  recurrence: Recurrence,
  received: jax.Array,
  local: Any,
  direction: tuple[int, ...],
  keep: Callable[..., Any],
) -> Any:
  """A scan over anti-diagonals, which lie skewed in a larger grid.

  Cells of that grid that lie before the true one compute zeros, as every cell
  does whose inputs are zeros; those behind it feed no cell of the true one.
  """
  shape, ndim = received.shape[:-2], len(direction)
  flips = tuple(axis for axis in range(ndim) if direction[axis] < 0)
  received, local = jax.tree.map(
    lambda values: skew(jnp.flip(values, flips), ndim), (received, local)
  )
  weights = jnp.concatenate(recurrence.weights, -1)
  multiply = product if weights.ndim == 2 else jax.vmap(product)

  def step(axis, values):
    # A step along the last axis stays at the same place of the next diagonal.
    return values if axis + 1 == ndim else previous(values, axis, 1)

  def diagonal(neighbours, here):
    products, memories = neighbours
    received, local = here
    for term in products:
      received = received + term
    state = recurrence.cell(received, memories, local)
    products = jnp.split(multiply(recurrence.message(state), weights), ndim, -1)
    emitted = [
      jax.tree.map(
        lambda values, axis=axis: step(axis, values),
        (products[axis], recurrence.memory(state, axis)),
      )
      for axis in range(ndim)
    ]
    return tuple(zip(*emitted, strict=True)), keep(state)

  boundary = recurrence.boundary
  memories = tuple(recurrence.memory(boundary, axis) for axis in range(ndim))
  start = (
    (jnp.zeros_like(received[0]),) * ndim,
    _everywhere(memories, received.shape[1:-2]),
  )
  states = lax.scan(diagonal, start, (received, local))[1]
  return jax.tree.map(
    lambda values: jnp.flip(unskew(values, shape), flips), states
  )


def _everywhere(state: Any, shape: tuple[int, ...]) -> Any:
  return jax.tree.map(lambda a: jnp.broadcast_to(a, (*shape, *a.shape)), state)


def skew(values: jax.Array, ndim: int) -> jax.Array:
  """Moves the cells of each anti-diagonal to one place of a leading axis.

  Args:
    values: [S_1, ..., S_n, ...], no size being zero.
    ndim: n.

  Returns:
    [S_1 + ... + S_n - n + 1, S_1, ..., S_{n-1}, ...], the value of position p
    at [p_1 + ... + p_n, p_1, ..., p_{n-1}], and zeros.

  >>> skew(jnp.array([[1, 2, 3], [4, 5, 6]]), 2)
  Array([[1, 0], [2, 4], [3, 5], [0, 6]], dtype=int32)
  """
  rest = [(0, 0)] * (values.ndim - ndim)
  for axis in reversed(range(ndim - 1)):
    # With as many more columns as there are rows, and read with one column
    # less, every row begins one column later than the row before.
    values = jnp.moveaxis(values, axis, ndim - 2)
    *outer, rows, columns = values.shape[:ndim]
    values = jnp.pad(values, [(0, 0)] * (ndim - 1) + [(0, rows)] + rest)
    shape, columns = values.shape[ndim:], columns + rows - 1
    values = values.reshape(*outer, rows * (columns + 1), *shape)
    values = lax.slice_in_dim(values, 0, rows * columns, axis=ndim - 2)
    values = values.reshape(*outer, rows, columns, *shape)
    values = jnp.moveaxis(values, ndim - 2, axis)
  return jnp.moveaxis(values, ndim - 1, 0)


def unskew(values: jax.Array, shape: tuple[int, ...]) -> jax.Array:
  """Undoes `skew`: [rounds, S_1, ..., S_{n-1}, ...] to [S_1, ..., S_n, ...].

  >>> unskew(skew(jnp.array([[1, 2, 3], [4, 5, 6]]), 2), (2, 3))
  Array([[1, 2, 3], [4, 5, 6]], dtype=int32)
  """
  ndim = len(shape)
  values = jnp.moveaxis(values, 0, ndim - 1)
  rest = [(0, 0)] * (values.ndim - ndim)
  for axis in range(ndim - 1):
    values = jnp.moveaxis(values, axis, ndim - 2)
    *outer, rows, columns = values.shape[:ndim]
    shape = values.shape[ndim:]
    values = values.reshape(*outer, rows * columns, *shape)
    values = jnp.pad(values, [(0, 0)] * (ndim - 2) + [(0, rows)] + rest)
    values = values.reshape(*outer, rows, columns + 1, *shape)
    values = lax.slice_in_dim(values, 0, columns - rows + 1, axis=ndim - 1)
    values = jnp.moveaxis(values, ndim - 2, axis)
  return values
