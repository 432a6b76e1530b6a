"""One sweep over a sequence, for every cell; its adjoint is `sweep_adjoint`.

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
from typing import Any

import jax
import jax.numpy as jnp

from revmom.cells.sequences import blocks
from revmom.cells.sequences import drive as of_inputs
from revmom.cells.sequences import masks as masking
from revmom.cells.sequences.equations import Equations
from revmom.cells.sequences.residuals import Options, Residuals
from revmom.cells.sequences.sweep_adjoint import backward
from revmom.numerics import broadcasting, cast


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
    drive: Any = of_inputs.drive(unbiased, masks.clear(inputs))
    if single:
      drive = drive[:, 0]
    if not keep:
      # XLA's CPU compiler makes slow loops of a step that reads parts of an
      # array, unless there are gates to be written as well.
      drive = of_inputs.parts(equations, drive)

    def step(carry: Any, now: tuple) -> tuple[Any, Any]:
      drive, masks = now
      drive = of_inputs.parts(equations, drive) if keep else drive
      if single:
        drive = of_inputs.biased(params, drive)
      new, gates = equations.advance(params, drive, carry, masks.factor)
      new = masking.hold(masks, carry, new)
      if not keep:
        return new, (jax.tree.leaves(new)[0].astype(dtype), None)
      gates = None if options.recompute else cast(gates, dtype)
      return new, (cast(new, dtype), gates)

    return blocks.scan_steps(step, carry, (drive, masks), options.reverse)

  times = jnp.arange(len(inputs))
  final, states = blocks.scan(
    block,
    initial_carry,
    (times, inputs),
    inputs.shape[1],
    options.block_rows(inputs),
    options.reverse,
  )
  outputs = jax.tree.leaves(states.results())[0]
  if lengths is not None:
    outputs = jnp.where(masking.valid(lengths, times), outputs, 0)
  if not keep:
    return outputs, final, None
  residuals = Residuals(inputs, states, initial_carry, lengths, key, options)
  return outputs, final, residuals


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
  bars_of = backward(equations, params, residuals, *bars)
  return bars_of.params, bars_of.inputs, bars_of.initial_carry, None, None


differentiable.defvjp(_differentiable_forward, _differentiable_backward)
