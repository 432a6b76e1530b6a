"""Parts that only move elements: their determinant is the sign of the order.

No derivative is taken.
"""

from typing import NamedTuple

import numpy as np

from revmom.jacobian.log_determinants.blocks import Part
from revmom.jacobian.log_determinants.cuts import permutation_sign
from revmom.jacobian.log_determinants.determinant import Determinant, exact
from revmom.jacobian.program.constants import Constants
from revmom.jacobian.program.equations import Environment, Variable
from revmom.jacobian.program.rearrangement import REARRANGING, rearranged


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
  if not all(e.name in REARRANGING for e in part.equations):
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
    moved = rearranged(equation, numbers, constants)
    if moved is None:
      return None
    found.update(zip(equation.outputs, moved, strict=True))
  ids = np.concatenate([found[row].ravel() for row in part.rows])
  if np.any(np.bincount(ids[ids >= 0], minlength=part.size) != 1):
    return None
  return Permutation(part, permutation_sign(ids))
