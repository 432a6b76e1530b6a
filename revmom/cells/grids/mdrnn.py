r"""Plain recurrent networks on grids of any number of dimensions.

Graves, Fernandez & Schmidhuber, "Multi-dimensional recurrent neural networks"
(2007).  With :math:`h_d` the hidden state of the neighbour along axis d, which
is zero beyond the grid,

.. math:: a = W^T x + b + \sum_{d=1}^n R_d^T h_d, \qquad h = \tanh a,

and backward, with :math:`\bar a_d` that of the neighbour on the other side,

.. math::
  \bar h = \bar y + \sum_{d=1}^n R_d \bar a_d, \qquad
  \bar a = (1 - h^2)\, \bar h, \qquad
  \bar x = W \bar a, \\
  \bar W = \sum x \bar a^T, \qquad
  \bar R_d = \sum h_d \bar a^T, \qquad \bar b = \sum \bar a.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.typing import DTypeLike

from revmom.cells.grids import grid_weights
from revmom.cells.grids.equations import Adjoint, Equations, Seen, Values
from revmom.cells.grids.grid_cell import GridCell


class Params(NamedTuple):
  """Weights of a layer: D H + n H^2 of them, and H biases."""

  input_weights: jax.Array  # [D, H]
  recurrent_weights: jax.Array  # [n, H, H], one matrix for each axis
  bias: jax.Array | None  # [H]


class Adjoints(NamedTuple):
  """The adjoints at every position [S_1, ..., S_n, B, H], accumulated."""

  h: jax.Array  # of the hidden state, from all that it reaches
  a: jax.Array  # of what is inside of the tanh


def init(
  key: jax.Array,
  input_size: int,
  hidden_size: int,
  *,
  ndim: int = 2,
  bias: bool = True,
  dtype: DTypeLike = jnp.float32,
) -> Params:
  """Draws the weights of a layer.

  Args:
    key: of `jax.random`.
    input_size: D, the features of an input.
    hidden_size: H, the units of a cell.
    ndim: n, the dimensions of the grid.
    bias: whether to have one; it starts at zero.
    dtype: of the parameters.

  Returns:
    `Params`.

  Raises:
    ValueError: for a size below one.

  >>> params = init(jax.random.key(0), 3, 5, bias=False)
  >>> sum(leaf.size for leaf in jax.tree.leaves(params)) == 3 * 5 + 2 * 5**2
  True
  >>> xs = jnp.ones((8, 6, 1, 3))
  >>> apply(params, xs).shape
  (8, 6, 1, 5)
  >>> flipped = apply(params, xs[:, ::-1], direction=(1, -1))[:, ::-1]
  >>> bool(jnp.allclose(flipped, apply(params, xs)))
  True
  >>> layers = [params, init(jax.random.key(1), 5, 5, bias=False)]
  >>> together = apply(layers, xs, schedule="pipelined")
  >>> bool(jnp.allclose(together, apply(layers[1], apply(params, xs))))
  True
  >>> ys, residuals = forward(params, xs)
  >>> bars = jnp.zeros_like(ys).at[7, 5].set(1.0)
  >>> gradients = backward(params, residuals, bars, adjoints=True)
  >>> gradients.inputs.shape, gradients.adjoints.h.shape
  ((8, 6, 1, 3), (8, 6, 1, 5))
  """
  weights = grid_weights.init(key, input_size, hidden_size, ndim, gates=1)
  params = Params(*weights, jnp.zeros(hidden_size) if bias else None)
  return jax.tree.map(lambda leaf: leaf.astype(dtype), params)


def _forward(a: jax.Array, previous: None) -> Values:
  return Values(jnp.tanh(a))


def _adjoint(h_bar: jax.Array, c_bar: None, seen: Seen) -> Adjoint:
  h = seen.state
  return Adjoint((1 - h * h) * h_bar, None, h_bar)


cell = GridCell(
  init,
  equations=lambda params: Equations(_forward, _adjoint),
  adjoints=lambda kept: Adjoints(kept.adjoints, kept.a),
)
step, forward = cell.step, cell.forward
backward, apply = cell.backward, cell.apply
