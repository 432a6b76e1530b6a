"""The program of a recurrent step, split by what its parts depend on.

- fixed: on parameters, and arrays that the step closes over;
- driven: on inputs as well, but not on the carry;
- state: on the carry.

Only the last has to be in a loop.
"""

from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jax.extend.core import ClosedJaxpr, JaxprEqn

from revmom.jacobian.program import equations as program
from revmom.jacobian.program.control_flow import RULES
from revmom.jacobian.program.equations import (
  Equation,
  Operand,
  Program,
  Variable,
)


class Tap(NamedTuple):
  """A product of the state with weights, whose gradient can wait."""

  equation: Equation
  weight: int  # which operand is the weights
  drive: Variable | None  # what it is added to, and has the same adjoint

  @property
  def weights(self) -> Variable:
    return self.equation.operands[self.weight]

  @property
  def state(self) -> Variable:
    return self.equation.operands[1 - self.weight]

  def product(self, state: jax.Array, weights: jax.Array) -> jax.Array:
    operands = (state, weights) if self.weight else (weights, state)
    return self.equation.apply(operands)[0]


class StepProgram(NamedTuple):
  """A step in three parts, and the variables that pass between them."""

  given: tuple[Variable, ...]  # what the step closes over, then parameters
  carry: tuple[Variable, ...]
  inputs: tuple[Variable, ...]
  fixed: tuple[Equation, ...]
  driven: tuple[Equation, ...]
  state: tuple[Equation, ...]
  new_carry: tuple[Operand, ...]
  outputs: tuple[Operand, ...]
  taps: tuple[Tap, ...]
  read_fixed: tuple[Variable, ...]  # what the loop reads
  read_driven: tuple[Variable, ...]
  looped: tuple[Variable, ...]  # outputs that only the loop has
  untapped: tuple[Variable, ...]  # of read_fixed: with another use than in taps


def trace(
  step: Callable[..., Any], params: Any, carry: Any, inputs: Any
) -> tuple[StepProgram, list[Any], Any]:
  """Splits a step.

  Args:
    step: (params, carry, input) -> (carry, output).
    params, carry, inputs: pytrees of arrays, or of their shapes and dtypes.

  Returns:
    The program, the arrays that the step closes over, and the shapes of its
    result.
  """
  closed, shape = jax.make_jaxpr(step, return_shape=True)(params, carry, inputs)
  constants = list(closed.consts)
  sizes = [len(jax.tree.leaves(tree)) for tree in (params, carry, inputs)]
  first, last = sizes[0], sizes[0] + sizes[1]

  def pure(constants: list[Any], *leaves: Any) -> list[Any]:
    traced = program.inline(ClosedJaxpr(closed.jaxpr, constants), _keep)
    return _run_apart(traced, traced.inputs[first:last], leaves)

  traced, _ = program.trace(
    pure, constants, *jax.tree.leaves((params, carry, inputs)), keep=_keep
  )
  start = len(constants)
  given = traced.inputs[: start + first]
  carry_variables = traced.inputs[start + first : start + last]
  split = _split(traced, given, carry_variables, traced.inputs[start + last :])
  return split, constants, shape


def _keep(equation: JaxprEqn) -> bool:
  """What brings derivatives of its own stays what it is."""
  return equation.primitive.name in RULES


def _reached(
  equations: Iterable[Equation], start: Iterable[Variable]
) -> set[Variable]:
  """The variables, and all that equations compute from them."""
  reached = set(start)
  for equation in equations:
    if reached.intersection(equation.variables):
      reached.update(equation.outputs)
  return reached


def _split(
  traced: Program,
  given: tuple[Variable, ...],
  carry: tuple[Variable, ...],
  inputs: tuple[Variable, ...],
) -> StepProgram:
  in_loop = _reached(traced.equations, carry)
  moving = _reached(traced.equations, inputs) - in_loop
  state = tuple(e for e in traced.equations if in_loop.issuperset(e.outputs))
  driven = tuple(e for e in traced.equations if moving.issuperset(e.outputs))
  fixed = tuple(
    e
    for e in traced.equations
    if not (in_loop | moving).intersection(e.outputs)
  )
  variables = lambda operands: [v for v in operands if isinstance(v, Variable)]
  new_carry = traced.outputs[: len(carry)]
  outputs = traced.outputs[len(carry) :]
  reads = [v for e in state for v in e.variables]
  reads += variables(traced.outputs)
  once = {v for v, count in Counter(reads).items() if count == 1}
  taps = tuple(_taps(state, in_loop, moving, once))
  tapped = {id(tap.equation): tap.weights for tap in taps}
  untapped = variables(new_carry) + [
    v for e in state for v in e.variables if v is not tapped.get(id(e))
  ]
  read = untapped + [tap.weights for tap in taps]
  select = lambda among, wanted: tuple(
    dict.fromkeys(v for v in among if wanted(v))
  )
  is_fixed = lambda v: v not in in_loop and v not in moving
  return StepProgram(
    given,
    carry,
    inputs,
    fixed,
    driven,
    state,
    new_carry,
    outputs,
    taps,
    read_fixed=select(read, is_fixed),
    read_driven=select(read, lambda v: v in moving),
    looped=select(variables(outputs), lambda v: v in in_loop),
    untapped=select(untapped, is_fixed),
  )


def _taps(
  state: Sequence[Equation],
  in_loop: set[Variable],
  moving: set[Variable],
  once: set[Variable],
) -> Iterable[Tap]:
  """Products of the state with what is neither state nor driven."""
  for equation in state:
    operands = equation.operands
    if equation.name not in ("dot_general", "conv_general_dilated"):
      continue
    if not jnp.issubdtype(equation.outputs[0].dtype, jnp.inexact):
      continue
    for weight in (0, 1):
      other = operands[weight]
      if isinstance(other, Variable) and other not in in_loop | moving:
        drive = _added_to(equation.outputs[0], state, moving, once)
        yield Tap(equation, weight, drive)


def _added_to(
  product: Variable,
  state: Iterable[Equation],
  moving: set[Variable],
  once: set[Variable],
) -> Variable | None:
  """The driven variable that a product is added to, if neither goes elsewhere.

  Their adjoints are then the same, and need not be computed twice.
  """
  for equation in state:
    if equation.name == "add" and product in equation.operands:
      for v in equation.variables:
        like = (v.shape, v.dtype) == (product.shape, product.dtype)
        if v in moving and like and {v, product} <= once:
          return v
  return None


def _run_apart(
  traced: Program, carry: Sequence[Variable], leaves: Sequence[Any]
) -> list[Any]:
  """Runs a program with [x, h] W as x W_x + h W_h.

  Then the inputs' part does not depend on the state.
  """
  in_loop = _reached(traced.equations, carry)
  made_by = {v: e for e in traced.equations for v in e.outputs}
  environment = dict(zip(traced.inputs, leaves, strict=True))
  for equation in traced.equations:
    apart = _apart(equation, made_by, in_loop)
    if apart is None:
      program.evaluate([equation], environment)
    else:
      environment[equation.outputs[0]] = apart(environment)
  return [program.read(environment, operand) for operand in traced.outputs]


def _apart(
  equation: Equation, made_by: dict[Variable, Equation], in_loop: set[Variable]
) -> Callable[[dict[Variable, Any]], jax.Array] | None:
  """How to compute a product with a concatenation piece by piece.

  None unless it concatenates inputs and state along an axis that the product
  sums over.
  """
  for side, axes in _summed_axes(equation):
    joined, other = equation.operands[side], equation.operands[1 - side]
    source = made_by.get(joined) if isinstance(joined, Variable) else None
    if source is None or source.name != "concatenate" or other in in_loop:
      continue
    pieces = source.operands
    if (
      axes[side] != source.params["dimension"]
      or len({isinstance(p, Variable) and p in in_loop for p in pieces}) != 2
    ):
      continue

    def run(
      environment: dict[Variable, Any],
      side: int = side,
      axes: tuple[int, int] = axes,
      pieces: tuple[Operand, ...] = pieces,
      other: Operand = other,
    ) -> jax.Array:
      weights, start = program.read(environment, other), 0
      products = []
      for operand in pieces:
        piece = program.read(environment, operand)
        stop = start + piece.shape[axes[side]]
        part = lax.slice_in_dim(weights, start, stop, axis=axes[1 - side])
        ordered = (part, piece) if side else (piece, part)
        products += equation.apply(ordered)
        start = stop
      return sum(products[1:], products[0])

    return run
  return None


def _summed_axes(equation: Equation) -> list[tuple[int, tuple[int, int]]]:
  """For each operand that may be a concatenation, the axes of both."""
  if equation.name == "dot_general":
    contracting, _ = equation.params["dimension_numbers"]
    pairs = list(zip(*contracting, strict=True))
    return [(side, pair) for side in (0, 1) for pair in pairs]
  if equation.name == "conv_general_dilated":
    groups = ("feature_group_count", "batch_group_count")
    numbers = equation.params["dimension_numbers"]
    if all(equation.params[name] == 1 for name in groups):
      return [(0, (numbers.lhs_spec[1], numbers.rhs_spec[1]))]
  return []
