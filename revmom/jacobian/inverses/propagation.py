"""Solves a program for what is unknown, by propagating what is known.

An equation whose operands are known gives its outputs; one whose outputs and
all operands but one are known gives that operand, if its primitive has an
inverse.  Both are repeated until nothing new is learnt.  Every equation is
looked at again only when something about it was learnt, so that the cost grows
linearly with the length of the program.
"""

from collections import deque
from collections.abc import Sequence
from typing import Any

import numpy as np

from revmom.jacobian.inverses import rules
from revmom.jacobian.inverses.knowledge import (
  Known,
  NotInvertible,
  blanked,
  located,
  merge,
  nothing,
  whole,
)
from revmom.jacobian.inverses.loops import LOOPS
from revmom.jacobian.inverses.movement import UPDATES, Learnt, Movement, updated
from revmom.jacobian.program.constants import Constants
from revmom.jacobian.program.equations import (
  Equation,
  Operand,
  Program,
  Variable,
)
from revmom.jacobian.program.rearrangement import REARRANGING


def solve(
  program: Program, inputs: Sequence[Any], outputs: Sequence[Any]
) -> tuple[list[Any], list[Any]]:
  """All inputs and outputs of a program, from those that are known.

  Args:
    program: the equations.
    inputs: a value for each input, None for those to solve for.
    outputs: likewise.

  Returns:
    The inputs and the outputs, complete.

  Raises:
    NotInvertible: what is known does not determine the rest, or no rule finds
      it; the message names the primitive.
  """
  search = Search(program)
  ends = (*program.inputs, *program.outputs)
  for variable, value in zip(ends, (*inputs, *outputs), strict=True):
    if value is not None and isinstance(variable, Variable):
      search.learn(variable, whole(value))
  search.run()
  values = [search.value(variable) for variable in ends]
  count = len(program.inputs)
  return values[:count], values[count:]


class Search:
  """What is known of a program's variables, and which equations to look at."""

  def __init__(self, program: Program):
    self._program = program
    self._constants = Constants(program.equations)
    self._known: dict[Variable, Known] = {}
    self._movements: dict[int, Movement] = {}
    self._reasons: dict[int, str] = {}  # why an equation gave nothing
    self._near: dict[Variable, list[int]] = {}  # the equations of a variable
    self._cheap: deque[int] = deque()
    self._costly: deque[int] = deque()  # those with programs of their own
    self._waiting: set[int] = set()  # those in a queue
    for k, equation in enumerate(program.equations):
      for variable in {*equation.variables, *equation.outputs}:
        self._near.setdefault(variable, []).append(k)
      self._enqueue(k)

  def run(self) -> None:
    """Until everything that is asked for is known, or nothing new is."""
    ends = (*self._program.inputs, *self._program.outputs)
    while not all(self._get(v).complete for v in ends):
      queue = self._cheap or self._costly
      if not queue:
        return
      self._visit(queue.popleft())

  def learn(self, variable: Variable, found: Known) -> None:
    """Adds knowledge, and looks again at the equations that it touches."""
    merged = merge(self._get(variable), found)
    if merged is not None:
      self._known[variable] = merged
      for k in self._near.get(variable, ()):
        self._enqueue(k)

  def value(self, operand: Operand) -> Any:
    """The value of an operand that must be known by now."""
    known = self._get(operand)
    if not known.complete:
      raise NotInvertible(self._explain())
    return known.value

  def _get(self, operand: Operand) -> Known:
    if not isinstance(operand, Variable):
      return whole(operand)
    return self._known.get(operand) or nothing(operand)

  def _enqueue(self, k: int) -> None:
    if k not in self._waiting:
      self._waiting.add(k)
      name = self._program.equations[k].name
      (self._costly if name in LOOPS else self._cheap).append(k)

  def _visit(self, k: int) -> None:
    self._waiting.discard(k)
    self._reasons.pop(k, None)
    equation = self._program.equations[k]
    operands = [self._get(v) for v in equation.operands]
    outputs = [self._get(v) for v in equation.outputs]
    try:
      if all(operand.complete for operand in operands):
        if not all(output.complete for output in outputs):
          self._evaluate(equation, operands)
      elif equation.name in LOOPS or equation.name in rules.LINEAR:
        if any(output.mask.any() for output in outputs):
          self._backward(equation, operands, outputs)
      elif any(known.value is None for known in (*operands, *outputs)):
        raise NotInvertible(f"`{equation.name}` has an unknown random key")
      elif equation.name in REARRANGING:
        if k not in self._movements:
          self._movements[k] = Movement(equation, self._constants)
        self._learn_all(self._movements[k].learn(operands, outputs))
      elif equation.name in UPDATES:
        learnt = updated(equation, operands, outputs[0], self._constants)
        self._learn_all(learnt)
      elif rules.is_elementwise(equation.name):
        self._elementwise(equation, operands, outputs[0])
      elif any(output.mask.any() for output in outputs):
        raise NotInvertible(f"`{equation.name}` has no rule for an inverse")
    except NotInvertible as error:
      self._reasons[k] = located(str(error), equation)

  def _learn_all(self, learnt: Learnt) -> None:
    for variable, known in learnt:
      self.learn(variable, known)

  def _evaluate(self, equation: Equation, operands: list[Known]) -> None:
    """The outputs of known operands."""
    results = equation.apply([operand.value for operand in operands])
    for variable, value in zip(equation.outputs, results, strict=True):
      self.learn(variable, whole(value))

  def _elementwise(
    self, equation: Equation, operands: list[Known], output: Known
  ) -> None:
    """Elements of the output, and those of the one operand that it gives."""
    shape = output.mask.shape
    masks = [np.broadcast_to(operand.mask, shape) for operand in operands]
    zeros = self._zeros(equation)
    ready = np.logical_and.reduce(masks)
    if equation.name == "mul":
      ready = ready | zeros
    if np.any(ready & ~output.mask):
      value = equation.apply([operand.value for operand in operands])[0]
      self.learn(equation.outputs[0], Known(blanked(value, ready), ready))
    unknown = [k for k, operand in enumerate(operands) if not operand.complete]
    for k in unknown:
      others = [mask for j, mask in enumerate(masks) if j != k]
      mask = np.logical_and.reduce([output.mask, ~masks[k], ~zeros, *others])
      variable = equation.operands[k]
      if mask.any() and variable.shape != shape:
        raise NotInvertible(f"`{equation.name}` broadcasts an unknown scalar")
      if mask.any():
        rest = [blanked(operand.value, mask) for operand in operands]
        y = blanked(output.value, mask)
        value = rules.elementwise_inverse(equation, k, y, rest)
        self.learn(variable, Known(value, mask))
    left = [k for k in unknown if not self._get(equation.operands[k]).complete]
    if len(left) > 1:
      raise NotInvertible(
        f"`{equation.name}` has two operands that are both unknown"
      )
    if left and zeros.any():
      raise NotInvertible(f"`{equation.name}` multiplies by a constant 0")

  def _zeros(self, equation: Equation) -> np.ndarray:
    """Where an operand of a product is a constant 0."""
    zeros = np.zeros(equation.outputs[0].shape, bool)
    if equation.name in ("mul", "div"):
      for operand in equation.operands:
        support = self._constants.support(operand)
        if support is not None:
          zeros |= ~support
    return zeros

  def _backward(
    self, equation: Equation, operands: list[Known], outputs: list[Known]
  ) -> None:
    """Whole operands, by a rule of the primitive."""
    given = [a.value if a.complete else None for a in operands]
    images = [a.value if a.complete else None for a in outputs]
    if equation.name in LOOPS:
      given, images = LOOPS[equation.name](equation, given, images, solve)
    elif images[0] is not None:
      k = next(k for k, value in enumerate(given) if value is None)
      given[k] = rules.LINEAR[equation.name](equation, k, given, images[0])
    ends = (*equation.operands, *equation.outputs)
    for variable, value in zip(ends, (*given, *images), strict=True):
      if isinstance(variable, Variable) and value is not None:
        self.learn(variable, whole(value))

  def _explain(self) -> str:
    """Why there are unknowns left."""
    if self._reasons:
      reasons = list(dict.fromkeys(self._reasons.values()))
      return "; ".join(reasons[:3])
    unused = [v for v in self._program.inputs if v not in self._near]
    if unused:
      return f"no output depends on an input of shape {unused[0].shape}"
    return "the outputs do not determine all of the inputs"
