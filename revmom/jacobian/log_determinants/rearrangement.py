"""What comes where when a program moves elements around.

Elements are numbered, and the numbers are moved in their place; -1 is none.  A
part that only moves its columns is a permutation, whose determinant is its
sign: no derivative is taken.
"""

from collections.abc import Mapping
from typing import NamedTuple

import numpy as np

from revmom.jacobian.log_determinants.blocks import Part
from revmom.jacobian.log_determinants.cuts import permutation_sign
from revmom.jacobian.log_determinants.determinant import Determinant, exact
from revmom.jacobian.program.constants import Constants, apply_now
from revmom.jacobian.program.equations import Environment, Equation, Variable
from revmom.jacobian.program.primitives import IDENTITIES, IN_ORDER, INDEXING


def rearranged(
  equation: Equation, numbers: Mapping[int, np.ndarray], constants: Constants
) -> list[np.ndarray] | None:
  """The numbers of the elements of an equation's outputs.

  Args:
    equation: of a primitive in `INDEXING`.
    numbers: those of the elements of operands, int32; other operands have none.
    constants: what is known of the operands that tell where elements go.

  Returns:
    None where that is not known.
  """
  first, last = INDEXING[equation.name]
  knobs = range(len(equation.operands))[first:last] if first is not None else ()
  values: list[np.ndarray] = []
  for k, item in enumerate(equation.operands):
    value = numbers.get(k)
    if k in knobs:
      value = constants.value(item)
      if value is None:
        return None
    nothing = np.full(np.shape(item), -1, np.int32)
    values.append(nothing if value is None else value)
  # Out of bounds, a gather fills in what is no element.
  fill = {"fill_value": -1} if "fill_value" in equation.params else {}
  moved = equation._replace(params={**equation.params, **fill})
  return [np.asarray(ids) for ids in apply_now(moved, values)]


class Permutation(NamedTuple):
  """Rows that are the columns in another order."""

  part: Part
  sign: int

  def summary(self) -> tuple[str, int, int]:
    return "permutation", self.part.size, 1

  def evaluate(self, environment: Environment) -> Determinant:
    return exact(0.0, self.sign, self.part.dtype)


def permutation_block(part: Part, constants: Constants) -> Permutation | None:
  """The block of a part that only moves elements; None of another."""
  if not all(
    e.name in INDEXING or e.name in IN_ORDER or e.name in IDENTITIES
    for e in part.equations
  ):
    return None
  found: dict[Variable, np.ndarray] = {}
  start = 0
  for column in part.columns:
    own = np.arange(start, start + column.size, dtype=np.int32)
    found[column] = own.reshape(column.shape)
    start += column.size
  for equation in part.equations:
    numbers = {
      k: found[operand]
      for k, operand in enumerate(equation.operands)
      if isinstance(operand, Variable) and operand in found
    }
    if equation.name in INDEXING:
      moved = rearranged(equation, numbers, constants)
      if moved is None:
        return None
      found.update(zip(equation.outputs, moved, strict=True))
    else:  # output k is operand k
      for k, operand in numbers.items():
        found[equation.outputs[k]] = operand.reshape(equation.outputs[k].shape)
  ids = np.concatenate([found[row].ravel() for row in part.rows])
  if np.any(np.bincount(ids[ids >= 0], minlength=part.size) != 1):
    return None
  return Permutation(part, permutation_sign(ids))
