"""How often loops run, as far as a program tells."""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jax.extend.core import ClosedJaxpr, jaxpr_as_fun

from revmom.jacobian.program.constants import Constants
from revmom.jacobian.program.control_flow import (
  WhileForm,
  branches_of,
  scan_form,
  while_form,
)
from revmom.jacobian.program.dead_code import stopping
from revmom.jacobian.program.equations import (
  Equation,
  Operand,
  Program,
  inline,
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
    form, used = stopping(equation)
    read = [value for value, u in zip(values, used, strict=True) if u]
    if any(value is None for value in read):
      raise ValueError(
        f"The while loop over {name!r}{place} runs as often as its arguments "
        f"say, so that its cost is not known; give trip_counts={{{name!r}: "
        "...}, or use lax.scan or a lax.fori_loop with static bounds."
      )
    return _run(form, read)


def loop_name(equation: Equation) -> tuple[str, str]:
  """The name of the function that a while loop repeats, and where it is."""
  body = while_form(equation).body.jaxpr
  about = body.debug_info.func_src_info or "body"
  name, _, place = about.partition(" at ")
  return name, f" at {place}" if place else ""


def _run(form: WhileForm, values: Sequence[Any]) -> int:
  """Runs a loop whose operands are known, and counts its steps."""
  first = form.condition_constants
  start = first + form.body_constants
  condition, body = jaxpr_as_fun(form.condition), jaxpr_as_fun(form.body)

  def goes_on(state: Any) -> Any:
    return condition(*known[:first], *state[1])[0]

  def step(state: Any) -> Any:
    return state[0] + 1, body(*known[first:start], *state[1])

  with jax.ensure_compile_time_eval():
    known = [jnp.asarray(value) for value in values]
    begin = (jnp.int32(0), known[start:])
    return int(lax.while_loop(goes_on, step, begin)[0])


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
  """The program of a jaxpr, with what is known of its first inputs."""
  program = inline(closed)
  return Part(program, constants.inside(program, operands), times)
