"""The plan for a determinant: cuts, then arrays, then elements.

Everything is decided from the program, while tracing, and holds at every
point: segments between cuts, whole arrays that vary element by element, loops
and linear maps by their own rules, and only where arrays mix the elements.
"""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
from scipy.sparse import csr_array, vstack

from revmom.jacobian.log_determinants.arrays import partition
from revmom.jacobian.log_determinants.blocks import (
  Block,
  Diagonal,
  Part,
  Plan,
  Singular,
  Sparse,
)
from revmom.jacobian.log_determinants.components import (
  decompose,
  find_components,
  whole,
)
from revmom.jacobian.log_determinants.cuts import cut, size
from revmom.jacobian.log_determinants.declared import declared_block
from revmom.jacobian.log_determinants.determinant import wide
from revmom.jacobian.log_determinants.linear import (
  UnitTriangular,
  matrix_product,
  triangular_solve,
)
from revmom.jacobian.log_determinants.loops import (
  cond_block,
  scan_block,
  while_block,
)
from revmom.jacobian.log_determinants.permutation import permutation_block
from revmom.jacobian.log_determinants.sparsity import MOST_ENTRIES, patterns
from revmom.jacobian.program.constants import Constants
from revmom.jacobian.program.equations import Equation, Operand, Variable
from revmom.jacobian.program.primitives import is_call, is_known


class Limits(NamedTuple):
  """What to do with blocks that structure does not make small."""

  dense: int  # the largest dense block
  opaque: bool  # whether equations without a pattern are taken to be dense
  estimate: Callable[[Part], Block] | None  # of larger blocks


def plan(
  equations: Sequence[Equation],
  columns: Sequence[Variable],
  rows: Sequence[Operand],
  constants: Constants,
  limits: Limits,
) -> Plan:
  """Plans the determinant of d rows / d columns, a square matrix.

  Args:
    equations: of the program, in an order in which they can be evaluated.
    columns: inputs of the program.
    rows: outputs of the program, with as many elements.
    constants: what is known of values that don't vary.
    limits: what to do with large blocks.

  Raises:
    ValueError: a block larger than `limits.dense`, or without a pattern, that
      may not be estimated, or taken to be dense.
  """
  dtype = wide(v.dtype for v in columns)
  chain = cut(equations, columns, rows)
  if chain is None:
    part = Part((), tuple(columns), ())
    return Plan(((0, Singular(part)),), 0, dtype)
  blocks: list[tuple[int, Block]] = []
  sign = chain.sign
  for number, segment in enumerate(chain.segments):
    division = partition(segment)
    if division is None:
      part = Part((), segment.columns, ())
      blocks.append((number, Singular(part)))
      continue
    sign *= division.sign
    for part, elementwise in division.parts:
      block = _choose(part, elementwise, constants, limits)
      blocks.append((number, block))
  return Plan(tuple(blocks), sign, dtype)


def _choose(
  part: Part, elementwise: bool, constants: Constants, limits: Limits
) -> Block:
  """The rule for a part."""
  block: Block | None = None
  if len(part.equations) == 1:
    if is_call(part.equations[0]):
      block = declared_block(part)
    elif not elementwise:
      block = _whole_array(part, constants, limits)
  if block is not None:
    return block
  if elementwise:
    return Diagonal(part)
  return permutation_block(part, constants) or _elements(
    part, constants, limits
  )


def _whole_array(
  part: Part, constants: Constants, limits: Limits
) -> Block | None:
  """The rule for a part that is a single equation, where there is one."""
  name = part.equations[0].name

  def planner(
    equations: Sequence[Equation],
    columns: Sequence[Variable],
    rows: Sequence[Operand],
    constants: Constants,
  ) -> Plan:
    # Steps share a key: their estimates would not be independent.
    inner = limits._replace(estimate=None)
    return plan(equations, columns, rows, constants, inner)

  if name == "scan":
    return scan_block(part, constants, planner)
  if name == "while":
    return while_block(part, constants, planner)
  if name == "cond":
    return cond_block(part, constants, planner)
  if len(part.columns) > 1 or len(part.rows) > 1:
    return None
  if name == "dot_general":
    return matrix_product(part)
  if name == "triangular_solve":
    return triangular_solve(part)
  if name == "cumsum":
    return UnitTriangular(part)
  return None


def _elements(part: Part, constants: Constants, limits: Limits) -> Block:
  """The diagonal blocks of a part, element by element."""
  pattern = _pattern(part, constants)
  opaque = sorted({e.name for e in part.equations if not is_known(e)})
  if pattern is None:
    if opaque and not limits.opaque:
      raise ValueError(
        f"log_det: {', '.join(map(repr, opaque))} mixes {part.size} floats in "
        "a way of which nothing is known; use method='auto' or 'dense'."
      )
    return _dense(part, "dense" if opaque else "full", limits)
  components = find_components(pattern)
  if components is None:
    return Singular(part)
  if components.largest > limits.dense:
    return _dense(part, "full", limits)
  return Sparse(part, decompose(pattern, components), "sparse")


def _pattern(part: Part, constants: Constants) -> csr_array | None:
  """The pattern of the part; None where it is full."""
  found = patterns(part.equations, part.columns, constants)
  full = size(row for row in part.rows if found[row] is None)
  if full == part.size or full * part.size > MOST_ENTRIES:
    return None
  rows = [
    csr_array(np.ones((row.size, part.size), bool))
    if found[row] is None
    else found[row]
    for row in part.rows
  ]
  return csr_array(vstack(rows))


def _dense(part: Part, kind: str, limits: Limits) -> Block:
  """The block of a part without structure, or without known structure."""
  if part.size <= limits.dense:
    return Sparse(part, whole(part.size), kind)
  if limits.estimate is not None:
    return limits.estimate(part)
  names = sorted({equation.name for equation in part.equations})
  raise ValueError(
    f"log_det: a block of {part.size} floats, made by {', '.join(names)}, has "
    f"no structure that could be used; the limit is dense_limit={limits.dense}."
    " Pass key= to estimate it (but not inside of a loop or a branch), or a "
    "larger dense_limit=."
  )
