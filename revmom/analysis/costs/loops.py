"""How often loops run, as far as a program tells."""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jax.extend.core import ClosedJaxpr

from revmom.jacobian.program.constants import Constants, Origin
from revmom.jacobian.program.control_flow import (
  branches_of,
  scan_form,
  while_form,
)
from revmom.jacobian.program.equations import (
  Equation,
  Operand,
  Program,
  Variable,
  evaluate,
  inline,
  needed,
  read,
)

# Primitives that have programs inside.
NESTED = frozenset(["cond", "scan", "while"])


class TripCounts(NamedTuple):
  """How often while loops run: as given, or as their bounds say."""

  given: Mapping[str, int]  # by the names of the functions of their bodies

  def of(self, equation: Equation, values: Sequence[Any]) -> int:
    """The number of iterations of a while loop.

    Args:
      equation: the loop.
      values: of its operands; None where they are not known.

    Raises:
      ValueError: the loop waits for what is not known.
    """
    name, place = loop_name(equation)
    if name in self.given:
      return self.given[name]
    counting = _counting(equation)
    form = while_form(equation)
    first = form.condition_constants
    start = first + form.body_constants
    wanted = [
      *(k for k in counting.condition_constants),
      *(first + k for k in counting.body_constants),
      *(start + k for k in counting.carries),
    ]
    if any(values[k] is None for k in wanted):
      raise ValueError(
        f"The while loop over {name!r}{place} runs as often as its arguments "
        f"say, so that its cost is not known; give trip_counts={{{name!r}: "
        "...}, or use lax.scan or a lax.fori_loop with static bounds."
      )
    return _run(equation, counting, values)


def loop_name(equation: Equation) -> tuple[str, str]:
  """The name of the function that a while loop repeats, and where it is."""
  body = while_form(equation).body.jaxpr
  about = body.debug_info.func_src_info or "body"
  name, _, place = about.partition(" at ")
  return name, f" at {place}" if place else ""


class _Counting(NamedTuple):
  """The part of a while loop that tells when it ends."""

  condition: Program
  body: Program
  condition_constants: list[int]
  body_constants: list[int]
  carries: list[int]


def _counting(equation: Equation) -> _Counting:
  form = while_form(equation)
  condition, body = inline(form.condition), inline(form.body)
  first, start = form.condition_constants, form.body_constants
  read_first = _inputs_of(condition, condition.outputs)
  carries = {k - first for k in read_first if k >= first}
  while True:
    used = _inputs_of(body, [body.outputs[k] for k in carries])
    more = carries | {k - start for k in used if k >= start}
    if more == carries:
      break
    carries = more
  return _Counting(
    condition,
    body,
    sorted(k for k in read_first if k < first),
    sorted(k for k in used if k < start),
    sorted(carries),
  )


def _inputs_of(program: Program, outputs: Sequence[Operand]) -> set[int]:
  """The numbers of the inputs that some outputs are computed from."""
  used = {v for v in outputs if isinstance(v, Variable)}
  for equation in needed(program.equations, outputs):
    used.update(equation.variables)
  return {k for k, v in enumerate(program.inputs) if v in used}


def _run(equation: Equation, counting: _Counting, values: Sequence[Any]) -> int:
  """Runs what tells when a loop ends, and counts."""
  form = while_form(equation)
  first, start = form.condition_constants, form.body_constants
  condition, body, _, _, carries = counting
  news = [body.outputs[k] for k in carries]

  def goes_on(state: Any) -> Any:
    environment = {
      condition.inputs[k]: jnp.asarray(values[k])
      for k in counting.condition_constants
    }
    for k, value in zip(carries, state[1], strict=True):
      environment[condition.inputs[first + k]] = value
    evaluate(condition.equations, environment)
    return read(environment, condition.outputs[0])

  def step(state: Any) -> Any:
    environment = {
      body.inputs[k]: jnp.asarray(values[first + k])
      for k in counting.body_constants
    }
    for k, value in zip(carries, state[1], strict=True):
      environment[body.inputs[start + k]] = value
    evaluate(needed(body.equations, news), environment)
    return state[0] + 1, [read(environment, new) for new in news]

  with jax.ensure_compile_time_eval():
    begin = [jnp.asarray(values[first + start + k]) for k in carries]
    return int(lax.while_loop(goes_on, step, (jnp.int32(0), begin))[0])


class Part(NamedTuple):
  """A program inside of a loop or a branch."""

  program: Program
  constants: Constants
  times: int  # that it runs


def parts(
  equation: Equation, trip_counts: TripCounts, constants: Constants
) -> list[Part]:
  """The programs inside of a scan, a while loop or a cond.

  Args:
    equation: one of these.
    trip_counts: how often while loops run.
    constants: what is known of the operands.

  Raises:
    ValueError: nothing tells how often a while loop runs.
  """
  operands = equation.operands
  if equation.name == "cond":
    branches = branches_of(equation)
    return [_part(b, operands[1:], constants, 1) for b in branches]
  if equation.name == "scan":
    scan = scan_form(equation)
    known = operands[: scan.constants]
    return [_part(scan.body, known, constants, scan.length)]
  number = trip_counts.of(equation, [constants.value(v) for v in operands])
  form = while_form(equation)
  first = form.condition_constants
  start = first + form.body_constants
  return [
    _part(form.condition, operands[:first], constants, number + 1),
    _part(form.body, operands[first:start], constants, number),
  ]


def _part(
  closed: ClosedJaxpr,
  operands: Sequence[Operand],
  constants: Constants,
  times: int,
) -> Part:
  """With what is known of its first inputs."""
  program = inline(closed)
  origins = {
    v: Origin(constants, operand)
    for v, operand in zip(program.inputs, operands, strict=False)
  }
  return Part(program, Constants(program.equations, origins), times)
