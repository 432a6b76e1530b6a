"""Which elements of an output may vary with which elements of an input.

A pattern is a sparse Boolean matrix [outputs, inputs], or None where every
output may vary with every input.  Patterns hold at every point: they depend on
the program and its constants alone.
"""

import math
from collections.abc import Callable, Container, Sequence
from typing import TypeAlias

import numpy as np
from scipy.sparse import csr_array

from revmom.jacobian.log_determinants.cuts import carries_derivative, size
from revmom.jacobian.program.constants import Constants
from revmom.jacobian.program.contractions import (
  convolution,
  dot_general,
  scatter_places,
)
from revmom.jacobian.program.dependence import Passes, passes_always
from revmom.jacobian.program.equations import (
  Equation,
  Variable,
)
from revmom.jacobian.program.primitives import (
  CUMULATIVE,
  ELEMENTWISE,
  REDUCTIONS,
  SCATTERS,
  inside,
  is_call,
)
from revmom.jacobian.program.rearrangement import REARRANGING, rearranged

Pattern: TypeAlias = csr_array | None
Shape = tuple[int, ...]

# A pattern with more entries is taken to be full.
MOST_ENTRIES = 20_000_000


def patterns(
  equations: Sequence[Equation],
  columns: Sequence[Variable],
  constants: Constants,
  passes: Passes = carries_derivative,
) -> dict[Variable, Pattern]:
  """The patterns of what varies with the columns, [size, size of columns].

  Args:
    equations: in an order in which they can be evaluated.
    columns: variables; what varies with none of them has no pattern.
    constants: what is known of what the equations read besides.
    passes: tells of an equation and the number of an output whether that
      output varies.
  """
  total, start = size(columns), 0
  found: dict[Variable, Pattern] = {}
  for column in columns:
    own = np.arange(column.size)
    found[column] = _matrix(own, start + own, column.size, total)
    start += column.size
  for equation in equations:
    for k, variable in enumerate(equation.outputs):
      if not passes(equation, k):
        continue
      parts = [
        _compose(
          local_pattern(equation, k, j, constants, found),
          found[operand],
          variable.size,
          total,
        )
        for j, operand in enumerate(equation.operands)
        if isinstance(operand, Variable) and operand in found
      ]
      if parts:
        found[variable] = _union(parts)
  return found


def _matrix(
  rows: np.ndarray, columns: np.ndarray, outputs: int, inputs: int
) -> csr_array:
  ones = np.ones(len(rows), bool)
  return csr_array((ones, (rows, columns)), shape=(outputs, inputs))


def _simplify(pattern: csr_array) -> Pattern:
  outputs, inputs = pattern.shape
  full = pattern.nnz == outputs * inputs or pattern.nnz > MOST_ENTRIES
  return None if full and inputs > 1 else pattern


def _union(parts: Sequence[Pattern]) -> Pattern:
  """Where any of the patterns has an entry."""
  result = parts[0]
  for part in parts[1:]:
    if result is None or part is None:
      return None
    result = result + part
  return None if result is None else _simplify(result)


def _compose(
  local: Pattern, inner: Pattern, outputs: int, total: int
) -> Pattern:
  """The pattern [outputs, total] of `local` after `inner`."""
  if local is None:
    # Each output may vary with all that any element of the operand does.
    met = np.arange(total) if inner is None else np.unique(inner.indices)
    if len(met) == total or outputs * len(met) > MOST_ENTRIES:
      return None
    rows, columns = (
      np.repeat(np.arange(outputs), len(met)),
      np.tile(met, outputs),
    )
    return _matrix(rows, columns, outputs, total)
  if inner is None:
    filled = np.diff(local.indptr) > 0
    if filled.all() or filled.sum() * total > MOST_ENTRIES:
      return None
    inner = csr_array(np.ones((local.shape[1], total), bool))
  return _simplify(csr_array(local @ inner))


def local_pattern(
  equation: Equation,
  output: int,
  operand: int,
  constants: Constants,
  varying: Container[Variable],
) -> Pattern:
  """The pattern of one equation, of an output and an operand [out, in]."""
  name = equation.name
  inputs = equation.operands[operand].shape
  outputs = equation.outputs[output].shape
  if name in REARRANGING:
    own = np.arange(math.prod(inputs), dtype=np.int32).reshape(inputs)
    moved = rearranged(equation, {operand: own}, constants)
    if moved is not None:
      return _chosen(np.ravel(moved[output]), own.size)
  if name in ELEMENTWISE:
    return _elementwise(equation, operand, constants)
  if is_call(equation):
    return _call(equation, output, operand)
  if name in SCATTERS:
    return _scatter(equation, operand, constants)
  if name in REDUCTIONS:
    return _reduction(inputs, equation.params["axes"])
  if name in CUMULATIVE:
    axis, reverse = equation.params["axis"], equation.params["reverse"]
    return _along(inputs, axis, _later if reverse else _earlier)
  if name == "sort":
    if output != operand:
      return _nothing(outputs, inputs)
    return _along(inputs, equation.params["dimension"], _everywhere)
  return _contraction(equation, operand, constants, varying)


def _nothing(outputs: Shape, inputs: Shape) -> csr_array:
  return csr_array((math.prod(outputs), math.prod(inputs)), dtype=bool)


def _elementwise(
  equation: Equation, operand: int, constants: Constants
) -> Pattern:
  shape = equation.outputs[0].shape
  inputs = equation.operands[operand].shape
  numbers = np.arange(math.prod(inputs)).reshape(inputs)
  met = np.broadcast_to(numbers, shape).ravel()  # axes of size 1 are stretched
  rows = np.arange(len(met))
  if equation.name == "mul":
    support = constants.support(equation.operands[1 - operand])
    if support is not None:
      rows = np.flatnonzero(np.broadcast_to(support, shape))
  return _matrix(rows, met[rows], len(met), numbers.size)


def _chosen(ids: np.ndarray, inputs: int) -> csr_array:
  """The pattern of outputs that are the numbered inputs; -1 is none."""
  rows = np.flatnonzero(ids >= 0)
  return _matrix(rows, ids[rows], len(ids), inputs)


def _scatter(equation: Equation, operand: int, constants: Constants) -> Pattern:
  shape = equation.outputs[0].shape
  if operand == 0:
    own = np.arange(math.prod(shape))
    return _matrix(own, own, len(own), len(own))
  indices = constants.value(equation.operands[1])
  # `scatter_places` counts in float32.
  if indices is None or math.prod(shape) >= 2**24:
    return None
  updates = equation.operands[2].shape
  places = scatter_places(indices, updates, shape, equation.params)
  kept = np.flatnonzero(places >= 0)
  return _matrix(places[kept], kept, math.prod(shape), len(places))


def _reduction(shape: Shape, axes: Sequence[int]) -> csr_array:
  kept = [1 if k in axes else n for k, n in enumerate(shape)]
  outputs = np.arange(math.prod(kept)).reshape(kept)
  rows = np.broadcast_to(outputs, shape).ravel()
  return _matrix(rows, np.arange(rows.size), outputs.size, rows.size)


def _earlier(length: int) -> tuple[np.ndarray, np.ndarray]:
  return np.tril_indices(length)


def _later(length: int) -> tuple[np.ndarray, np.ndarray]:
  return np.triu_indices(length)


def _everywhere(length: int) -> tuple[np.ndarray, np.ndarray]:
  rows, columns = np.indices((length, length))
  return rows.ravel(), columns.ravel()


def _along(
  shape: Shape,
  axis: int,
  meet: Callable[[int], tuple[np.ndarray, np.ndarray]],
) -> Pattern:
  """The pattern of what is the same function of every line along an axis."""
  length, total = shape[axis], math.prod(shape)
  if length * total > MOST_ENTRIES:
    return None
  lines = np.moveaxis(np.arange(total).reshape(shape), axis, -1)
  lines = lines.reshape(-1, length)
  rows, columns = meet(length)
  return _matrix(
    lines[:, rows].ravel(), lines[:, columns].ravel(), total, total
  )


def _contraction(
  equation: Equation,
  operand: int,
  constants: Constants,
  varying: Container[Variable],
) -> Pattern:
  """The pattern of a product with another array; None of anything else."""
  if equation.name not in ("conv_general_dilated", "dot_general"):
    return None
  other = equation.operands[1 - operand]
  varies = isinstance(other, Variable) and other in varying
  support = None if varies else constants.support(other)
  if support is None:
    support = np.ones(np.shape(other), bool)
  find = dot_general if equation.name == "dot_general" else convolution
  entries = find(equation, operand, support, MOST_ENTRIES)
  if entries is None:
    return None
  return _matrix(
    *entries, equation.outputs[0].size, equation.operands[operand].size
  )


def _call(equation: Equation, output: int, operand: int) -> Pattern:
  """The pattern of a call: whatever the output is computed from."""
  program = inside(equation)
  found = patterns(
    program.equations,
    [program.inputs[operand]],
    Constants(program.equations),
    passes_always,
  )
  shapes = equation.outputs[output].shape, equation.operands[operand].shape
  return found.get(program.outputs[output], _nothing(*shapes))
