"""Programs without what no output depends on.

A loop may carry a count that is dropped, or a value that only such a count
reads.  What a loop's outputs need is a fixed point over its steps.
"""

from itertools import compress

import jax
from jax.extend.core import ClosedJaxpr

from revmom.jacobian.program.control_flow import (
  Parameters,
  WhileForm,
  branches_of,
  narrowed_cond,
  narrowed_scan,
  narrowed_while,
  scan_form,
  while_form,
)
from revmom.jacobian.program.equations import (
  Equation,
  Keep,
  Program,
  Variable,
  inline,
  keep_none,
  run,
)


def live(program: Program, keep: Keep = keep_none) -> Program:
  """A program without dead code, inside of its loops and branches too.

  Args:
    program: any.
    keep: tells of a call inside of a loop or branch whether it is to stay an
      equation, as in `trace`.

  >>> def function(x):
  ...   step = lambda c, _: ((2 * c[0], c[1] + c[0]), None)
  ...   return jax.lax.scan(step, (x, 0.0), length=3)[0][0]
  >>> from revmom.jacobian.program.equations import trace
  >>> program, _ = trace(function, 1.0)
  >>> [len(p.equations[0].outputs) for p in (program, live(program))]
  [2, 1]
  """
  wanted = {v for v in program.outputs if isinstance(v, Variable)}
  kept = []
  for equation in reversed(program.equations):
    mask = [v in wanted for v in equation.outputs]
    if any(mask):
      equation = _narrowed(equation, mask, keep)
      wanted.update(equation.variables)
      kept.append(equation)
  return program._replace(equations=tuple(kept[::-1]))


def _narrowed(equation: Equation, wanted: list[bool], keep: Keep) -> Equation:
  """An equation that computes the wanted outputs, of a loop no others."""
  rules = {"scan": _narrowed_scan, "while": _narrowed_while}
  rule = {**rules, "cond": _narrowed_cond}.get(equation.name)
  if rule is None:
    return equation
  used, wanted, params = rule(equation, wanted, keep)
  if all(used) and all(wanted):
    return equation
  return Equation(
    equation.primitive,
    params,
    tuple(compress(equation.operands, used)),
    tuple(compress(equation.outputs, wanted)),
    equation.source,
  )


# Which operands and outputs of an equation remain, and its new parameters.
Narrowed = tuple[list[bool], list[bool], Parameters]


def stopping(loop: Equation) -> tuple[WhileForm, list[bool]]:
  """The part of a while loop that tells when it ends, and what that reads.

  Args:
    loop: the equation of a while loop.

  Returns:
    A loop of the carried values that its condition depends on, and for each
    operand of the equation whether it is one of that loop.

  >>> from revmom.jacobian.program.equations import trace
  >>> loop = lambda n, x: jax.lax.fori_loop(0, n, lambda i, x: 2 * x, x)
  >>> program, _ = trace(loop, 3, 1.0)
  >>> stopping(program.equations[-1])[1]
  [True, True, False]
  """
  used, _, params = _narrowed_while(
    loop, [False] * len(loop.outputs), keep_none
  )
  return while_form(loop._replace(params=params)), used


def _narrowed_scan(
  equation: Equation, wanted: list[bool], keep: Keep
) -> Narrowed:
  form = scan_form(equation)
  start, carry = form.constants, form.carry
  body = inline(form.body, keep)
  body, wanted = _narrowed_loop(body, start, carry, wanted, keep)
  used = _used(body)
  used[start : start + carry] = wanted[:carry]
  params = narrowed_scan(equation, _closed(body, used), used, wanted)
  return used, wanted, params


def _narrowed_while(
  equation: Equation, wanted: list[bool], keep: Keep
) -> Narrowed:
  form = while_form(equation)
  first, start = form.condition_constants, form.body_constants
  condition = inline(form.condition, keep)
  asked = _used(condition)
  wanted = [a or b for a, b in zip(wanted, asked[first:], strict=True)]
  body = inline(form.body, keep)
  body, wanted = _narrowed_loop(body, start, len(wanted), wanted, keep)
  reads = _used(body)[:start]
  narrow = WhileForm(
    _closed(condition, [*asked[:first], *wanted]),
    sum(asked[:first]),
    _closed(body, [*reads, *wanted]),
    sum(reads),
  )
  params = narrowed_while(equation, narrow)
  return [*asked[:first], *reads, *wanted], wanted, params


def _narrowed_cond(
  equation: Equation, wanted: list[bool], keep: Keep
) -> Narrowed:
  branches = [
    _narrowed_outputs(inline(branch, keep), wanted, keep)
    for branch in branches_of(equation)
  ]
  used = [any(of) for of in zip(*map(_used, branches), strict=True)]
  params = narrowed_cond(equation, [_closed(b, used) for b in branches])
  return [True, *used], wanted, params


def _narrowed_loop(
  body: Program, start: int, carry: int, wanted: list[bool], keep: Keep
) -> tuple[Program, list[bool]]:
  """A loop's body without outputs that the wanted ones need in no step."""
  while True:
    narrow = _narrowed_outputs(body, wanted, keep)
    used = _used(narrow)[start : start + carry]
    grown = [a or b for a, b in zip(wanted[:carry], used, strict=True)]
    if grown == wanted[:carry]:
      return narrow, wanted
    wanted = grown + wanted[carry:]


def _narrowed_outputs(
  program: Program, wanted: list[bool], keep: Keep
) -> Program:
  outputs = tuple(compress(program.outputs, wanted))
  return live(program._replace(outputs=outputs), keep)


def _used(program: Program) -> list[bool]:
  """Which inputs a program reads."""
  read = {v for equation in program.equations for v in equation.variables}
  read.update(v for v in program.outputs if isinstance(v, Variable))
  return [v in read for v in program.inputs]


def _closed(program: Program, used: list[bool]) -> ClosedJaxpr:
  """A program as a jaxpr of those inputs that are used."""
  inputs = list(compress(program.inputs, used))
  shapes = [
    jax.ShapeDtypeStruct(v.shape, v.dtype, weak_type=v.aval.weak_type)
    for v in inputs
  ]
  return jax.make_jaxpr(
    lambda *values: run(program._replace(inputs=tuple(inputs)), values)
  )(*shapes)
