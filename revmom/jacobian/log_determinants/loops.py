"""Determinants of loops and branches: those of their bodies.

A scan from (c, x_1 ... x_T) to (c', y_1 ... y_T) is the composition of T maps
(c, x_t) -> (c', y_t), so that det J is the product of the body's, in the order
of the steps.  Where the carry starts from a constant and is dropped, the map
from the xs to the ys is block triangular with the blocks dy_t / dx_t.
"""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax.numpy as jnp
from jax import lax

from revmom.jacobian.log_determinants.blocks import Part, Plan
from revmom.jacobian.log_determinants.cuts import (
  arrangement_sign,
  carries_derivative,
)
from revmom.jacobian.log_determinants.determinant import (
  Determinant,
  exact,
  product,
)
from revmom.jacobian.program.constants import Constants
from revmom.jacobian.program.control_flow import (
  branches_of,
  scan_form,
  while_form,
)
from revmom.jacobian.program.dead_code import live
from revmom.jacobian.program.dependence import dependent
from revmom.jacobian.program.equations import (
  Environment,
  Equation,
  Operand,
  Program,
  Variable,
  evaluate,
  inline,
  read,
  run,
)
from revmom.jacobian.program.primitives import keep

# Plans the determinant of d rows / d columns.
Planner = Callable[
  [Sequence[Equation], Sequence[Variable], Sequence[Operand], Constants], Plan
]


class Body(NamedTuple):
  """A body or a branch, and the plan for its determinant."""

  program: Program
  plan: Plan

  def step(self, inputs: Sequence[Any]) -> tuple[list[Any], Determinant]:
    """The outputs and the determinant."""
    environment = dict(zip(self.program.inputs, inputs, strict=True))
    evaluate(self.program.equations, environment)
    outputs = [read(environment, operand) for operand in self.program.outputs]
    return outputs, self.plan.evaluate(environment)


class Places(NamedTuple):
  """Positions of a part's columns among operands, of its rows among outputs."""

  columns: list[int]  # sorted
  rows: list[int]  # sorted
  sign: int  # of sorting them


def find_places(part: Part) -> Places | None:
  """None where a column is an operand more than once."""
  (equation,) = part.equations
  columns = [
    k
    for k, operand in enumerate(equation.operands)
    if isinstance(operand, Variable) and operand in part.columns
  ]
  if len(columns) != len(part.columns):
    return None
  rows = [k for k, v in enumerate(equation.outputs) if v in part.rows]
  sign = arrangement_sign(
    part.columns, [equation.operands[k] for k in columns]
  ) * arrangement_sign(part.rows, [equation.outputs[k] for k in rows])
  return Places(columns, rows, sign)


def plan_body(
  program: Program,
  columns: Sequence[int],
  rows: Sequence[int],
  constants: Constants,
  planner: Planner,
) -> Body:
  """Plans d outputs[rows] / d inputs[columns] of a program."""
  plan = planner(
    program.equations,
    [program.inputs[k] for k in columns],
    [program.outputs[k] for k in rows],
    constants,
  )
  return Body(program, plan)


def _carrying(part: Part, carry: int) -> set[int]:
  """The numbers of a loop's carried values that vary with the columns."""
  (equation,) = part.equations
  reached = dependent(part.equations, part.columns, carries_derivative)
  return {k for k in range(carry) if equation.outputs[k] in reached}


class Scan(NamedTuple):
  """A scan, whose body's determinants multiply."""

  part: Part
  body: Body
  sign: int

  def summary(self) -> tuple[str, int, int]:
    (equation,) = self.part.equations
    return _summary("scan", self.body, scan_form(equation).length)

  def evaluate(self, environment: Environment) -> Determinant:
    (equation,) = self.part.equations
    form = scan_form(equation)
    values = [read(environment, operand) for operand in equation.operands]
    start = form.constants
    stop = start + form.carry

    def step(carry: list[Any], xs: list[Any]) -> tuple[list[Any], Determinant]:
      outputs, factor = self.body.step([*values[:start], *carry, *xs])
      return outputs[: form.carry], factor

    # Stacked and summed pairwise: a running sum would drift.
    _, factors = lax.scan(
      step,
      values[start:stop],
      values[stop:],
      length=form.length,
      reverse=form.reverse,
    )
    sign = jnp.prod(factors.sign) * self.sign
    return exact(jnp.sum(factors.value), sign, self.body.plan.dtype)


def scan_block(
  part: Part, constants: Constants, planner: Planner
) -> Scan | None:
  """A scan whose body is a square map; None of another."""
  (equation,) = part.equations
  form = scan_form(equation)
  start, carry = form.constants, form.carry
  places = find_places(part)
  if places is None or places.columns[0] < start:
    return None
  from_carry = {k - start for k in places.columns if k < start + carry}
  to_carry = {k for k in places.rows if k < carry}
  if from_carry != to_carry:
    return None
  if from_carry and from_carry != _carrying(part, carry):
    return None
  program = live(inline(form.body, keep), keep)
  inside = constants.inside(program, equation.operands[:start])
  body = plan_body(program, places.columns, places.rows, inside, planner)
  xs = [program.inputs[k] for k in places.columns if k >= start + carry]
  ys = [program.outputs[k] for k in places.rows if k >= carry]
  sign = interleaving([v.size for v in xs], form.length)
  sign *= interleaving([v.size for v in ys], form.length)
  return Scan(part, body, places.sign * sign)


def interleaving(sizes: Sequence[int], length: int) -> int:
  """The sign of ordering stacked arrays by step first, not by array."""
  odd = sum(size % 2 for size in sizes)
  swaps = odd * (odd - 1) // 2 * (length * (length - 1) // 2)
  return -1 if swaps % 2 else 1


class While(NamedTuple):
  """A while loop, which multiplies its body's determinants as it goes."""

  part: Part
  body: Body
  condition: Program
  sign: int

  def summary(self) -> tuple[str, int, int]:
    return _summary("while", self.body, 1)

  def evaluate(self, environment: Environment) -> Determinant:
    (equation,) = self.part.equations
    values = [read(environment, operand) for operand in equation.operands]
    form = while_form(equation)
    first = form.condition_constants
    start = first + form.body_constants

    def goes_on(state: Any) -> Any:
      return run(self.condition, [*values[:first], *state[0]])[0]

    def step(state: Any) -> Any:
      carry, total = state
      carry, factor = self.body.step([*values[first:start], *carry])
      return carry, product([total, factor], 1, self.body.plan.dtype)

    one = exact(0.0, self.sign, self.body.plan.dtype)
    return lax.while_loop(goes_on, step, (values[start:], one))[1]


def while_block(
  part: Part, constants: Constants, planner: Planner
) -> While | None:
  """A while loop whose body is a square map; None of another."""
  (equation,) = part.equations
  form = while_form(equation)
  first = form.condition_constants
  start = first + form.body_constants
  places = find_places(part)
  carrying = _carrying(part, len(equation.outputs))
  if places is None or set(places.rows) != carrying:
    return None
  if {k - start for k in places.columns} != carrying:
    return None
  program = live(inline(form.body, keep), keep)
  inside = constants.inside(program, equation.operands[first:start])
  columns = [k - first for k in places.columns]
  body = plan_body(program, columns, places.rows, inside, planner)
  return While(part, body, inline(form.condition), places.sign)


class Cond(NamedTuple):
  """A branch, whose determinant is that of the branch that is taken."""

  part: Part
  branches: tuple[Body, ...]
  sign: int

  def summary(self) -> tuple[str, int, int]:
    return max(_summary("cond", branch, 1) for branch in self.branches)

  def evaluate(self, environment: Environment) -> Determinant:
    (equation,) = self.part.equations
    values = [read(environment, operand) for operand in equation.operands]
    index = jnp.asarray(values[0]).astype(jnp.int32)
    factor = lax.switch(
      index,
      [lambda *xs, b=branch: b.step(xs)[1] for branch in self.branches],
      *values[1:],
    )
    return factor._replace(sign=factor.sign * self.sign)


def cond_block(
  part: Part, constants: Constants, planner: Planner
) -> Cond | None:
  """A branch whose operands that vary meet it once."""
  (equation,) = part.equations
  places = find_places(part)
  if places is None:
    return None
  bodies = []
  for closed in branches_of(equation):
    program = live(inline(closed, keep), keep)
    inside = constants.inside(program, equation.operands[1:])
    columns = [k - 1 for k in places.columns]
    bodies.append(plan_body(program, columns, places.rows, inside, planner))
  return Cond(part, tuple(bodies), places.sign)


def _summary(kind: str, body: Body, times: int) -> tuple[str, int, int]:
  """The summary of a body that is evaluated some number of times."""
  found = body.plan.report()
  blocks = sum(block.blocks for block in found)
  return kind, times * blocks, max((b.largest for b in found), default=0)
