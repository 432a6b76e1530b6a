"""Which arrays of a segment vary with which, before looking into any."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from scipy.sparse import csr_array
from scipy.sparse.csgraph import (
  connected_components,
  maximum_bipartite_matching,
)

from revmom.jacobian.log_determinants.blocks import Part
from revmom.jacobian.log_determinants.cuts import (
  Segment,
  arrangement_sign,
  between,
  carries_derivative,
  size,
)
from revmom.jacobian.program.dependence import Passes, passes_always
from revmom.jacobian.program.equations import (
  Equation,
  Variable,
)
from revmom.jacobian.program.primitives import (
  ELEMENTWISE,
  IDENTITIES,
  IN_ORDER,
  inside,
  is_call,
)


class Partition(NamedTuple):
  """Parts whose determinants multiply to a segment's; None if singular."""

  parts: tuple[tuple[Part, bool], ...]  # with whether a part is elementwise
  sign: int


# The columns that a variable varies with, and whether it does so by element.
Relation = dict[Variable, bool]


def relations(
  equations: Sequence[Equation],
  columns: Sequence[Variable],
  passes: Passes = carries_derivative,
) -> dict[Variable, Relation]:
  """How each variable varies with the columns."""
  found: dict[Variable, Relation] = {v: {v: True} for v in columns}
  for equation in equations:
    for k, variable in enumerate(equation.outputs):
      if not passes(equation, k):
        continue
      relation: Relation = {}
      for j, operand in enumerate(equation.operands):
        if isinstance(operand, Variable) and operand in found:
          aligned = is_aligned(equation, k, j)
          for column, elementwise in found[operand].items():
            both = elementwise and aligned
            relation[column] = relation.get(column, True) and both
      if relation:
        found[variable] = relation
  return found


def is_aligned(equation: Equation, output: int, operand: int) -> bool:
  """Whether element i of the output varies with element i of the operand."""
  source, target = equation.operands[operand], equation.outputs[output]
  if equation.name in ELEMENTWISE:
    return source.shape == target.shape
  if is_call(equation):
    program = inside(equation)
    column = program.inputs[operand]
    found = relations(program.equations, [column], passes_always)
    return found.get(program.outputs[output], {}).get(column, True)
  if equation.name in IDENTITIES:
    return output == operand
  if equation.name == "broadcast_in_dim":
    return operand == 0 and source.size == target.size
  if equation.name == "transpose":
    kept = [k for k in equation.params["permutation"] if source.shape[k] > 1]
    return kept == sorted(kept)
  return equation.name in IN_ORDER


def partition(segment: Segment) -> Partition | None:
  """The finest block triangular form of whole arrays."""
  found = relations(segment.equations, segment.columns)
  related = [found.get(row, {}) for row in segment.rows]
  meets = np.array(
    [[column in row for column in segment.columns] for row in related]
  )
  parts = []
  groups = _groups(meets, segment)
  for rows, columns in groups:
    part = Part(between(segment.equations, columns, rows), columns, rows)
    if size(rows) != size(columns):
      return None
    elementwise = {v.size for v in (*rows, *columns)} == {rows[0].size} and all(
      found[row].get(column, True) for row in rows for column in columns
    )
    parts.append((part, elementwise))
  in_order = arrangement_sign(segment.rows, [v for r, _ in groups for v in r])
  in_order *= arrangement_sign(
    segment.columns, [v for _, c in groups for v in c]
  )
  return Partition(tuple(parts), in_order)


def _groups(
  meets: np.ndarray, segment: Segment
) -> list[tuple[tuple[Variable, ...], tuple[Variable, ...]]]:
  """Rows and columns of the diagonal blocks."""
  row_label, column_label = _matched(meets, segment) or _connected(meets)
  return [
    (
      tuple(v for v, k in zip(segment.rows, row_label, strict=True) if k == g),
      tuple(
        v for v, k in zip(segment.columns, column_label, strict=True) if k == g
      ),
    )
    for g in range(max(*row_label, *column_label) + 1)
  ]


Labels = tuple[list[int], list[int]]


def _matched(meets: np.ndarray, segment: Segment) -> Labels | None:
  """Strongly connected components, where equal sizes can be matched."""
  if len(segment.rows) != len(segment.columns):
    return None
  rows = np.array([v.size for v in segment.rows])
  columns = np.array([v.size for v in segment.columns])
  same = meets & (rows[:, None] == columns)
  partner = maximum_bipartite_matching(csr_array(same), perm_type="column")
  if (partner < 0).any():
    return None
  graph = csr_array(meets[:, partner])
  _, label = connected_components(graph, connection="strong")
  column_label = np.empty_like(label)
  column_label[partner] = label
  return label.tolist(), column_label.tolist()


def _connected(meets: np.ndarray) -> Labels:
  """Connected components of rows and columns."""
  rows, columns = meets.shape
  graph = np.zeros((rows + columns, rows + columns), bool)
  graph[:rows, rows:] = meets
  label = connected_components(csr_array(graph), directed=False)[1].tolist()
  return label[:rows], label[rows:]
