"""Hoisted inputs and deferred weight gradients for any recurrent step.

Differentiating `lax.scan` adds to the gradient of every weight in every step:
for R [H, 4H] a product h^T a and a sum, all in the loop.  With a_t = h_t R,

    R̄ = sum_t h_t^T ā_t                                                  (1)

is one product over time and batch, once all ā_t are known (Appleyard, Kocisky &
Blunsom 2016, section 4.2).  Here a step is split by its program: products that
see no state are computed for many steps at once, before the loop, and each
product of the state with weights gets a tap, a_t = h_t R + τ_t with τ = 0,
whose adjoint is ā_t, unless what it is added to has that adjoint already.  JAX
differentiates the loop with respect to inputs, taps and initial carry; (1)
follows.  All of this goes by `blocks` of steps, which stay in a cache, and of
which nothing is kept but what the loops have to keep.
"""

import math
from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp

from revmom.cells.sequences import blocks, step_program
from revmom.cells.sequences.deferred_loop import recurrence
from revmom.cells.sequences.step_program import StepProgram
from revmom.jacobian.program import equations as program
from revmom.jacobian.program.equations import Operand, Variable

BLOCK_ROWS = 256  # steps times rows of the state in a block

Step = Callable[[Any, Any, Any], tuple[Any, Any]]


def defer_weights(step: Step) -> Callable[[Any, Any, Any], tuple[Any, Any]]:
  """Sweeps a step over sequences, and takes gradients of weights afterwards.

  It computes what `lax.scan` computes, and keeps as much for its gradient.
  Reverse mode, forward over reverse and reverse over reverse are supported; for
  forward mode alone use `lax.scan`.

  What a step does with its inputs alone is computed for a block of steps at
  once.  So are the gradients of weights that multiply states, by dot_general or
  by a convolution: calls of `jit` and `checkpoint` are inlined, and [x, h] W is
  split into x W_x + h W_h.  Loops within a step, and functions with custom
  derivatives, stay as they are.

  Args:
    step: (params, carry, input) -> (carry, output), of pytrees; it may close
      over arrays, and must have no side effects.

  Returns:
    apply: (params, xs, initial_carry) -> (outputs, carry), where the arrays of
    xs and outputs have a leading axis of time.  It raises ValueError if xs have
    no arrays or several lengths, or if the step changes the structure, the
    shapes or the types of the carry.

  >>> def cell(params, h, x):
  ...   h = jnp.tanh(x @ params["W"] + h @ params["R"])
  ...   return h, h
  >>> params = {"W": jnp.ones((3, 5)), "R": jnp.ones((5, 5))}
  >>> outputs, carry = defer_weights(cell)(
  ...   params, jnp.ones((7, 2, 3)), jnp.zeros((2, 5))
  ... )
  >>> outputs.shape, carry.shape
  ((7, 2, 5), (2, 5))
  """

  def apply(params: Any, xs: Any, initial_carry: Any) -> tuple[Any, Any]:
    _check_steps(xs)
    carry = jax.tree.map(jnp.asarray, initial_carry)
    traced, constants, (carry_shape, output_shape) = step_program.trace(
      step, params, _shapes(carry), _shapes(xs, 1)
    )
    _check_carry(_shapes(carry), carry_shape)
    known = dict(
      zip(traced.given, [*constants, *jax.tree.leaves(params)], strict=True)
    )
    program.evaluate(traced.fixed, known)
    final, outputs = blocks.scan(
      partial(_block, traced, known),
      jax.tree.leaves(carry),
      jax.tree.leaves(xs),
      _rows(carry),
      BLOCK_ROWS,
      reverse=False,
    )
    return _unflatten(output_shape, outputs), _unflatten(carry_shape, final)

  return apply


def _block(
  traced: StepProgram,
  known: dict[Variable, Any],
  carry: list[jax.Array],
  xs: list[jax.Array],
) -> tuple[list[jax.Array], list[jax.Array]]:
  """The final carry and the outputs of some steps."""
  known = known | _drive(traced, known, xs)
  steps = len(xs[0])
  looped, final = recurrence(
    traced,
    steps,
    [known[v] for v in traced.read_fixed],
    [known[v] for v in traced.read_driven],
    carry,
  )
  known |= dict(zip(traced.looped, looped, strict=True))
  in_time = {*traced.looped, *_driven_outputs(traced)}
  return final, [_in_time(known, steps, in_time, v) for v in traced.outputs]


def _rows(carry: Any) -> int:
  """The largest number of vectors in an array of the state."""
  shapes = [leaf.shape for leaf in jax.tree.leaves(carry)]
  return max((math.prod(shape[:-1]) for shape in shapes), default=1)


def _unflatten(like: Any, leaves: list[jax.Array]) -> Any:
  structure: Any = jax.tree.structure(like)
  return structure.unflatten(leaves)


def _shapes(tree: Any, skip: int = 0) -> Any:
  """Shapes and types, without some leading axes."""
  return jax.tree.map(
    lambda a: jax.ShapeDtypeStruct(jnp.shape(a)[skip:], jnp.result_type(a)),
    tree,
  )


def _check_steps(xs: Any) -> None:
  """Raises ValueError unless all sequences have one length."""
  shapes = [jnp.shape(array) for array in jax.tree.leaves(xs)]
  if not shapes or () in shapes or len({shape[0] for shape in shapes}) != 1:
    raise ValueError(
      f"xs have arrays of the shapes {shapes}: give at least one, and all with "
      "the same leading axis of time."
    )


def _check_carry(before: Any, after: Any) -> None:
  described = lambda tree: jax.tree.map(lambda a: (a.shape, str(a.dtype)), tree)
  if described(before) != described(after):
    raise ValueError(
      f"The step makes a carry of {described(after)} of one of "
      f"{described(before)}: both must have the same structure, shapes and "
      "types."
    )


def _driven_outputs(traced: StepProgram) -> set[Variable]:
  made = {v for equation in traced.driven for v in equation.outputs}
  return made.union(traced.inputs)


def _drive(
  traced: StepProgram, known: dict[Variable, Any], xs: list[Any]
) -> dict[Variable, Any]:
  """What depends on inputs alone and is read elsewhere, for all steps."""
  driven = _driven_outputs(traced)
  wanted = list(
    dict.fromkeys(
      v
      for v in (*traced.read_driven, *traced.outputs)
      if isinstance(v, Variable) and v in driven
    )
  )

  def one_step(inputs: list[Any]) -> list[Any]:
    environment = known | dict(zip(traced.inputs, inputs, strict=True))
    program.evaluate(traced.driven, environment)
    return [environment[v] for v in wanted]

  return dict(zip(wanted, jax.vmap(one_step)(xs), strict=True))


def _in_time(
  known: dict[Variable, Any], steps: int, in_time: set[Variable], v: Operand
) -> jax.Array:
  """An output of all steps, even if it is the same in all of them."""
  value = program.read(known, v)
  if isinstance(v, Variable) and v in in_time:
    return value
  return jnp.broadcast_to(value, (steps, *jnp.shape(value)))
