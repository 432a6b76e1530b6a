"""Inverses of loops, branches and calls, by those of their programs."""

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jax.extend.core import ClosedJaxpr, JaxprEqn

from revmom.jacobian.inverses.knowledge import NotInvertible
from revmom.jacobian.program.control_flow import (
  CHECKPOINT,
  CUSTOM_VMAP,
  HIGH,
  branches_of,
  policy_of,
  scan_form,
  while_form,
)
from revmom.jacobian.program.dead_code import live
from revmom.jacobian.program.declarations import Mark, batch_of, mark_of
from revmom.jacobian.program.dependence import dependent
from revmom.jacobian.program.equations import (
  Equation,
  Operand,
  Program,
  evaluate,
  inline,
  needed,
  read,
)

Values = list[Any]  # None for what is not known
Solve = Callable[[Program, Sequence[Any], Sequence[Any]], tuple[Values, Values]]


def program_of(closed: ClosedJaxpr) -> Program:
  """The program of a jaxpr; what brings its own inverse stays an equation."""
  return live(inline(closed, _keep), _keep)


def _keep(equation: JaxprEqn) -> bool:
  name = equation.primitive.name
  return name in (CUSTOM_VMAP, HIGH) or mark_of(equation) is not None


def _known(values: Sequence[Any]) -> bool:
  return all(value is not None for value in values)


def _cast(values: Sequence[Any], operands: Sequence[Operand]) -> Values:
  """The values in the types of the operands, as loops need their carry."""
  return [
    jnp.asarray(value, operand.dtype)
    for value, operand in zip(values, operands, strict=True)
  ]


def scan(
  equation: Equation, given: Values, images: Values, solve: Solve
) -> tuple[Values, Values]:
  """A scan, run backward from its end.

  Each step solves the body for the carry before it and for whatever of its x
  and y is missing.  Parts of the carry that depend on nothing unknown, such as
  counters, are first run forward to their end.
  """
  form = scan_form(equation)
  body = program_of(form.body)
  first, last = form.constants, form.constants + form.carry
  fixed, start, xs = given[:first], given[first:last], given[last:]
  ends, ys = images[: form.carry], images[form.carry :]
  if not _known(fixed):
    raise NotInvertible("`scan` closes over an unknown value")
  free = _free(body, given, first, form.carry)

  def go_on(carry: Values, x: Values) -> tuple[Values, Values]:
    return _free_step(body, free, [*fixed, *carry, *x], types), carry

  def undo(carry: Values, slices: Any) -> tuple[Values, Any]:
    before, x, y = slices
    inputs, outputs = solve(body, [*fixed, *before, *x], [*carry, *y])
    found = _missing(inputs[last:], x), _missing(outputs[form.carry :], y)
    return _cast(inputs[first:last], types), found

  types = body.inputs[first:last]
  settings: Any = {"length": form.length, "unroll": form.unroll}
  ran, history = lax.scan(
    go_on, _only(free, start, types), xs, reverse=form.reverse, **settings
  )
  ends = _filled(ends, ran)
  if not _known(ends):
    raise NotInvertible(
      "`scan` has an end that is not known, to be run backward from"
    )
  begun, (new_xs, new_ys) = lax.scan(
    undo,
    _cast(ends, types),
    (history, xs, ys),
    reverse=not form.reverse,
    **settings,
  )
  return [*fixed, *begun, *_filled(xs, new_xs)], [*ends, *_filled(ys, new_ys)]


def while_loop(
  equation: Equation, given: Values, images: Values, solve: Solve
) -> tuple[Values, Values]:
  """A loop whose number of steps doesn't depend on the unknown."""
  form = while_form(equation)
  stops, body = program_of(form.condition), program_of(form.body)
  count, constants = len(images), form.body_constants
  first = form.condition_constants
  asked, rest = given[:first], given[first:]
  fixed, start = rest[:constants], rest[constants:]
  if not _known([*asked, *fixed]):
    raise NotInvertible("`while` closes over an unknown value")
  free = _free(body, rest, constants, count)
  unknown = [
    variable
    for k, variable in enumerate(stops.inputs[len(asked) :])
    if k not in free
  ]
  if stops.outputs[0] in dependent(stops.equations, unknown):
    raise NotInvertible("`while` stops by a condition on the unknown")

  def goes_on(state: tuple[Any, Values]) -> Any:
    return _some(stops, stops.outputs, [*asked, *state[1]])[0]

  def go_on(state: tuple[Any, Values]) -> tuple[Any, Values]:
    return state[0] + 1, _free_step(body, free, [*fixed, *state[1]], types)

  def undo(step: Any, carry: Values) -> Values:
    inputs, _ = solve(body, [*fixed, *[None] * count], carry)
    return _cast(inputs[constants:], types)

  types = body.inputs[constants:]
  state = (jnp.array(0), _only(free, start, types))
  steps, ran = lax.while_loop(goes_on, go_on, state)
  ends = _filled(images, ran)
  if not _known(ends):
    raise NotInvertible(
      "`while` has an end that is not known, to be run backward from"
    )
  begun = lax.fori_loop(0, steps, undo, _cast(ends, types))
  return [*asked, *fixed, *begun], ends


def _free(body: Program, given: Values, first: int, count: int) -> set[int]:
  """The parts of the carry, by number, that depend on nothing unknown."""
  places = range(first, first + count)
  free = {k for k in places if given[k] is not None}
  while True:
    unknown = [
      variable
      for k, variable in enumerate(body.inputs)
      if given[k] is None or (k in places and k not in free)
    ]
    reached = dependent(body.equations, unknown)
    kept = {k for k in free if body.outputs[k - first] not in reached}
    if kept == free:
      return {k - first for k in free}
    free = kept


def _only(free: set[int], start: Values, types: Sequence[Operand]) -> Values:
  """The free parts of the carry, cast, and None for the others."""
  return [
    jnp.asarray(value, types[k].dtype) if k in free else None
    for k, value in enumerate(start)
  ]


def _free_step(
  body: Program, free: set[int], inputs: Values, types: Sequence[Operand]
) -> Values:
  """The free parts of the carry after a step, and None for the others."""
  found = _some(body, [body.outputs[k] for k in sorted(free)], inputs)
  placed = dict(zip(sorted(free), found, strict=True))
  return _only(free, [placed.get(k) for k in range(len(types))], types)


def _some(
  program: Program, outputs: Sequence[Operand], inputs: Values
) -> Values:
  """Some outputs of a program, for which not all inputs may be needed."""
  environment = dict(zip(program.inputs, inputs, strict=True))
  evaluate(needed(program.equations, outputs), environment)
  return [read(environment, v) for v in outputs]


def _missing(values: Values, known: Values) -> Values:
  """The values that were not known."""
  return [
    None if old is not None else value
    for value, old in zip(values, known, strict=True)
  ]


def _filled(known: Values, found: Values) -> Values:
  """Each value from whichever has it."""
  return [a if a is not None else b for a, b in zip(known, found, strict=True)]


def cond(
  equation: Equation, given: Values, images: Values, solve: Solve
) -> tuple[Values, Values]:
  """The branch that a known index selects."""
  if given[0] is None:
    raise NotInvertible("`cond` branches on an unknown value")

  def through(program: Program) -> Callable[[], tuple[Values, Values]]:
    def call() -> tuple[Values, Values]:
      inputs, outputs = solve(program, given[1:], images)
      return _cast(inputs, program.inputs), _cast(outputs, equation.outputs)

    return call

  branches = [through(program_of(b)) for b in branches_of(equation)]
  inputs, outputs = lax.switch(given[0], branches)
  return [given[0], *inputs], outputs


def marked(
  equation: Equation, given: Values, images: Values, solve: Solve
) -> tuple[Values, Values]:
  """The operands of a call, by the inverse that `custom_inverse` gave it."""
  mark: Mark = policy_of(equation)
  batch = batch_of(mark, equation)
  assert batch is not None  # or it would have been inlined
  start = len(given) - len(batch.x) - len(batch.arguments)
  arguments = given[start + len(batch.x) :]
  if not _known([*arguments, *images]):
    raise NotInvertible(
      "`custom_inverse` needs all of its result and of its arguments but the "
      "first"
    )
  if batch.shape and not all(batch.x):
    raise NotInvertible("`custom_inverse` is mapped over less than its input")

  def inverse(images: Values, arguments: Values) -> Values:
    y = jax.tree.unflatten(jax.tree.structure(mark.image), images)
    rest = jax.tree.unflatten(jax.tree.structure(mark.arguments), arguments)
    return jax.tree.leaves(mark.inverse(y, *rest))

  axes = [0 if mapped else None for mapped in batch.arguments]
  for _ in batch.shape:
    inverse = jax.vmap(inverse, in_axes=(0, axes))
  # Custom derivatives in it would see the transformations around a trial.
  x = jax.jit(inverse)(images, arguments)
  return [*given[:start], *x, *arguments], images


Rule = Callable[[Equation, Values, Values, Solve], tuple[Values, Values]]
# By the names of primitives; the only checkpoints are those that are marked.
LOOPS: dict[str, Rule] = {
  CHECKPOINT: marked,
  "cond": cond,
  "scan": scan,
  "while": while_loop,
}
