"""The functions that every cell on a grid has, made of its equations.

They are of one layer, or of the layers of a pipeline: then params is a
sequence, and what the forward pass keeps has a leading axis of layers.
"""

import dataclasses
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.typing import DTypeLike

from revmom.cells.grids import grid, grid_weights, pipeline
from revmom.cells.grids.arguments import prepare
from revmom.cells.grids.equations import Adjoint, Equations, Seen, Values
from revmom.cells.grids.residuals import Residuals
from revmom.cells.grids.sweep import Recurrence, sweep
from revmom.numerics import accumulator, broadcasting, cast, product


class State(NamedTuple):
  """What the next cells see of a cell with a memory."""

  h: jax.Array  # [B, H]
  c: jax.Array  # [B, H]


class Gradients(NamedTuple):
  """The adjoints of everything that went into a layer."""

  params: Any
  inputs: jax.Array
  adjoints: Any  # of gates and states at every position, or None


@dataclasses.dataclass(frozen=True)
class GridCell:
  """A cell: `init`, `step`, `forward`, `backward` and `apply`.

  `params` is the NamedTuple that `init` returns, with at least input_weights
  [D, G H], recurrent_weights [n, H, G H] and bias [G H] or None.

  Attributes:
    init: (key, input_size, hidden_size, ...) -> params.
    equations: params -> `Equations`, derived by hand.
    has_memory: whether cells hand on a memory besides the hidden state.
    adjoints: what is kept of the `Adjoint`s of all positions -> what users see.
    other_gradients: (params, kept, seen) -> the gradients of fields of params
      besides the weights and the bias, in a dict.
  """

  init: Callable[..., Any]
  equations: Callable[[Any], Equations]
  has_memory: bool = False
  adjoints: Callable[[Adjoint], Any] = lambda kept: kept.adjoints
  other_gradients: Callable[..., dict[str, jax.Array]] = lambda *_: {}

  @broadcasting
  def step(self, params: Any, inputs: jax.Array, neighbours: Any) -> Any:
    """The cell itself.

    Args:
      params: of the layer.
      inputs: x, [B, D].
      neighbours: the states of the n neighbours, zeros beyond the grid: a
        `State` each, or h [B, H] of cells without a memory.

    Returns:
      The state of this cell, likewise.
    """
    a, previous = grid_weights.drive(params, inputs), None
    for weights, state in zip(
      params.recurrent_weights, neighbours, strict=True
    ):
      a = a + product(state.h if self.has_memory else state, weights)
    if self.has_memory:
      previous = tuple(state.c.astype(a.dtype) for state in neighbours)
    h, c, _ = self.equations(params).forward(a, previous)
    h = h.astype(inputs.dtype)
    return h if c is None else State(h, c)

  @broadcasting
  def apply(
    self,
    params: Any,
    xs: jax.Array,
    *,
    direction: Sequence[int] | None = None,
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
        schedule, sizes beyond the grid (if they are not traced), or layers
        that cannot be pipelined.
    """
    plan, sizes = prepare(params, xs, direction, sizes, schedule)
    return _differentiable(self, plan, params, xs, sizes)

  @broadcasting
  def forward(
    self,
    params: Any,
    xs: jax.Array,
    *,
    direction: Sequence[int] | None = None,
    sizes: Any = None,
    schedule: str | None = None,
  ) -> tuple[jax.Array, Residuals]:
    """The forward pass, in plain JAX: `jax.jvp` goes through it.

    Arguments and errors are those of `apply`.

    Returns:
      The outputs [S_1, ..., S_n, B, H], and what `backward` needs.
    """
    plan, sizes = prepare(params, xs, direction, sizes, schedule)
    return _forward(self, plan, params, xs, sizes)

  @broadcasting
  def backward(
    self,
    params: Any,
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
      `Gradients`: those of params and of the inputs, and the cell's adjoints
      (with a leading axis of layers, if there are several) or None.
    """
    plan, seen, xs = residuals.plan, residuals.seen(), residuals.inputs
    *shape, batch, _ = output_bars.shape
    valid = grid.valid_cells(residuals.sizes, tuple(shape), batch)
    bars = grid.masked(valid, output_bars)
    of_layer = partial(_adjoint_sweep, self, batch, adjoints)
    gradients = partial(_gradients, self, plan, valid)
    keep = lambda bars: bars._replace(previous=None)
    if plan.schedule == grid.PIPELINED:
      kept = pipeline.backward(of_layer, params, bars, seen, valid, plan, keep)
      own, inputs_bar = pipeline.each(
        gradients, params, xs, residuals.hidden, kept, seen
      )
    else:
      bars = bars.astype(accumulator(params.input_weights.dtype))
      kept = sweep(of_layer(params), bars, (seen, valid), plan.reversed(), keep)
      own, inputs_bar = gradients(params, xs, residuals.hidden, kept, seen)
    return Gradients(own, inputs_bar, self.adjoints(kept) if adjoints else None)


def _forward(
  cell: GridCell, plan: grid.Plan, params: Any, xs: jax.Array, sizes: Any
) -> tuple[jax.Array, Residuals]:
  h, c, gates = _states(cell, plan, params, xs, sizes, keep=lambda state: state)
  outputs = h[-1] if plan.schedule == grid.PIPELINED else h
  return outputs, Residuals(xs, h, c, gates, sizes, plan)


def _states(
  cell: GridCell,
  plan: grid.Plan,
  params: Any,
  xs: jax.Array,
  sizes: Any,
  keep: Callable[[Values], Any],
) -> Any:
  """What is kept of the values at all positions."""
  *shape, batch, _ = xs.shape
  valid = grid.valid_cells(sizes, tuple(shape), batch)
  xs = grid.masked(valid, xs)
  of_layer = partial(_sweep, cell, batch, xs.dtype)
  if plan.schedule == grid.PIPELINED:
    return pipeline.forward(of_layer, params, xs, valid, plan, keep)
  drive = grid_weights.drive(params, xs)
  return sweep(of_layer(params), drive, valid, plan, keep)


def _sweep(
  cell: GridCell, batch: int, dtype: DTypeLike, params: Any
) -> Recurrence:
  """The forward pass of a layer."""
  wide = accumulator(params.recurrent_weights.dtype)
  equations = cell.equations(params)

  def at_position(a, previous, valid):
    h, c, gates = equations.forward(a, previous)
    h, gates = cast((h, gates), dtype)
    return grid.masked(valid, Values(h, c, gates))

  zeros = jnp.zeros((batch, params.recurrent_weights.shape[1]), wide)
  return Recurrence(
    weights=tuple(params.recurrent_weights),
    cell=at_position,
    message=lambda values: values.h,
    memory=lambda values, axis: values.c,
    boundary=Values(zeros.astype(dtype), zeros if cell.has_memory else None),
  )


def _adjoint_sweep(
  cell: GridCell, batch: int, adjoints: bool, params: Any
) -> Recurrence:
  """The backward pass of a layer."""
  ndim, hidden_size, width = params.recurrent_weights.shape
  dtype = accumulator(params.recurrent_weights.dtype)
  equations = cell.equations(params)

  def at_position(h_bar, c_bars, local):
    seen, valid = local
    c_bar = sum(c_bars[1:], c_bars[0]) if cell.has_memory else None
    h_bar, c_bar = grid.masked(valid, (h_bar, c_bar))
    bars = equations.adjoint(h_bar, c_bar, cast(seen, dtype))
    return bars if adjoints else bars._replace(adjoints=None)

  of_memory = (jnp.zeros((batch, hidden_size), dtype),) * ndim
  zeros = jnp.zeros((batch, width), dtype)
  return Recurrence(
    weights=tuple(params.recurrent_weights.swapaxes(1, 2)),
    cell=at_position,
    message=lambda bars: bars.a,
    memory=lambda bars, axis: bars.previous and bars.previous[axis],
    boundary=Adjoint(zeros, of_memory if cell.has_memory else None, None),
  )


def _gradients(
  cell: GridCell,
  plan: grid.Plan,
  valid: jax.Array | None,
  params: Any,
  xs: jax.Array,
  hidden: jax.Array,
  kept: Adjoint,
  seen: Seen,
) -> tuple[Any, jax.Array]:
  """Those of params and of the inputs of a layer, after its sweep."""
  fields, inputs_bar = grid_weights.drive_adjoint(
    params, valid, xs, hidden, kept.a, plan
  )
  fields |= cell.other_gradients(params, kept, seen)
  return params._replace(**fields), inputs_bar


@partial(jax.custom_vjp, nondiff_argnums=(0, 1))
@broadcasting
def _differentiable(
  cell: GridCell, plan: grid.Plan, params: Any, xs: jax.Array, sizes: Any
) -> jax.Array:
  """The outputs alone, differentiated by `backward`."""
  outputs = _states(cell, plan, params, xs, sizes, keep=lambda values: values.h)
  return outputs[-1] if plan.schedule == grid.PIPELINED else outputs


@broadcasting
def _forward_rule(
  cell: GridCell, plan: grid.Plan, params: Any, xs: jax.Array, sizes: Any
) -> tuple[jax.Array, tuple[Any, Residuals]]:
  outputs, residuals = _forward(cell, plan, params, xs, sizes)
  return outputs, (params, residuals)


def _backward_rule(
  cell: GridCell, plan: grid.Plan, known: tuple, output_bars: jax.Array
) -> tuple[Any, jax.Array, None]:
  del plan  # the residuals have it
  params, residuals = known
  gradients = cell.backward(params, residuals, output_bars)
  return gradients.params, gradients.inputs, None


_differentiable.defvjp(_forward_rule, _backward_rule)
