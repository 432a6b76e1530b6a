"""What comes where when an equation moves elements around.

Elements are numbered, and the numbers are moved in their place.
"""

from collections.abc import Mapping, Sequence

import numpy as np

from revmom.jacobian.program.constants import Constants, apply_now
from revmom.jacobian.program.equations import Equation
from revmom.jacobian.program.primitives import IDENTITIES, IN_ORDER, INDEXING

# Every element of an output is an element of an operand, or a constant.
REARRANGING = IDENTITIES | IN_ORDER | frozenset(INDEXING)


def moved_operands(equation: Equation) -> list[int]:
  """The operands whose elements are moved; the others tell where to."""
  knobs = _knobs(equation)
  return [k for k in range(len(equation.operands)) if k not in knobs]


def _knobs(equation: Equation) -> Sequence[int]:
  first, last = INDEXING.get(equation.name, (None, None))
  return () if first is None else range(len(equation.operands))[first:last]


def rearranged(
  equation: Equation, numbers: Mapping[int, np.ndarray], constants: Constants
) -> list[np.ndarray] | None:
  """The numbers of the elements of an equation's outputs.

  Args:
    equation: of a primitive in `REARRANGING`.
    numbers: the numbers of the elements of some operands, int32.  The elements
      of all other operands have the number -1.
    constants: what is known of the operands that tell where elements go.

  Returns:
    An array of numbers for each output; None where such an operand is not
    known while the program is traced.
  """
  operands = [np.shape(item) for item in equation.operands]
  values = [
    numbers.get(k, np.full(shape, -1, np.int32))
    for k, shape in enumerate(operands)
  ]
  if equation.name not in INDEXING:  # output k is operand k
    outputs = zip(values, equation.outputs, strict=True)
    return [value.reshape(variable.shape) for value, variable in outputs]
  for k in _knobs(equation):
    known = constants.value(equation.operands[k])
    if known is None:
      return None
    values[k] = known
  # Out of bounds, a gather fills in what is no element.
  fill = {"fill_value": -1} if "fill_value" in equation.params else {}
  moved = equation._replace(params={**equation.params, **fill})
  return [np.asarray(ids) for ids in apply_now(moved, values)]
