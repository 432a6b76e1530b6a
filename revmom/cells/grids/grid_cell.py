"""The functions that every cell on a grid has, made of its equations.

They are of one layer, or of the layers of a pipeline: then params is a
sequence, and what the forward pass keeps has a leading axis of layers.
"""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from revmom.cells.grids import grid, grid_weights, pipeline
from revmom.numerics import accumulator, broadcasting


class Equations(NamedTuple):
  """What is derived by hand for each cell, as sweeps of a `grid.Recurrence`.

  Attributes:
    recurrence: (params, batch, dtype) -> the forward pass.  Its states have
      the output as their message; its local inputs are the valid cells.
    residuals: (states, inputs, sizes, plan) -> residuals, which have at least
      inputs, hidden, sizes and plan.
    seen: residuals -> what the adjoint of a cell reads, besides adjoints.
    adjoint: (params, batch, adjoints) -> the backward pass.  Its states have
      at least a, the adjoint of the pre-activations; its local inputs are
      what was seen, and the valid cells.
    keep: those states -> what is needed of them after the sweep.
    adjoints: what is kept -> the adjoints that users see, or None.
    other_gradients: (params, kept, seen) -> those of fields of params besides
      the weights and the bias, in a dict.
  """

  recurrence: Callable[..., grid.Recurrence]
  residuals: Callable[..., Any]
  seen: Callable[..., Any]
  adjoint: Callable[..., grid.Recurrence]
  keep: Callable[..., Any]
  adjoints: Callable[..., Any]
  other_gradients: Callable[..., dict[str, Any]]


class Gradients(NamedTuple):
  """The adjoints of everything that went into a layer."""

  params: Any
  inputs: jax.Array
  adjoints: Any  # of gates and states at every position, or None


def prepare(
  params: Any, xs: jax.Array, direction: Any, sizes: Any, schedule: Any
) -> tuple[grid.Plan, jax.Array | None]:
  """Checks the arguments of a layer; returns its plan and its sizes."""
  layers = _layers(params, schedule)
  _check(layers[0], xs)
  plan = grid.plan(layers[0].recurrent_weights.shape[0], direction, schedule)
  grid.valid_cells(sizes, xs.shape[:-2], xs.shape[-2])
  return plan, None if sizes is None else jnp.asarray(sizes)


def _layers(params: Any, schedule: Any) -> Sequence[Any]:
  """One layer, or those of a pipeline."""
  several = not hasattr(params, "recurrent_weights")
  if several != (schedule == grid.PIPELINED):
    given = f"a {type(params).__name__}" if several else "of one layer"
    raise ValueError(
      f"params are {given} with schedule={schedule!r}; give a sequence of "
      f'layers with schedule="{grid.PIPELINED}", and a single layer with one '
      f"of {grid.SCHEDULES} or None."
    )
  if not several:
    return (params,)
  pipeline.check(params)
  return params


def _check(params: Any, xs: jax.Array) -> None:
  ndim = params.recurrent_weights.shape[0]
  input_size = params.input_weights.shape[0]
  if xs.ndim != ndim + 2:
    raise ValueError(
      f"xs has the shape {xs.shape}, but these parameters are of {ndim}-"
      f"dimensional grids: give [{_axes(ndim)}, batch, {input_size}]."
    )
  if xs.shape[-1] != input_size:
    raise ValueError(
      f"xs has {xs.shape[-1]} features, but these parameters need "
      f"{input_size}: call init with input_size={xs.shape[-1]}."
    )
  if not jnp.issubdtype(xs.dtype, jnp.floating):
    raise ValueError(f"xs is {xs.dtype}; give floats.")


def _axes(ndim: int) -> str:
  return ", ".join(f"S_{axis + 1}" for axis in range(ndim))


@broadcasting
def outputs(
  equations: Equations, plan: grid.Plan, params: Any, xs: jax.Array, sizes: Any
) -> jax.Array:
  """The outputs alone."""
  if plan.schedule == grid.PIPELINED:
    return _states(equations, plan, params, xs, sizes, outputs=True)[-1]
  return _states(equations, plan, params, xs, sizes, outputs=True)


@broadcasting
def forward(
  equations: Equations, plan: grid.Plan, params: Any, xs: jax.Array, sizes: Any
) -> tuple[jax.Array, Any]:
  """The outputs, and what `backward` needs."""
  states = _states(equations, plan, params, xs, sizes)
  residuals = equations.residuals(states, xs, sizes, plan)
  if plan.schedule == grid.PIPELINED:
    return residuals.hidden[-1], residuals
  return residuals.hidden, residuals


def _states(
  equations: Equations,
  plan: grid.Plan,
  params: Any,
  xs: jax.Array,
  sizes: Any,
  outputs: bool = False,
) -> Any:
  *shape, batch, _ = xs.shape
  valid = grid.valid_cells(sizes, tuple(shape), batch)
  xs = grid.masked(valid, xs)

  def of_layer(params):
    return equations.recurrence(params, batch, xs.dtype)

  pipelined = plan.schedule == grid.PIPELINED
  recurrence = of_layer(params[0] if pipelined else params)
  keep = recurrence.message if outputs else lambda state: state
  if pipelined:
    return pipeline.forward(of_layer, params, xs, valid, plan, keep)
  drive = grid_weights.drive(params, xs)
  return grid.sweep(recurrence, drive, valid, plan, keep)


@broadcasting
def backward(
  equations: Equations,
  params: Any,
  residuals: Any,
  output_bars: jax.Array,
  adjoints: bool = False,
) -> Gradients:
  """The hand-derived backward pass."""
  plan, seen, xs = residuals.plan, equations.seen(residuals), residuals.inputs
  *shape, batch, _ = output_bars.shape
  valid = grid.valid_cells(residuals.sizes, tuple(shape), batch)
  bars = grid.masked(valid, output_bars)
  gradients = partial(_gradients, equations, plan, valid)

  def of_layer(params):
    return equations.adjoint(params, batch, adjoints)

  if plan.schedule == grid.PIPELINED:
    kept = pipeline.backward(
      of_layer, params, bars, seen, valid, plan, equations.keep
    )
    params_bars, inputs_bars = pipeline.each(
      gradients, params, xs, residuals.hidden, kept, seen
    )
    return Gradients(params_bars, inputs_bars, equations.adjoints(kept))
  recurrence = of_layer(params)
  bars = bars.astype(accumulator(params.input_weights.dtype))
  kept = grid.sweep(
    recurrence, bars, (seen, valid), plan.reversed(), equations.keep
  )
  return Gradients(
    *gradients(params, xs, residuals.hidden, kept, seen),
    equations.adjoints(kept),
  )


def _gradients(
  equations: Equations,
  plan: grid.Plan,
  valid: jax.Array | None,
  params: Any,
  xs: jax.Array,
  hidden: jax.Array,
  kept: Any,
  seen: Any,
) -> tuple[Any, jax.Array]:
  """Those of params and of the inputs of a layer, after its sweep."""
  fields, inputs_bar = grid_weights.drive_adjoint(
    params, valid, xs, hidden, kept.a, plan
  )
  fields |= equations.other_gradients(params, kept, seen)
  return params._replace(**fields), inputs_bar


def differentiable(equations: Equations) -> Callable[..., jax.Array]:
  """(plan, params, xs, sizes) -> outputs, differentiated by `backward`."""

  def forward_rule(plan, params, xs, sizes):
    ys, residuals = forward(equations, plan, params, xs, sizes)
    return ys, (params, residuals)

  def backward_rule(plan, known, output_bars):
    params, residuals = known
    gradients = backward(equations, params, residuals, output_bars)
    return gradients.params, gradients.inputs, None

  apply = partial(jax.custom_vjp, nondiff_argnums=(0,))(
    partial(outputs, equations)
  )
  apply.defvjp(forward_rule, backward_rule)
  return apply
