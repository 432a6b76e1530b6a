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

from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.typing import DTypeLike

from revmom.cells.grids import grid, grid_cell, grid_weights
from revmom.cells.grids.grid_cell import Gradients
from revmom.exact.pytree import Pytree, static
from revmom.numerics import accumulator, product


class Params(NamedTuple):
  """Weights of a layer: D H + n H^2 of them, and H biases."""

  input_weights: jax.Array  # [D, H]
  recurrent_weights: jax.Array  # [n, H, H], one matrix for each axis
  bias: jax.Array | None  # [H]


class Residuals(Pytree):
  """What the backward pass needs to know of the forward pass.

  With several layers all but the inputs have a leading axis of layers.
  """

  inputs: jax.Array  # [S_1, ..., S_n, B, D]
  hidden: jax.Array  # [S_1, ..., S_n, B, H]
  sizes: jax.Array | None  # [B, n]
  plan: grid.Plan = static()


class Adjoints(NamedTuple):
  """The adjoints at every position [S_1, ..., S_n, B, H], accumulated."""

  h: jax.Array | None  # of the hidden state, from all that it reaches
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
  """
  weights = grid_weights.init(key, input_size, hidden_size, ndim, gates=1)
  params = Params(*weights, jnp.zeros(hidden_size) if bias else None)
  return jax.tree.map(lambda leaf: leaf.astype(dtype), params)


def step(
  params: Params, inputs: jax.Array, neighbours: tuple[jax.Array, ...]
) -> jax.Array:
  """The cell itself.

  Args:
    params: of the layer.
    inputs: x, [B, D].
    neighbours: h_1, ..., h_n, each [B, H]; zeros beyond the grid.

  Returns:
    h, [B, H].
  """
  a = grid_weights.drive(params, inputs)
  for weights, h in zip(params.recurrent_weights, neighbours, strict=True):
    a = a + product(h, weights)
  return jnp.tanh(a).astype(inputs.dtype)


def apply(
  params: Params | Sequence[Params],
  xs: jax.Array,
  *,
  direction: Any = None,
  sizes: Any = None,
  schedule: str | None = None,
) -> jax.Array:
  """The hidden states of a layer, differentiable through `backward`.

  Args:
    params: of the layer; or of several, a sequence, to be pipelined.
    xs: [S_1, ..., S_n, B, D].
    direction: +1 or -1 for each axis: where the cells' neighbours are.  With
      (1, -1) they are above and to the right.  None is +1 for all.
    sizes: int32 [B, n], if examples are smaller than the padded grid.  What
      lies beyond is zero in the result and gets no gradient, whatever it
      holds.
    schedule: "rows" or "wavefront", which give the same result; None chooses
      by JAX's default backend.  "pipelined" is of several layers on top of
      each other, that work at once: see `pipeline`.

  Returns:
    h, [S_1, ..., S_n, B, H], with the dtype of xs.

  Raises:
    ValueError: xs that do not fit the parameters, an unknown direction or
      schedule, sizes beyond the grid (if they are not traced), or layers that
      cannot be pipelined.

  >>> params = init(jax.random.key(0), 3, 5)
  >>> xs = jnp.ones((8, 6, 1, 3))
  >>> apply(params, xs).shape
  (8, 6, 1, 5)
  >>> flipped = apply(params, xs[:, ::-1], direction=(1, -1))[:, ::-1]
  >>> bool(jnp.allclose(flipped, apply(params, xs)))
  True
  >>> layers = [params, init(jax.random.key(1), 5, 5)]
  >>> together = apply(layers, xs, schedule="pipelined")
  >>> bool(jnp.allclose(together, apply(layers[1], apply(params, xs))))
  True
  """
  plan, sizes = grid_cell.prepare(params, xs, direction, sizes, schedule)
  return _apply(plan, params, xs, sizes)


def forward(
  params: Params | Sequence[Params],
  xs: jax.Array,
  *,
  direction: Any = None,
  sizes: Any = None,
  schedule: str | None = None,
) -> tuple[jax.Array, Residuals]:
  """The forward pass, in plain JAX: `jax.jvp` goes through it.

  Arguments and errors are those of `apply`.

  Returns:
    The outputs [S_1, ..., S_n, B, H], and what `backward` needs.
  """
  plan, sizes = grid_cell.prepare(params, xs, direction, sizes, schedule)
  return grid_cell.forward(_EQUATIONS, plan, params, xs, sizes)


def backward(
  params: Params | Sequence[Params],
  residuals: Residuals,
  output_bars: jax.Array,
  *,
  adjoints: bool = False,
) -> Gradients:
  """The hand-derived backward pass.

  Args:
    params: as in `forward`.
    residuals: from it.
    output_bars: the adjoints of the outputs [S_1, ..., S_n, B, H].
    adjoints: whether to return those of every position, too.

  Returns:
    `Gradients`: those of params and of the inputs, and `Adjoints` (with a
    leading axis of layers, if there are several) or None.

  >>> params = init(jax.random.key(0), 3, 5)
  >>> ys, residuals = forward(params, jnp.ones((8, 6, 1, 3)))
  >>> bars = jnp.zeros_like(ys).at[7, 5].set(1.0)
  >>> gradients = backward(params, residuals, bars, adjoints=True)
  >>> gradients.inputs.shape, gradients.adjoints.h.shape
  ((8, 6, 1, 3), (8, 6, 1, 5))
  """
  return grid_cell.backward(
    _EQUATIONS, params, residuals, output_bars, adjoints
  )


def _recurrence(
  params: Params, batch: int, dtype: DTypeLike
) -> grid.Recurrence:
  """The forward pass of a layer as a sweep of hidden states."""

  def cell(a, memories, valid):
    return grid.masked(valid, jnp.tanh(a).astype(dtype))

  return grid.Recurrence(
    weights=tuple(params.recurrent_weights),
    cell=cell,
    message=lambda h: h,
    memory=lambda h, axis: None,
    boundary=jnp.zeros((batch, params.recurrent_weights.shape[-1]), dtype),
  )


def _adjoint(params: Params, batch: int, adjoints: bool) -> grid.Recurrence:
  """The backward pass of a layer as a sweep of adjoints."""
  dtype = accumulator(params.recurrent_weights.dtype)

  def cell(h_bar, memories, local):
    hidden, valid = local
    h = hidden.astype(dtype)
    h_bar = grid.masked(valid, h_bar)
    a_bar = (1 - h * h) * h_bar
    return Adjoints(h_bar if adjoints else None, a_bar)

  zeros = jnp.zeros((batch, params.recurrent_weights.shape[-1]), dtype)
  return grid.Recurrence(
    weights=tuple(params.recurrent_weights.swapaxes(1, 2)),
    cell=cell,
    message=lambda state: state.a,
    memory=lambda state, axis: None,
    boundary=Adjoints(None, zeros),
  )


_EQUATIONS = grid_cell.Equations(
  recurrence=_recurrence,
  residuals=lambda h, xs, sizes, plan: Residuals(xs, h, sizes, plan),
  seen=lambda residuals: residuals.hidden,
  adjoint=_adjoint,
  keep=lambda bars: bars,
  adjoints=lambda bars: None if bars.h is None else bars,
  other_gradients=lambda params, bars, hidden: {},
)
_apply = grid_cell.differentiable(_EQUATIONS)
