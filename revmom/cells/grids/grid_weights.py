"""The weights of a layer of cells on a grid, forward and backward.

All products that do not wait for a neighbour are made for whole grids: those
with the inputs before a sweep, and the gradients of all weights after it.
"""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from revmom.cells.grids import grid
from revmom.cells.initialisation import check_sizes
from revmom.numerics import accumulator, outer_products, product, total

# Rows of the factors of one partial sum of the gradients of the weights.  They
# stay in a CPU's cache, and are enough for a product to be efficient.
_PART = 4096


def init(
  key: jax.Array, input_size: int, hidden_size: int, ndim: int, gates: int
) -> tuple[jax.Array, jax.Array]:
  """Weights that keep the size of signals, float32.

  Those of the inputs have variance 1 / D.  Those of each axis and gate are
  orthogonal, divided by n: then neither states nor adjoints, which reach a
  cell along many paths, can grow with their number.

  Returns:
    input_weights [D, G H] and recurrent_weights [n, H, G H].
  """
  check_sizes(input_size=input_size, hidden_size=hidden_size, ndim=ndim)
  input_key, recurrent_key = jax.random.split(key)
  input_weights = jax.nn.initializers.lecun_normal()(
    input_key, (input_size, gates * hidden_size), jnp.float32
  )
  recurrent_weights = jax.random.orthogonal(
    recurrent_key, hidden_size, (ndim, gates), jnp.float32
  )
  recurrent_weights = jnp.moveaxis(recurrent_weights, 1, 2)
  shape = (ndim, hidden_size, gates * hidden_size)
  return input_weights, recurrent_weights.reshape(shape) / ndim


def drive(params: Any, xs: jax.Array) -> jax.Array:
  """x W + b, of one position or of whole grids [..., B, G H]."""
  result = product(xs, params.input_weights)
  if params.bias is None:
    return result
  return result + params.bias.astype(result.dtype)


def drive_adjoint(
  params: Any,
  valid: jax.Array | None,
  xs: jax.Array,
  hidden: jax.Array,
  bars: jax.Array,
  plan: grid.Plan,
) -> tuple[dict[str, Any], jax.Array]:
  """The adjoint of a = x W + b + sum_d h_d R_d, at all positions.

  Args:
    params: with input_weights [D, G H], recurrent_weights [n, H, G H] and
      bias [G H] or None.
    valid: bool [S_1, ..., S_n, B, 1], or None.
    xs: x, [S_1, ..., S_n, B, D].
    hidden: h, [S_1, ..., S_n, B, H].
    bars: the adjoint of a, [S_1, ..., S_n, B, G H].
    plan: of the forward pass.

  Returns:
    The gradients of these three fields of the parameters, and of the inputs.
  """
  weights = params.input_weights
  input_bars = product(bars, weights.T).astype(xs.dtype)
  totals = _outer_products(
    grid.masked(valid, xs).astype(weights.dtype),
    hidden.astype(weights.dtype),
    bars.astype(weights.dtype),
    plan,
  )  # [G H, D + n H]
  input_size = xs.shape[-1]
  ndim, hidden_size, _ = params.recurrent_weights.shape
  recurrent = totals[:, input_size:].reshape(-1, ndim, hidden_size)
  fields = dict(
    input_weights=totals[:, :input_size].T.astype(weights.dtype),
    recurrent_weights=jnp.moveaxis(recurrent, 0, 2).astype(weights.dtype),
    bias=None if params.bias is None else total(bars).astype(params.bias.dtype),
  )
  return fields, input_bars


def _outer_products(
  xs: jax.Array, hidden: jax.Array, bars: jax.Array, plan: grid.Plan
) -> jax.Array:
  """The sum of a_bar^T [x, h_1, ..., h_n] over all positions.

  One product serves all weights, as most of its time goes into reading its
  factors.  The adjoints are the left factor, which is transposed while it is
  read, because they are narrower.  On CPUs the product goes through the grid in
  parts.
  """
  forwards = plan.direction[0] > 0
  length = xs.shape[0]
  rows = _rows_of_part(xs) if plan.schedule == "rows" else max(length, 1)

  def parts(values):
    return values.reshape(length // rows, rows, *values.shape[1:])

  def add(carry, part):
    totals, edge = carry  # edge: the last row of the part before
    xs, hidden, bars = part
    joined = [edge, hidden[:-1]] if forwards else [hidden[1:], edge]
    factors = [xs, jnp.concatenate(joined)]
    for axis, direction in list(enumerate(plan.direction))[1:]:
      factors.append(grid.previous(hidden, axis, direction))
    totals = totals + outer_products(
      bars, jnp.concatenate(factors, -1), bars.dtype
    )
    return (totals, hidden[-1:] if forwards else hidden[:1]), None

  width = xs.shape[-1] + len(plan.direction) * hidden.shape[-1]
  totals = jnp.zeros((bars.shape[-1], width), accumulator(bars.dtype))
  edge = jnp.zeros((1, *hidden.shape[1:]), hidden.dtype)
  operands = parts(xs), parts(hidden), parts(bars)
  return lax.scan(add, (totals, edge), operands, reverse=not forwards)[0][0]


def _rows_of_part(xs: jax.Array) -> int:
  """How many slabs, of those that divide the grid, to take at once."""
  length, *slab, _ = xs.shape
  wanted = max(1, _PART // max(1, int(np.prod(slab))))
  divisors = (n for n in range(1, min(wanted, length) + 1) if length % n == 0)
  return max(divisors, default=1)
