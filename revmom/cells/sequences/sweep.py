"""One sweep over a sequence and its adjoint, for every cell.

Nothing but the recurrent product of a cell needs the state.  A sweep therefore
takes `blocks` of steps, and does for a whole block at once

- forward: the products with the input weights;
- backward: the local derivatives of every step and, after the recurrence of
  the adjoints, the gradients of all weights and of the inputs.

What remains in the loops is one product with the recurrent weights, and on the
way back the recurrence is linear.  What is kept for the backward pass is the
state after each step, which the output is part of, and its gates, or the state
alone.
"""

from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from revmom.cells.sequences import blocks
from revmom.cells.sequences import masks as masking
from revmom.cells.sequences.affine import (
  accumulator,
  broadcasting,
  project,
  project_adjoint,
)
from revmom.cells.sequences.equations import Equations, Parts
from revmom.cells.sequences.masks import Rates
from revmom.exact.pytree import Pytree, static

BLOCK_ROWS = 512  # steps times sequences in a block


class Options(NamedTuple):
  """What is known before a sweep begins."""

  rates: Rates
  reverse: bool
  recompute: bool


class Residuals(Pytree):
  """What the backward pass needs to know of a sweep; time-major."""

  inputs: jax.Array  # [T, B, D]
  states: blocks.Collected  # carries [T, B, H] after each step, and its gates
  initial_carry: Any
  lengths: jax.Array | None
  key: jax.Array | None
  options: Options = static()
  learned_carry: bool = static(default=False)
  batch_major: bool = static(default=False)

  @property
  def carries(self) -> Any:
    """After each step, of arrays [T, B, H]."""
    return self.states.results()[0]

  @property
  def gates(self) -> Any:
    """Of each step, or None where they are computed again."""
    return self.states.results()[1]


class Gradients(NamedTuple):
  """The adjoints of everything that went into a sweep."""

  params: Any
  inputs: jax.Array
  initial_carry: Any
  adjoints: Any = None  # of every gate and state at every step, if asked for


@broadcasting
def forward(
  equations: Equations,
  options: Options,
  params: Any,
  inputs: jax.Array,
  initial_carry: Any,
  lengths: jax.Array | None,
  key: jax.Array | None,
  keep: bool = True,
) -> tuple[jax.Array, Any, Residuals | None]:
  """Outputs, the final carry and, to keep, what the backward pass needs."""
  dtype = inputs.dtype
  # XLA's CPU compiler would copy products [T, 1, G], and again for the bias.
  single = inputs.shape[1] == 1
  unbiased = params._replace(bias=None) if single else params

  def block(carry: Any, steps: tuple) -> tuple[Any, Any]:
    times, inputs = steps
    masks = masking.draw(options.rates, key, lengths, times, initial_carry)
    drive: Any = _drive(unbiased, _valid(masks, inputs))
    if single:
      drive = drive[:, 0]
    if not keep:
      # XLA's CPU compiler makes slow loops of a step that reads parts of an
      # array, unless there are gates to be written as well.
      drive = _parts(equations, drive)

    def step(carry: Any, now: tuple) -> tuple[Any, Any]:
      drive, masks = now
      drive = _parts(equations, drive) if keep else drive
      if single:
        drive = _biased(params, drive)
      new, gates = equations.step(params, drive, carry, _kept(masks))
      new = masking.hold(masks, carry, new)
      if not keep:
        return new, (jax.tree.leaves(new)[0].astype(dtype), None)
      gates = None if options.recompute else _cast(gates, dtype)
      return new, (_cast(new, dtype), gates)

    return blocks.scan_steps(step, carry, (drive, masks), options.reverse)

  times = jnp.arange(len(inputs))
  final, states = blocks.scan(
    block,
    initial_carry,
    (times, inputs),
    inputs.shape[1],
    _block_rows(options, inputs),
    options.reverse,
  )
  outputs = jax.tree.leaves(states.results())[0]
  if lengths is not None:
    outputs = jnp.where(masking.valid(lengths, times), outputs, 0)
  if not keep:
    return outputs, final, None
  residuals = Residuals(inputs, states, initial_carry, lengths, key, options)
  return outputs, final, residuals


@broadcasting
def backward(
  equations: Equations,
  params: Any,
  residuals: Residuals,
  output_bars: jax.Array,
  carry_bar: Any,
  adjoints: bool = False,
) -> Gradients:
  """The adjoint of `forward`."""
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
    partial(
      _block_adjoint,
      equations,
      params,
      transposed,
      residuals,
      adjoints,
    ),
    (_cast(carry_bar, accumulator(output_bars.dtype)), zeros),
    steps,
    output_bars.shape[1],
    _block_rows(residuals.options, output_bars, equations.alone),
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


def _block_adjoint(
  equations: Equations,
  params: Any,
  transposed: Any,
  residuals: Residuals,
  adjoints: bool,
  so_far: tuple,
  steps: tuple,
) -> tuple[Any, Any]:
  """The adjoint of some steps; those of the weights are added up."""
  options = residuals.options
  carry_bar, params_bar = so_far
  times, inputs, states, output_bars = steps
  wide = accumulator(output_bars.dtype)
  carries, gates = states.results()
  carries = _before(residuals, times, carries)
  masks = masking.draw(
    options.rates,
    residuals.key,
    residuals.lengths,
    times,
    residuals.initial_carry,
  )
  inputs, carries = _valid(masks, inputs), _cast(carries, wide)
  if options.recompute:
    drive = driven(equations, params, inputs)
    _, gates = equations.step(params, drive, carries, _kept(masks))
  factors, local = equations.derivatives(
    params, _cast(gates, wide), carries, _kept(masks)
  )

  def step(params: Any, carry_bar: Any, now: tuple) -> tuple[Any, Any]:
    factors, masks, output_bar = now
    carry_bar = _add_to_output(carry_bar, _valid(masks, output_bar))
    held_bar, new_bar = masking.hold_adjoint(masks, carry_bar)
    old_bar, bars, states_bar = equations.step_adjoint(
      params if transposed else _transposed(equations, params), factors, new_bar
    )
    carry_bar = jax.tree.map(jnp.add, held_bar, old_bar)
    return carry_bar, (bars, states_bar if adjoints else None)

  carry_bar, (bars, states_bars) = blocks.scan_late(
    step,
    transposed or params,
    carry_bar,
    (factors, masks, output_bars),
    not options.reverse,
  )
  drive_bars, gradients = equations.weights_adjoint(
    params, local, carries, bars
  )
  input_bars, of_inputs = _drive_adjoint(params, inputs, drive_bars)
  gradients |= of_inputs
  params_bar = {
    field: bar + gradients[field] for field, bar in params_bar.items()
  }
  gate_bars = equations.gate_adjoints(local, states_bars) if adjoints else None
  input_bars = _valid(masks, input_bars.astype(inputs.dtype))
  return (carry_bar, params_bar), (input_bars, gate_bars)


def _transposed(equations: Equations, params: Any) -> Any:
  """The parameters as `step_adjoint` takes them."""
  weights = {
    field: getattr(params, field).T
    for field in equations.transposed
    if getattr(params, field) is not None
  }
  return params._replace(**weights)


def _block_rows(options: Options, arrays: jax.Array, alone: int = 1) -> int:
  """Rows of a block: a part of all [T, B] where memory is to be saved.

  A whole block of a short sequence would be all that it needs.  `alone` is
  in how many a sequence alone is then divided.
  """
  steps, batch, _ = arrays.shape
  parts = 4 if options.recompute else alone if batch == 1 else 1
  if parts == 1:
    return BLOCK_ROWS
  return min(BLOCK_ROWS, max(BLOCK_ROWS // 4, steps * batch // parts))


def _before(residuals: Residuals, times: jax.Array, carries: Any) -> Any:
  """The carries before some steps, from those after them."""
  steps = len(residuals.inputs)
  if not steps:
    return carries
  first, step = (-1, -1) if residuals.options.reverse else (0, 1)
  last = times[first] - step  # the step before the first of these

  def shifted(initial: jax.Array, all_: jax.Array, these: jax.Array) -> Any:
    start = jnp.where(
      (last < 0) | (last == steps),
      initial.astype(all_.dtype),
      lax.dynamic_index_in_dim(all_, last, keepdims=False),
    )
    parts = [start[None], these[:-1]]
    if residuals.options.reverse:
      parts = [these[1:], start[None]]
    return jnp.concatenate(parts)

  return jax.tree.map(
    shifted, residuals.initial_carry, residuals.carries, carries
  )


@partial(jax.custom_vjp, nondiff_argnums=(0, 1))
def differentiable(
  equations: Equations,
  options: Options,
  params: Any,
  inputs: jax.Array,
  initial_carry: Any,
  lengths: jax.Array | None,
  key: jax.Array | None,
) -> tuple[jax.Array, Any]:
  """Outputs and the final carry of a sweep, differentiated by `backward`."""
  outputs, final, _ = forward(
    equations, options, params, inputs, initial_carry, lengths, key, keep=False
  )
  return outputs, final


def _differentiable_forward(
  equations: Equations, options: Options, params: Any, *args: Any
) -> tuple[tuple[jax.Array, Any], tuple[Any, Residuals | None]]:
  outputs, final, residuals = forward(equations, options, params, *args)
  return (outputs, final), (params, residuals)


def _differentiable_backward(
  equations: Equations, options: Options, known: tuple, bars: tuple
) -> tuple[Any, jax.Array, Any, None, None]:
  del options  # the residuals have them
  params, residuals = known
  gradients = backward(equations, params, residuals, *bars)
  return (
    gradients.params,
    gradients.inputs,
    gradients.initial_carry,
    None,
    None,
  )


differentiable.defvjp(_differentiable_forward, _differentiable_backward)


def driven(equations: Equations, params: Any, inputs: jax.Array) -> Parts:
  """What the inputs contribute to the gates, in the parts that a step takes."""
  return _parts(equations, _drive(params, inputs))


def _drive(params: Any, inputs: jax.Array) -> jax.Array:
  """What the inputs contribute to the gates [..., G]."""
  return project(inputs, params.input_weights, params.input_gain, params.bias)


def _parts(equations: Equations, drive: jax.Array) -> Parts:
  return tuple(jnp.split(drive, equations.parts, -1))


def _biased(params: Any, drive: Parts) -> Parts:
  """The parts [1, G] of x W + b from those of x W [G] of one sequence."""
  if params.bias is None:
    return tuple(part[None] for part in drive)
  biases = jnp.split(params.bias, len(drive))
  return tuple(
    part[None] + bias.astype(part.dtype)
    for part, bias in zip(drive, biases, strict=True)
  )


def _drive_adjoint(
  params: Any, inputs: jax.Array, bars: jax.Array
) -> tuple[jax.Array, dict[str, Any]]:
  input_bars, weights_bar, gain_bar, bias_bar = project_adjoint(
    inputs, params.input_weights, params.input_gain, params.bias, bars
  )
  return input_bars, {
    "input_weights": weights_bar,
    "input_gain": gain_bar,
    "bias": bias_bar,
  }


def _params_bar(params: Any, gradients: dict[str, jax.Array]) -> Any:
  """The gradients in the types of the parameters."""
  learned = jax.tree.map(jnp.zeros_like, params.initial_carry)
  return params._replace(initial_carry=learned)._replace(
    **{
      field: bar.astype(getattr(params, field).dtype)
      for field, bar in gradients.items()
    }
  )


def _add_to_output(carry_bar: Any, output_bar: jax.Array) -> Any:
  """Adds to the adjoint of a carry that of its first array."""
  first, *rest = jax.tree.leaves(carry_bar)
  structure: Any = jax.tree.structure(carry_bar)
  return structure.unflatten([first + output_bar.astype(first.dtype), *rest])


def _kept(masks: masking.Masks) -> Any:
  return 1.0 if masks.kept is None else masks.kept


def _valid(masks: masking.Masks, values: jax.Array) -> jax.Array:
  """Zero beyond the ends of the sequences."""
  return values if masks.valid is None else jnp.where(masks.valid, values, 0)


def _cast(tree: Any, dtype: jax.typing.DTypeLike) -> Any:
  return jax.tree.map(lambda array: array.astype(dtype), tree)
