"""Dataflow analysis: a program is run on facts instead of numbers.

Products with matrices and convolutions take one round, everything else none;
an element is ready when the last element that it is made of is.  A loop is run
step by step, so that what its steps wait for is known element by element: the
rows of a grid that are computed one after the other by nested loops could be
computed along its diagonals, and are ready as if they were.

With rounds of no length and a lane for each element of an input, in which that
element alone is late, the same program tells what depends on what.
"""

from collections import Counter
from collections.abc import Sequence
from typing import Any

import numpy as np
from jax.extend.core import ClosedJaxpr

from revmom.analysis.costs import compact, facts, products, transfer
from revmom.analysis.costs.facts import DATA, Fact
from revmom.analysis.costs.iteration import Iterated, Step, iterate
from revmom.analysis.costs.products import ZERO
from revmom.analysis.costs.trip_counts import TripCounts
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
  inline,
)
from revmom.jacobian.program.primitives import (
  CUMULATIVE,
  ELEMENTWISE,
  IDENTITIES,
  INDEXING,
  SCATTERS,
)

# Further names than those of `revmom.jacobian.program.primitives`.
_ELEMENTWISE = ELEMENTWISE | frozenset(
  "bitcast_convert_type clz complex conj imag population_count real "
  "shift_left shift_right_arithmetic shift_right_logical".split()
)
_REDUCTIONS = frozenset(
  "argmax argmin reduce_and reduce_max reduce_min reduce_or reduce_prod "
  "reduce_sum reduce_xor".split()
)
_WINDOWS = frozenset(
  ["reduce_window_max", "reduce_window_min", "reduce_window_sum"]
)


class Dataflow:
  """Runs programs on facts.

  Attributes:
    step: int32 [lanes], what a product adds to the times of its factors.
    connections: the uses of parameters so far.
    inexact: names of primitives of which every output was taken to wait for
      every operand, for want of a rule.
  """

  def __init__(self, step: np.ndarray, trip_counts: TripCounts):
    self.step = step
    self.connections = 0
    self.inexact: Counter[str] = Counter()
    self._trip_counts = trip_counts
    self._programs: dict[int, tuple[ClosedJaxpr, Program]] = {}
    self._constants: dict[int, tuple[Any, Fact]] = {}
    self._uses: dict[int, tuple[Program, list[list[Variable]]]] = {}

  def run(self, program: Program, inputs: Sequence[Fact]) -> list[Fact]:
    """The facts of a program's outputs."""
    known = dict(zip(program.inputs, inputs, strict=True))
    for equation, done in zip(
      program.equations, self._last_uses(program), strict=True
    ):
      operands = [self._read(known, v) for v in equation.operands]
      outputs = self._equation(equation, operands)
      known.update(zip(equation.outputs, outputs, strict=True))
      for variable in done:
        del known[variable]
    return [self._read(known, operand) for operand in program.outputs]

  def _last_uses(self, program: Program) -> list[list[Variable]]:
    """What no equation reads any more after each one."""
    if id(program) not in self._uses:
      self._uses[id(program)] = program, last_uses(program)
    return self._uses[id(program)][1]

  def _read(self, known: dict[Variable, Fact], operand: Operand) -> Fact:
    if isinstance(operand, Variable):
      return known[operand]
    # The operand is kept with its fact, so that no other takes its id.
    if id(operand) not in self._constants:
      self._constants[id(operand)] = operand, facts.of_constant(operand)
    return self._constants[id(operand)][1]

  def _program(self, body: ClosedJaxpr) -> Program:
    if id(body) not in self._programs:
      self._programs[id(body)] = body, inline(body)
    return self._programs[id(body)][1]

  def _equation(self, equation: Equation, operands: list[Fact]) -> list[Fact]:
    if equation.name == "scan":
      return self._scan(equation, operands)
    if equation.name == "while":
      return self._while(equation, operands)
    if equation.name == "cond":
      return self._cond(equation, operands)
    values = facts.values_of(equation, operands)
    if all(value is not None for value in values):
      return [facts.of_value(np.asarray(value)) for value in values]
    self._connect(equation, operands)
    made_of = 0
    for fact in operands:
      made_of |= fact.made_of
    arrays = self._ready(equation, operands)
    return [Fact(array, made_of) for array in arrays]

  def _ready(
    self, equation: Equation, operands: list[Fact]
  ) -> list[np.ndarray]:
    """When the outputs are ready."""
    name, arrays = equation.name, [fact.ready for fact in operands]
    if name in compact.MOVES:
      return compact.MOVES[name](arrays, equation)
    if name == "select_n":
      return [transfer.select(operands)]
    if name in _ELEMENTWISE:
      return [transfer.elementwise(name, arrays)]
    if name in IDENTITIES:
      return arrays
    found = self._contraction(equation, operands)
    if found is None:
      found = _indexed(equation, operands)
    if found is None:
      if not name.startswith("random_"):  # which read nothing but a key
        self.inexact[name] += 1
      found = [
        np.maximum(products.latest(arrays, len(v.shape)), 0)
        for v in equation.outputs
      ]
    return found

  def _contraction(
    self, equation: Equation, operands: list[Fact]
  ) -> list[np.ndarray] | None:
    """When products and other sums are ready; None of anything else."""
    name = equation.name
    if name in _REDUCTIONS:
      return [transfer.reduction(equation, operands[0].ready)]
    arrays = [transfer.unmasked(fact.ready) for fact in operands]
    if name in ("dot_general", "conv_general_dilated"):
      of = products.dot if name == "dot_general" else products.convolution
      product = of(equation, *arrays)
      if not product.exact:
        self.inexact[name] += 1
      if any(fact.is_weight for fact in operands):
        self.connections += product.terms
      ready = np.where(product.ready == ZERO, ZERO, product.ready + self.step)
      return [ready.astype(np.int32)]
    if name in CUMULATIVE:
      return [transfer.accumulate(equation, arrays[0])]
    if name in _WINDOWS:
      return [transfer.window(equation, arrays[0])]
    if name == "sort":
      axis = equation.params["dimension"]
      late = transfer.elementwise("max", arrays)
      return [late.max(axis, keepdims=True)] * len(arrays)
    return None

  def _connect(self, equation: Equation, operands: list[Fact]) -> None:
    """Counts the uses of parameters as factors of single elements."""
    made_of = [fact.made_of for fact in operands]
    if equation.name == "mul" and facts.PARAMETERS in made_of:
      if any(of & DATA for of in made_of):
        ready = transfer.elementwise("mul", [fact.ready for fact in operands])
        product = Fact(ready, DATA)
        self.connections += facts.nonzeros(product, equation.outputs[0].shape)

  def _scan(self, equation: Equation, operands: list[Fact]) -> list[Fact]:
    form = scan_form(equation)
    first = form.constants
    start = first + form.carry
    results = iterate(
      self._step(form.body, operands[:first]),
      operands[first:start],
      operands[start:],
      form.length,
      equation.outputs[start - first :],
      form.reverse,
    )
    return self._after(equation, results)

  def _while(self, equation: Equation, operands: list[Fact]) -> list[Fact]:
    form = while_form(equation)
    first = form.condition_constants
    start = first + form.body_constants
    values = map(fact_value, operands, equation.operands)
    length = self._trip_counts.of(equation, list(values))
    step = self._step(form.body, operands[first:start])
    results = iterate(step, operands[start:], [], length, ())
    return self._after(equation, results)

  def _step(self, closed: ClosedJaxpr, constants: list[Fact]) -> Step:
    body = self._program(closed)

    def step(carry: list[Fact], row: list[Fact]) -> tuple[list[Fact], int]:
      return self._counted(body, [*constants, *carry, *row])

    return step

  def _counted(
    self, program: Program, inputs: Sequence[Fact]
  ) -> tuple[list[Fact], int]:
    """Runs a program; its connections are not added yet."""
    before = self.connections
    results = self.run(program, inputs)
    connections, self.connections = self.connections - before, before
    return results, connections

  def _after(self, equation: Equation, results: Iterated) -> list[Fact]:
    self.connections += results.connections
    if results.forgetful:
      self.inexact[equation.name] += 1
    return [*results.carry, *results.outputs]

  def _cond(self, equation: Equation, operands: list[Fact]) -> list[Fact]:
    index, *rest = operands
    branches = [self._program(b) for b in branches_of(equation)]
    if index.value is not None:
      number = min(max(int(index.value), 0), len(branches) - 1)
      return self.run(branches[number], rest)
    outcomes = [self._counted(branch, rest) for branch in branches]
    self.connections += max(connections for _, connections in outcomes)
    results = [results for results, _ in outcomes]
    return [_either(index, of) for of in zip(*results, strict=True)]


def last_uses(program: Program) -> list[list[Variable]]:
  """For each equation, the variables that nothing reads after it."""
  later = {v for v in program.outputs if isinstance(v, Variable)}
  found = []
  for equation in reversed(program.equations):
    own = dict.fromkeys((*equation.variables, *equation.outputs))
    done = [v for v in own if v not in later]
    later.update(done)
    found.append(done)
  return found[::-1]


def fact_value(fact: Fact, operand: Operand) -> np.ndarray | None:
  """The value in full, if it is known."""
  if fact.value is None:
    return None
  return np.broadcast_to(fact.value, np.shape(operand))


def _indexed(
  equation: Equation, operands: list[Fact]
) -> list[np.ndarray] | None:
  """When what is moved to or from places that operands tell is ready."""
  name = equation.name
  if name == "iota":
    return [np.zeros((1,) * (len(equation.outputs[0].shape) + 1), np.int32)]
  if name == "dynamic_slice":
    return [transfer.slice_from(equation, operands)]
  if name == "dynamic_update_slice":
    return [transfer.slice_into(equation, operands)]
  found = transfer.move(equation, operands) if name in INDEXING else None
  if found is None and name == "gather":
    return [transfer.look_up(equation, operands)]
  if found is None and name in SCATTERS:
    ready = transfer.scatter(equation, operands)
    return None if ready is None else [ready]
  return found


def _either(index: Fact, outcomes: tuple[Fact, ...]) -> Fact:
  """The fact of a value that is one of several."""
  made_of = index.made_of
  for fact in outcomes:
    made_of |= fact.made_of
  ready = transfer.elementwise("max", [fact.ready for fact in outcomes])
  late = products.latest([index.ready], ready.ndim - 1)
  return Fact(np.where(ready < 0, ready, np.maximum(ready, late)), made_of)
