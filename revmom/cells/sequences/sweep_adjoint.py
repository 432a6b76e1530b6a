"""The adjoint of a `sweep`, block by block from the last to the first."""

from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from revmom.cells.sequences import blocks
from revmom.cells.sequences import masks as masking
from revmom.cells.sequences.affine import (
  gain_adjoint,
  normalised_product,
  product_adjoint,
)
from revmom.cells.sequences.drive import drive_adjoint, driven
from revmom.cells.sequences.equations import Equations, Steps
from revmom.cells.sequences.residuals import Residuals
from revmom.numerics import (
  Normalised,
  accumulator,
  broadcasting,
  cast,
  outer_products,
)


class Gradients(NamedTuple):
  """The adjoints of everything that went into a sweep."""

  params: Any
  inputs: jax.Array
  initial_carry: Any
  adjoints: Any = None  # of every gate and state at every step, if asked for


@broadcasting
def backward(
  equations: Equations,
  params: Any,
  residuals: Residuals,
  output_bars: jax.Array,
  carry_bar: Any,
  adjoints: bool = False,
) -> Gradients:
  """The adjoint of `sweep.forward`."""
  zeros = {
    field: jnp.zeros(value.shape, accumulator(value.dtype))
    for field, value in params._asdict().items()
    if value is not None and field != "initial_carry"
  }
  steps = (
    jnp.arange(len(output_bars)),
    residuals.inputs,
    residuals.states,
    output_bars,
  )
  transposed = None
  if output_bars.shape[1] > 1:
    # Laid out once: XLA's CPU compiler takes a quarter longer for a product
    # with the transpose of what lies in memory, and each step has one.  For a
    # single vector it is the other way around.
    transposed = lax.optimization_barrier(_transposed(equations, params))
  (carry_bar, params_bar), (input_bars, gate_bars) = blocks.scan(
    partial(_block, equations, params, transposed, residuals, adjoints),
    (cast(carry_bar, accumulator(output_bars.dtype)), zeros),
    steps,
    output_bars.shape[1],
    residuals.options.block_rows(output_bars, equations.alone),
    not residuals.options.reverse,
  )
  carry_bar = jax.tree.map(
    lambda bar, carry: bar.astype(carry.dtype),
    carry_bar,
    residuals.initial_carry,
  )
  return Gradients(
    _params_bar(params, params_bar), input_bars, carry_bar, gate_bars
  )


def _block(
  equations: Equations,
  params: Any,
  transposed: Any,
  residuals: Residuals,
  adjoints: bool,
  so_far: tuple,
  steps: tuple,
) -> tuple[Any, Any]:
  """The adjoint of some steps; those of the weights are added up."""
  carry_bar, params_bar = so_far
  times, inputs, states, output_bars = steps
  carries, gates = states.results()
  carries = residuals.before(times, carries)
  masks = masking.draw(
    residuals.options.rates,
    residuals.key,
    residuals.lengths,
    times,
    residuals.initial_carry,
  )
  wide = accumulator(output_bars.dtype)
  inputs, carries = masks.clear(inputs), cast(carries, wide)
  if residuals.options.recompute:
    drive = driven(equations, params, inputs)
    _, gates = equations.advance(params, drive, carries, masks.factor)
  gates = cast(gates, wide)
  factors = equations.derivatives(params, gates, carries, masks.factor)
  hidden = jax.tree.leaves(carries)[0]
  normalised = normalised_product(
    hidden, params.recurrent_weights, params.recurrent_gain
  )
  carry_bar, (bars, inner_bars, states_bars) = _recurrence(
    equations,
    params,
    transposed,
    carry_bar,
    (factors, normalised, masks, output_bars),
    adjoints,
    residuals.options.reverse,
  )
  known = Steps(gates, carries, masks.factor, factors)
  drive_bars, product_bars, gradients = equations.weights_adjoint(
    params, known, bars
  )
  input_bars, of_drive = drive_adjoint(params, inputs, drive_bars)
  of_product = _product_gradients(
    params, hidden, normalised, product_bars, inner_bars
  )
  gradients = {**gradients, **of_drive, **of_product}
  params_bar = {
    field: bar + gradients[field] for field, bar in params_bar.items()
  }
  gate_bars = None
  if adjoints:
    gate_bars = equations.gate_adjoints(params, known, states_bars)
  input_bars = masks.clear(input_bars.astype(inputs.dtype))
  return (carry_bar, params_bar), (input_bars, gate_bars)


def _recurrence(
  equations: Equations,
  params: Any,
  transposed: Any,
  carry_bar: Any,
  steps: tuple,
  adjoints: bool,
  reverse: bool,
) -> tuple[Any, tuple[Any, jax.Array | None, Any]]:
  """The loop over the steps of a block, which is linear in the adjoints.

  Returns:
    The adjoint of the carry before the block; and of every step the bars of the
    cell, the adjoint of h R if it is normalised, and those of the states if
    they are wanted.
  """

  def step(params: Any, carry_bar: Any, now: tuple) -> tuple[Any, Any]:
    factors, normalised, masks, output_bar = now
    weights = params if transposed else _transposed(equations, params)
    carry_bar = _add_to_output(carry_bar, masks.clear(output_bar))
    held_bar, new_bar = masking.hold_adjoint(masks, carry_bar)
    old_bar, product_bar, bars, states_bar = equations.step_adjoint(
      weights, factors, new_bar
    )
    inner_bar, through = product_adjoint(
      weights.recurrent_weights,
      weights.recurrent_gain,
      normalised,
      product_bar,
    )
    old_bar = _add_to_output(old_bar, through)
    carry_bar = jax.tree.map(jnp.add, held_bar, old_bar)
    return carry_bar, (
      bars,
      None if normalised is None else inner_bar,
      states_bar if adjoints else None,
    )

  return blocks.scan_late(
    step, transposed or params, carry_bar, steps, not reverse
  )


def _transposed(equations: Equations, params: Any) -> Any:
  """The parameters as `step_adjoint` takes them."""
  weights = {
    field: getattr(params, field).T
    for field in equations.transposed
    if getattr(params, field) is not None
  }
  return params._replace(**weights)


def _add_to_output(carry_bar: Any, bar: jax.Array) -> Any:
  """Adds to the adjoint of a carry that of its first array, the output."""
  add = lambda first: bar if first is None else first + bar.astype(first.dtype)
  if not isinstance(carry_bar, tuple):
    return add(carry_bar)
  first, *rest = carry_bar
  return type(carry_bar)(add(first), *rest)


def _product_gradients(
  params: Any,
  hidden: jax.Array,
  normalised: Normalised | None,
  product_bars: jax.Array,
  inner_bars: jax.Array | None,
) -> dict[str, jax.Array]:
  """Gradients of the recurrent weights and of their gain.

  Args:
    params: of the cell.
    hidden: h before each step.
    normalised: norm(h R), or None.
    product_bars: adjoints of h R, or of norm(h R) gain.
    inner_bars: adjoints of h R, if it is normalised.
  """
  bars = product_bars if inner_bars is None else inner_bars
  weights = params.recurrent_weights
  gradients = {"recurrent_weights": outer_products(hidden, bars, weights.dtype)}
  if params.recurrent_gain is not None:
    gradients["recurrent_gain"] = gain_adjoint(normalised, product_bars)
  return gradients


def _params_bar(params: Any, gradients: dict[str, jax.Array]) -> Any:
  """The gradients in the types of the parameters."""
  learned = jax.tree.map(jnp.zeros_like, params.initial_carry)
  return params._replace(initial_carry=learned)._replace(
    **{
      field: bar.astype(getattr(params, field).dtype)
      for field, bar in gradients.items()
    }
  )
