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

import jax
import numpy as np

from revmom.jacobian.inverses import movement
from revmom.jacobian.inverses import rules as rules
from revmom.jacobian.inverses.affine import solve_affine
from revmom.jacobian.inverses.knowledge import (
  NOTHING,
  Known,
  NotInvertible,
  blanks,
  concrete,
  constant,
  fill,
  located,
  mask_of,
  merge,
)
from revmom.jacobian.inverses.loops import LOOPS
from revmom.jacobian.inverses.scatters import OPPOSITE, updated
from revmom.jacobian.inverses.segments import solve_segment
from revmom.jacobian.program.equations import (
  Equation,
  Operand,
  Program,
  Variable,
)


def solve(
  program: Program, inputs: Sequence[Any], outputs: Sequence[Any]
) -> tuple[list[Any], list[Any]]:
  """All inputs and outputs of a program, of which some are known.

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
  search.start()
  for variable, value in zip(program.inputs, inputs, strict=True):
    if value is not None:
      search.learn(variable, Known(value))
  for variable, value in zip(program.outputs, outputs, strict=True):
    if value is not None and isinstance(variable, Variable):
      search.learn(variable, Known(value))
  search.run()
  return (
    [search.value(v) for v in program.inputs],
    [search.value(v) for v in program.outputs],
  )


class Search:
  """What is known of a program's variables, and which equations to look at."""

  solve = staticmethod(solve)

  def __init__(self, program: Program):
    self.program = program
    self.known: dict[Variable, Known] = {}
    self.reasons: dict[int, str] = {}
    self.near: dict[Variable, list[int]] = {}  # the equations of a variable
    self.maps: dict[int, list[np.ndarray] | None] = {}  # see `movement`
    self.cheap: deque[int] = deque()
    self.costly: deque[int] = deque()  # those with programs of their own
    self.waiting: set[int] = set()  # those in a queue
    for k, equation in enumerate(program.equations):
      for variable in {*equation.variables, *equation.outputs}:
        self.near.setdefault(variable, []).append(k)

  def copy(self) -> "Search":
    """A search that knows as much, to try what else would be."""
    search = Search(self.program)
    search.known, search.maps = dict(self.known), dict(self.maps)
    return search

  def start(self) -> None:
    """Looks at what constants alone tell: a product with a mask has zeros."""
    for k, equation in enumerate(self.program.equations):
      variables = [isinstance(v, Variable) for v in equation.operands]
      if not all(variables) or not variables:
        self._enqueue(k)

  def get(self, operand: Operand) -> Known:
    """What is known of an operand."""
    if isinstance(operand, Variable):
      return self.known.get(operand, NOTHING)
    return constant(operand)

  def value(self, operand: Operand) -> Any:
    """The value of an operand that must be known by now."""
    known = self.get(operand)
    if known.value is None or not known.complete:
      raise NotInvertible(self.explain())
    return known.value

  def learn(self, variable: Variable, found: Known) -> None:
    """Adds knowledge, and looks again at the equations that it touches."""
    merged = merge(self.known.get(variable), found)
    if merged is not None:
      self.known[variable] = merged
      for k in self.near.get(variable, ()):
        self._enqueue(k)

  def _enqueue(self, k: int) -> None:
    if k not in self.waiting:
      self.waiting.add(k)
      name = self.program.equations[k].name
      (self.costly if name in LOOPS else self.cheap).append(k)

  def run(self) -> None:
    """Until everything that is asked for is known, or nothing new is."""
    while not self._done():
      if not (self.step() or solve_segment(self) or solve_affine(self)):
        return

  def step(self) -> bool:
    """Looks at one equation, if any waits."""
    queue = self.cheap or self.costly
    if not queue:
      return False
    self._visit(queue.popleft())
    return True

  def _done(self) -> bool:
    ends = (*self.program.inputs, *self.program.outputs)
    return all(self.get(v).complete for v in ends)

  def _visit(self, k: int) -> None:
    self.waiting.discard(k)
    self.reasons.pop(k, None)
    equation = self.program.equations[k]
    operands = [self.get(v) for v in equation.operands]
    outputs = [self.get(v) for v in equation.outputs]
    try:
      if all(operand.complete for operand in operands):
        if not all(output.complete for output in outputs):
          self._evaluate(equation, operands)
      elif movement.moves(equation):
        self._move(k, equation, operands, outputs)
      elif equation.name in OPPOSITE:
        for variable, found in updated(equation, operands, outputs[0]).items():
          self.learn(variable, found)
      elif rules.is_elementwise(equation.name):
        self._forward_part(equation, operands)
        self._backward_part(equation, operands, outputs[0])
      elif any(output.value is not None for output in outputs):
        self._backward(equation, operands, outputs)
    except NotInvertible as error:
      self.reasons[k] = located(str(error), equation)

  def _evaluate(self, equation: Equation, operands: list[Known]) -> None:
    """The outputs of known operands; constants are folded."""
    values = [operand.value for operand in operands]
    if all(concrete(operand) is not None for operand in operands):
      with jax.ensure_compile_time_eval():
        results = equation.apply(values)
    else:
      results = equation.apply(values)
    fixed = all(operand.constant for operand in operands)
    for variable, value in zip(equation.outputs, results, strict=True):
      self.learn(variable, Known(value, None, fixed))

  def _forward_part(self, equation: Equation, operands: list[Known]) -> None:
    """The elements of an elementwise output whose operands' are known."""
    output = equation.outputs[0]
    mask = np.ones(output.shape, bool)
    for operand in operands:
      mask &= mask_of(operand, output.shape)
    if equation.name == "mul":
      mask |= _zeros(operands, output.shape)
    if mask.any():
      values = [
        blanks(v) if known.value is None else known.value
        for v, known in zip(equation.operands, operands, strict=True)
      ]
      value = fill(equation.apply(values)[0], mask)
      self.learn(output, Known(value, None if mask.all() else mask))

  def _backward_part(
    self, equation: Equation, operands: list[Known], output: Known
  ) -> None:
    """The elements of the one operand that an elementwise output gives."""
    if output.value is None:
      return
    unknown = [k for k, operand in enumerate(operands) if not operand.complete]
    for k in unknown:
      variable = equation.operands[k]
      shape = equation.outputs[0].shape
      mask = mask_of(output, shape) & ~mask_of(operands[k], shape)
      for j, other in enumerate(operands):
        mask = mask & (mask_of(other, shape) | (j == k))
      if equation.name in ("mul", "div") and len(unknown) == 1:
        mask = mask & ~_zeros(operands, shape)
      if not mask.any():
        continue
      if variable.shape != shape:
        raise NotInvertible(f"`{equation.name}` broadcasts an unknown scalar")
      others = [fill(other.value, mask) for other in operands]
      y = fill(output.value, mask)
      value = rules.elementwise_inverse(equation, k, y, others)
      self.learn(variable, Known(value, None if mask.all() else mask))
    self._complain(equation, unknown)

  def _complain(self, equation: Equation, unknown: list[int]) -> None:
    """Notes why operands are left unknown, unless they only wait for others."""
    left = [k for k in unknown if not self.get(equation.operands[k]).complete]
    if len(left) > 1:
      raise NotInvertible(
        f"`{equation.name}` has two operands that are both unknown"
      )
    if left and any(rules.vanishing(self.get(v)) for v in equation.operands):
      raise NotInvertible(f"`{equation.name}` multiplies by a constant 0")

  def _move(
    self,
    k: int,
    equation: Equation,
    operands: list[Known],
    outputs: list[Known],
  ) -> None:
    """Elements that are known before and after they are moved."""
    whole = movement.restored(equation, outputs)
    if whole is not None:
      self.learn(equation.operands[0], whole)
      return
    if k not in self.maps:
      self.maps[k] = movement.sources(equation, operands)
    maps = self.maps[k]
    if maps is None:
      del self.maps[k]
      raise NotInvertible(f"`{equation.name}` has an index that is no constant")
    found = movement.backward(operands, equation, maps, outputs)
    for variable, known in found.items():
      self.learn(variable, known)
    for variable, known in movement.forward(equation, maps, operands).items():
      self.learn(variable, known)

  def _backward(
    self, equation: Equation, operands: list[Known], outputs: list[Known]
  ) -> None:
    """Whole operands, by a rule of the primitive."""
    given = [a.value if a.complete else None for a in operands]
    images = [a.value if a.complete else None for a in outputs]
    name = equation.name
    if name in LOOPS:
      given, images = LOOPS[name](equation, given, images, solve)
    elif images[0] is None:
      return
    elif name == "dot_general":
      k = 0 if given[0] is None else 1
      given[k] = rules.solve_linear(equation, k, given[1 - k], images[0])
    elif name == "cumsum":
      given[0] = rules.differences(equation, images[0])
    else:
      reason = rules.REASONS.get(name, "has no rule for an inverse")
      raise NotInvertible(f"`{name}` {reason}")
    ends = (*equation.operands, *equation.outputs)
    for variable, value in zip(ends, (*given, *images), strict=True):
      if isinstance(variable, Variable) and value is not None:
        self.learn(variable, Known(value))

  def explain(self) -> str:
    """Why there are unknowns left."""
    if self.reasons:
      reasons = list(dict.fromkeys(self.reasons.values()))
      return "; ".join(reasons[:3])
    unused = [v for v in self.program.inputs if v not in self.near]
    if unused:
      return f"no output depends on an input of shape {unused[0].shape}"
    return "the outputs do not determine all of the inputs"


def _zeros(operands: list[Known], shape: tuple[int, ...]) -> np.ndarray:
  """Where a factor is a constant 0."""
  zeros = np.zeros(shape, bool)
  for operand in operands:
    value = concrete(operand)
    if value is not None:
      zeros |= value == 0
  return zeros
