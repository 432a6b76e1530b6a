"""Inverses of loops, branches and calls, by those of their programs."""

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from revmom.jacobian.inverses.knowledge import NotInvertible
from revmom.jacobian.program.control_flow import (
  CHECKPOINT,
  branches_of,
  scan_form,
  while_form,
)
from revmom.jacobian.program.declarations import invert_marked, program_of
from revmom.jacobian.program.dependence import dependent
from revmom.jacobian.program.equations import (
  Equation,
  Operand,
  Program,
  Variable,
  evaluate,
  needed,
  read,
)

Values = list[Any]  # None for what is not known
Solve = Callable[[Program, Sequence[Any], Sequence[Any]], tuple[Values, Values]]


def _known(values: Sequence[Any]) -> bool:
  return all(value is not None for value in values)


def _cast(values: Sequence[Any], operands: Sequence[Operand]) -> Values:
  """Arrays of the operands' types, as a loop wants of its carry."""
  return [
    jnp.asarray(value, operand.dtype)
    for value, operand in zip(values, operands, strict=True)
  ]


def scan(
  equation: Equation, given: Values, images: Values, solve: Solve
) -> tuple[Values, Values]:
  """A scan run backward from its end, or forward from its start.

  Each step solves the body for what is unknown: the carry before it and
  whatever of its x and y is missing.  Parts of the carry that don't depend on
  anything unknown, such as counters, are computed beforehand.
  """
  form = scan_form(equation)
  body = program_of(form.body)
  constants, count = form.constants, form.carry
  fixed, start, xs = _split(given, constants, count)
  ends, ys = images[:count], images[count:]
  if not _known(fixed):
    raise NotInvertible("`scan` closes over an unknown value")
  free = _free(body, given, range(constants, constants + count))
  rest = [k for k in range(count) if k not in free]
  backward = _known([ends[k] for k in rest]) and bool(rest)
  if not backward and not _known([start[k] for k in rest]):
    raise NotInvertible("`scan` has neither its start nor its end complete")
  types = body.inputs[constants : constants + count]

  def step(carry: Values, slices: Any) -> tuple[Values, Any]:
    history, x, y = slices
    before = _place(history, free, count)
    after: Values = [None] * count
    for k, value in zip(rest, carry, strict=True):
      (after if backward else before)[k] = value
    inputs, outputs = solve(body, [*fixed, *before, *x], [*after, *y])
    side = inputs[constants:] if backward else outputs
    turned = _cast([side[k] for k in rest], [types[k] for k in rest])
    return turned, (
      _missing(inputs[constants + count :], x),
      _missing(outputs[count:], y),
    )

  reverse = form.reverse
  settings: Any = {"length": form.length, "unroll": form.unroll}
  history, last = _history(body, fixed, start, xs, free, reverse, settings)
  first = [(ends if backward else start)[k] for k in rest]
  turned, (new_xs, new_ys) = lax.scan(
    step,
    _cast(first, [types[k] for k in rest]),
    (history, xs, ys),
    reverse=reverse != backward,
    **settings,
  )
  ends = _place(last, free, count)
  for k, value, known in zip(rest, turned, first, strict=True):
    start[k], ends[k] = (value, known) if backward else (known, value)
  return (
    [*fixed, *start, *_filled(xs, new_xs)],
    [*ends, *_filled(ys, new_ys)],
  )


def _split(values: Values, constants: int, carry: int) -> list[Values]:
  middle = constants + carry
  return [values[:constants], values[constants:middle], values[middle:]]


def _place(values: Values, places: Sequence[int], count: int) -> Values:
  """The values in their places, None elsewhere."""
  result: Values = [None] * count
  for k, value in zip(places, values, strict=True):
    result[k] = value
  return result


def _missing(values: Values, known: Values) -> Values:
  """The values that were not known."""
  return [
    None if old is not None else value
    for value, old in zip(values, known, strict=True)
  ]


def _filled(known: Values, found: Values) -> Values:
  """Each value from whichever has it."""
  return [a if a is not None else b for a, b in zip(known, found, strict=True)]


def _free(body: Program, given: Values, places: Sequence[int]) -> list[int]:
  """The parts of the carry, by number, that depend on nothing unknown."""
  free = {k for k in places if given[k] is not None}
  while True:
    unknown = [
      variable
      for k, variable in enumerate(body.inputs)
      if given[k] is None or (k in places and k not in free)
    ]
    reached = dependent(body.equations, unknown)
    kept = {k for k in free if body.outputs[k - places[0]] not in reached}
    if kept == free:
      return sorted(k - places[0] for k in free)
    free = kept


def _history(
  body: Program,
  fixed: Values,
  start: Values,
  xs: Values,
  free: list[int],
  reverse: bool,
  settings: dict[str, Any],
) -> tuple[Values, Values]:
  """The free parts of the carry before every step, and at the end."""
  outputs = [body.outputs[k] for k in free]
  equations = needed(body.equations, outputs)

  def step(carry: Values, x: Values) -> tuple[Values, Values]:
    before = _place(carry, free, len(start))
    environment = dict(zip(body.inputs, [*fixed, *before, *x], strict=True))
    evaluate(equations, environment)
    after = [read(environment, v) for v in outputs]
    return _cast(after, [body.inputs[len(fixed) + k] for k in free]), carry

  first = _cast(
    [start[k] for k in free], [body.inputs[len(fixed) + k] for k in free]
  )
  last, history = lax.scan(step, first, xs, reverse=reverse, **settings)
  return history, last


def while_loop(
  equation: Equation, given: Values, images: Values, solve: Solve
) -> tuple[Values, Values]:
  """A loop whose number of steps doesn't depend on the unknown."""
  form = while_form(equation)
  stops, body = program_of(form.condition), program_of(form.body)
  before_body, constants = form.condition_constants, form.body_constants
  fixed, start = given[before_body:], given[before_body + constants :]
  fixed = fixed[:constants]
  count = len(images)
  if not _known([*given[:before_body], *fixed]):
    raise NotInvertible("`while` closes over an unknown value")
  free = _free(body, [*fixed, *start], range(constants, constants + count))
  unknown = [
    stops.inputs[before_body + k] for k in range(count) if k not in free
  ]
  if stops.outputs[0] in dependent(stops.equations, unknown):
    raise NotInvertible("`while` stops by a condition on the unknown")
  if not _known([images[k] for k in range(count) if k not in free]):
    raise NotInvertible("`while` has an end that is not complete")
  types = body.inputs[constants:]
  kept = [types[k] for k in free]

  def goes_on(state: tuple[Any, Values]) -> Any:
    carry = _place(state[1], free, count)
    return _outputs(stops, stops.outputs, [*given[:before_body], *carry])[0]

  def go_on(state: tuple[Any, Values]) -> tuple[Any, Values]:
    carry = _place(state[1], free, count)
    outputs = [body.outputs[k] for k in free]
    return state[0] + 1, _cast(_outputs(body, outputs, [*fixed, *carry]), kept)

  steps, last = lax.while_loop(
    goes_on, go_on, (jnp.array(0), _cast([start[k] for k in free], kept))
  )
  ends = list(images)
  for k, value in zip(free, last, strict=True):
    ends[k] = value

  def undo(step: Any, carry: Values) -> Values:
    inputs, _ = solve(body, [*fixed, *[None] * count], carry)
    return _cast(inputs[constants:], types)

  begun = lax.fori_loop(0, steps, undo, _cast(ends, types))
  return [*given[:before_body], *fixed, *begun], ends


def _outputs(
  program: Program, outputs: Sequence[Operand], inputs: Values
) -> Values:
  """Some outputs of a program, for which not all inputs may be needed."""
  environment: dict[Variable, Any] = dict(
    zip(program.inputs, inputs, strict=True)
  )
  evaluate(needed(program.equations, outputs), environment)
  return [read(environment, v) for v in outputs]


def cond(
  equation: Equation, given: Values, images: Values, solve: Solve
) -> tuple[Values, Values]:
  """The branch that a known index selects."""
  if given[0] is None:
    raise NotInvertible("`cond` branches on an unknown value")
  return branch(equation, given[0], given, images, solve)


def branch(
  equation: Equation,
  index: jax.Array,
  given: Values,
  images: Values,
  solve: Solve,
) -> tuple[Values, Values]:
  """The operands and outputs of a cond whose branch is given."""

  def through(program: Program) -> Callable[[], tuple[Values, Values]]:
    def call() -> tuple[Values, Values]:
      inputs, outputs = solve(program, given[1:], images)
      return (
        _cast(inputs, program.inputs),
        _cast(outputs, equation.outputs),
      )

    return call

  programs = [program_of(b) for b in branches_of(equation)]
  inputs, outputs = lax.switch(index, [through(p) for p in programs])
  return [given[0], *inputs], outputs


def _marked(
  equation: Equation, given: Values, images: Values, solve: Solve
) -> tuple[Values, Values]:
  return invert_marked(equation, given, images)


Rule = Callable[[Equation, Values, Values, Solve], tuple[Values, Values]]
# By the primitives' names; the calls among them are only those that are marked.
LOOPS: dict[str, Rule] = {
  CHECKPOINT: _marked,
  "cond": cond,
  "scan": scan,
  "while": while_loop,
}
