"""Which values of a program vary with which."""

from collections.abc import Callable, Collection, Iterable, Sequence

from jax.extend.core import ClosedJaxpr

from revmom.jacobian.program.control_flow import (
  branches_of,
  scan_form,
  while_form,
)
from revmom.jacobian.program.equations import Equation, Variable, inline

Passes = Callable[[Equation, int], bool]


def passes_always(equation: Equation, output: int) -> bool:
  """Every output depends on the operands."""
  return True


def dependent(
  equations: Iterable[Equation],
  variables: Collection[Variable],
  passes: Passes = passes_always,
) -> set[Variable]:
  """The variables that depend on the given ones, which are among them.

  Of loops and branches each output is looked at for itself: a loop's counter
  depends on no input.

  Args:
    equations: in an order in which they can be evaluated.
    variables: to start from.
    passes: tells of an equation and the number of an output whether that
      output depends on the operands in the sense asked for.

  >>> from revmom.jacobian.program.equations import trace
  >>> program, _ = trace(lambda x, y: (x + y, 2 * y), 1.0, 2.0)
  >>> reached = dependent(program.equations, program.inputs[:1])
  >>> [v in reached for v in program.outputs]
  [True, False]
  """
  reached = set(variables)
  for equation in equations:
    mask = [isinstance(v, Variable) and v in reached for v in equation.operands]
    if any(mask):
      outputs = _output_mask(equation, mask, passes)
      reached.update(
        variable
        for k, variable in enumerate(equation.outputs)
        if outputs[k] and passes(equation, k)
      )
  return reached


def _output_mask(
  equation: Equation, mask: list[bool], passes: Passes
) -> list[bool]:
  """Which outputs of an equation depend on the operands of a mask."""
  if equation.name == "scan":
    scan = scan_form(equation)
    return _loop_mask(scan.body, mask, scan.constants, scan.carry, passes)
  if equation.name == "while":
    loop, carry = while_form(equation), len(equation.outputs)
    start, constants = loop.condition_constants, loop.body_constants
    reached = _loop_mask(loop.body, mask[start:], constants, carry, passes)
    stops = _mask_through(loop.condition, mask[:start] + reached, passes)
    return [a or stops[0] for a in reached]
  if equation.name == "cond":
    branches = [
      _mask_through(b, mask[1:], passes) for b in branches_of(equation)
    ]
    return [mask[0] or any(of) for of in zip(*branches, strict=True)]
  return [True] * len(equation.outputs)


def _loop_mask(
  body: ClosedJaxpr,
  mask: list[bool],
  constants: int,
  carry: int,
  passes: Passes,
) -> list[bool]:
  """The mask of a loop's outputs: its carry's, once stable, and its ys'."""
  mask = list(mask)
  while True:
    outputs = _mask_through(body, mask, passes)
    start = mask[constants : constants + carry]
    reached = [a or b for a, b in zip(start, outputs[:carry], strict=True)]
    if reached == start:
      return reached + outputs[carry:]
    mask[constants : constants + carry] = reached


def _mask_through(
  closed: ClosedJaxpr, mask: Sequence[bool], passes: Passes
) -> list[bool]:
  """Which outputs of a jaxpr depend on the inputs of a mask."""
  program = inline(closed)
  start = [v for v, m in zip(program.inputs, mask, strict=True) if m]
  reached = dependent(program.equations, start, passes)
  return [isinstance(v, Variable) and v in reached for v in program.outputs]
