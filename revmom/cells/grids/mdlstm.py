r"""Long short-term memory on grids of any number of dimensions.

Pre-activations :math:`a = W^T x + b + \sum_d R_d^T h_d` of the gates come from
the input and from the hidden states :math:`h_d` of the n neighbours;
:math:`c_d` are the neighbours' memories, and both are zero beyond the grid.

"graves" has a forget gate for each axis, and optional peepholes p (Graves,
Fernandez & Schmidhuber 2007, "Multi-dimensional recurrent neural networks"):

.. math::
  g &= \tanh(a_g), \quad i = \sigma(a_i + p_i \sum\nolimits_d c_d), \quad
    f_d = \sigma(a_{f_d} + p_{f_d} c_d), \\
  c &= i g + \sum\nolimits_d f_d c_d, \quad
    o = \sigma(a_o + p_o c), \quad h = o \tanh(c).

Its memory can grow with the number of paths that lead to a cell, as several
forget gates may be open.  The cells of Leifert, Strauss, Gruening, Wustlich &
Labahn (JMLR 2016, "Cells in multidimensional recurrent neural networks") merge
the memories with shares :math:`\lambda` that sum to one,
:math:`s = \sum_d \lambda_d c_d`.  Here they are
:math:`\lambda = \mathrm{softmax}(a_{\lambda_1}, \dots, a_{\lambda_{n-1}}, 0)`:
:math:`\sigma(a_\lambda)` and :math:`1 - \sigma(a_\lambda)` for two dimensions,
the form in which RETURNN has the stable cell, and nothing for one.  "stable" is

.. math:: c = i g + f s, \qquad h = o \tanh(c),

and "leaky", whose memory is a mean of what it has seen, the first-order low
pass ("LeakyLP") with two output gates,

.. math:: c = (1 - f) g + f s, \qquad h = \tanh(o\, c + o'\, s).

In one dimension "graves" and "stable" are the LSTM.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import DTypeLike

from revmom.cells.grids import grid, grid_cell, grid_weights
from revmom.cells.grids.grid_cell import Gradients
from revmom.cells.grids.memory_cells import GRAVES, LEAKY, STABLE, Equations
from revmom.exact.pytree import Pytree, static
from revmom.numerics import accumulator, product


class Params(NamedTuple):
  """Weights of a layer with Graves' cell; blocks are g, i, o, f_1, ..., f_n."""

  input_weights: jax.Array  # [D, (n + 3) H]
  recurrent_weights: jax.Array  # [n, H, (n + 3) H], a matrix for each axis
  bias: jax.Array | None  # [(n + 3) H]
  peephole: jax.Array | None  # [n + 2, H]: p_i, p_o, p_f1, ..., p_fn


class StableParams(Params):
  """Of the stable cell; blocks are g, i, o, f, and n - 1 for the shares."""


class LeakyParams(Params):
  """Of the leaky cell; blocks are g, o, o', f, and n - 1 for the shares."""


CELLS = {"graves": Params, "stable": StableParams, "leaky": LeakyParams}


class State(NamedTuple):
  """What the next cells see."""

  h: jax.Array  # [B, H]
  c: jax.Array  # [B, H]


class Residuals(Pytree):
  """What the backward pass needs to know of the forward pass.

  With several layers all but the inputs have a leading axis of layers.
  """

  inputs: jax.Array  # [S_1, ..., S_n, B, D]
  hidden: jax.Array  # [S_1, ..., S_n, B, H]
  memory: jax.Array  # [S_1, ..., S_n, B, H], float32 if inputs are shorter
  gates: Any  # a NamedTuple of `memory_cells`, of [S_1, ..., S_n, B, H]
  sizes: jax.Array | None  # [B, n]
  plan: grid.Plan = static()


class Adjoints(NamedTuple):
  """The adjoints at every position [S_1, ..., S_n, B, H], accumulated."""

  h: jax.Array  # of the hidden state, from all that it reaches
  c: jax.Array  # of the memory, likewise
  gates: Any  # of the gates' values, in the NamedTuple of the cell's gates


class _Sent(NamedTuple):
  """What the backward sweep computes at a position."""

  a: jax.Array  # [..., B, (n + 3) H]
  previous: tuple[jax.Array, ...] | None  # for each axis [..., B, H]
  adjoints: Adjoints | None


class _Seen(NamedTuple):
  """What the backward sweep reads of the forward pass at a position."""

  c: jax.Array  # the memory, [S_1, ..., S_n, B, H]
  gates: Any
  previous: tuple[jax.Array, ...]  # the neighbours' memories


class _Cell(NamedTuple):
  """What the forward sweep computes at a position."""

  h: jax.Array
  c: jax.Array | None
  gates: Any


def init(
  key: jax.Array,
  input_size: int,
  hidden_size: int,
  *,
  ndim: int = 2,
  cell: str = "graves",
  bias: bool = True,
  forget_bias: float | None = None,
  peephole: bool = False,
  dtype: DTypeLike = jnp.float32,
) -> Params:
  """Draws the weights of a layer.

  Args:
    key: of `jax.random`.
    input_size: D, the features of an input.
    hidden_size: H, the units of a cell.
    ndim: n, the dimensions of the grid.
    cell: "graves", "stable" or "leaky".
    bias: whether to have one.
    forget_bias: where the bias of the forget gates starts; the rest of it
      starts at zero.  None is 1, or, where memories of several neighbours add
      up ("graves" with n > 1), -log(n - 1): the gates then sum to one.
    peephole: whether Graves' cell has peepholes; they start at zero.
    dtype: of the parameters.

  Returns:
    `Params`, `StableParams` or `LeakyParams`: the type tells the cell.

  Raises:
    ValueError: an unknown cell, a size below one, peepholes of another cell,
      or a forget_bias without a bias.

  >>> params = init(jax.random.key(0), 3, 5, cell="leaky")
  >>> params.recurrent_weights.shape
  (2, 5, 25)
  """
  if cell not in CELLS:
    raise ValueError(f"cell={cell!r}; choose one of {tuple(CELLS)}.")
  if peephole and cell != "graves":
    raise ValueError(
      f'cell={cell!r} has no peepholes; use cell="graves" or peephole=False.'
    )
  if not bias and forget_bias is not None:
    raise ValueError(
      f"forget_bias={forget_bias} needs a bias; use bias=True or leave it out."
    )
  weights = grid_weights.init(key, input_size, hidden_size, ndim, ndim + 3)
  adds_up = cell == "graves" and ndim > 1
  if forget_bias is None:
    forget_bias = -float(np.log(ndim - 1)) if adds_up else 1.0
  forget_gates = ndim if cell == "graves" else 1
  blocks = np.zeros((ndim + 3, hidden_size))
  blocks[3 : 3 + forget_gates] = forget_bias
  params = CELLS[cell](
    *weights,
    bias=jnp.asarray(blocks.reshape(-1)) if bias else None,
    peephole=jnp.zeros((ndim + 2, hidden_size)) if peephole else None,
  )
  return jax.tree.map(lambda leaf: leaf.astype(dtype), params)


def step(
  params: Params, inputs: jax.Array, neighbours: tuple[State, ...]
) -> State:
  """The cell itself.

  Args:
    params: of the layer.
    inputs: x, [B, D].
    neighbours: the states of the n neighbours, of [B, H]; zeros beyond the
      grid.

  Returns:
    The state of this cell.
  """
  a = grid_weights.drive(params, inputs)
  for weights, state in zip(params.recurrent_weights, neighbours, strict=True):
    a = a + product(state.h, weights)
  previous = tuple(state.c.astype(a.dtype) for state in neighbours)
  h, c, _ = _equations(params).forward(
    _blocks(params, a), previous, _peephole(params, a.dtype)
  )
  return State(h.astype(inputs.dtype), c)


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
  >>> apply(params, jnp.ones((8, 6, 1, 3)), direction=(1, -1)).shape
  (8, 6, 1, 5)
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
  """The hand-derived backward pass, of `memory_cells` in each cell.

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
  >>> gradients.adjoints.gates.f[1].shape
  (8, 6, 1, 5)
  """
  return grid_cell.backward(
    _EQUATIONS, params, residuals, output_bars, adjoints
  )


def _recurrence(
  params: Params, batch: int, dtype: DTypeLike
) -> grid.Recurrence:
  """The forward pass of a layer as a sweep."""
  wide = accumulator(params.recurrent_weights.dtype)
  peephole = _peephole(params, wide)

  def cell(a, previous, valid):
    h, c, gates = _equations(params).forward(
      _blocks(params, a), previous, peephole
    )
    h, gates = jax.tree.map(lambda value: value.astype(dtype), (h, gates))
    return grid.masked(valid, _Cell(h, c, gates))

  zeros = jnp.zeros((batch, params.recurrent_weights.shape[1]), wide)
  return grid.Recurrence(
    weights=tuple(params.recurrent_weights),
    cell=cell,
    message=lambda state: state.h,
    memory=lambda state, axis: state.c,
    boundary=_Cell(zeros.astype(dtype), zeros, None),
  )


def _residuals(
  state: _Cell, xs: jax.Array, sizes: Any, plan: grid.Plan
) -> Residuals:
  assert state.c is not None
  return Residuals(xs, state.h, state.c, state.gates, sizes, plan)


def _seen(residuals: Residuals) -> _Seen:
  memory, direction = residuals.memory, residuals.plan.direction
  first = memory.ndim - 2 - len(direction)  # behind the axis of layers
  previous = tuple(
    grid.previous(memory, first + axis, d) for axis, d in enumerate(direction)
  )
  return _Seen(memory, residuals.gates, previous)


def _adjoint(params: Params, batch: int, adjoints: bool) -> grid.Recurrence:
  """The backward pass of a layer as a sweep."""
  ndim, hidden_size, width = params.recurrent_weights.shape
  dtype = accumulator(params.recurrent_weights.dtype)
  peephole = _peephole(params, dtype)

  def cell(h_bar, c_bars, local):
    (c, gates, previous), valid = local
    gates = jax.tree.map(lambda gate: gate.astype(dtype), gates)
    h_bar, c_bar = grid.masked(valid, (h_bar, sum(c_bars[1:], c_bars[0])))
    bars = _equations(params).adjoint(
      h_bar, c_bar, c, gates, previous, peephole
    )
    every = Adjoints(h_bar, bars.c, bars.gates) if adjoints else None
    return _Sent(jnp.concatenate(bars.a, -1), bars.previous, every)

  zeros = jnp.zeros((batch, hidden_size), dtype)
  return grid.Recurrence(
    weights=tuple(params.recurrent_weights.swapaxes(1, 2)),
    cell=cell,
    message=lambda state: state.a,
    memory=lambda state, axis: state.previous[axis],
    boundary=_Sent(jnp.zeros((batch, width), dtype), (zeros,) * ndim, None),
  )


def _peephole_gradient(
  params: Params, sent: _Sent, seen: _Seen
) -> dict[str, jax.Array]:
  """That of p [n + 2, H]: what each peephole saw, times its adjoint."""
  if params.peephole is None:
    return {}
  _, a_i, a_o, *a_f = _blocks(params, sent.a)
  c, _, previous = seen
  terms = [
    jnp.sum(a * c, range(a.ndim - 1))
    for a, c in zip(
      (a_i, a_o, *a_f),
      (sum(previous[1:], previous[0]), c, *previous),
      strict=True,
    )
  ]
  return {"peephole": jnp.stack(terms).astype(params.peephole.dtype)}


_EQUATIONS = grid_cell.Equations(
  recurrence=_recurrence,
  residuals=_residuals,
  seen=_seen,
  adjoint=_adjoint,
  keep=lambda sent: sent._replace(previous=None),
  adjoints=lambda sent: sent.adjoints,
  other_gradients=_peephole_gradient,
)
_apply = grid_cell.differentiable(_EQUATIONS)


def _equations(params: Params) -> Equations:
  if isinstance(params, StableParams):
    return STABLE
  return LEAKY if isinstance(params, LeakyParams) else GRAVES


def _blocks(params: Params, a: jax.Array) -> tuple[jax.Array, ...]:
  return tuple(jnp.split(a, params.recurrent_weights.shape[0] + 3, -1))


def _peephole(params: Params, dtype: DTypeLike) -> tuple[jax.Array, ...] | None:
  if params.peephole is None:
    return None
  return tuple(params.peephole.astype(dtype))
