"""What is known, while a program is traced, of values that don't vary.

Which elements of an array meet which others may depend on a constant: on the
indices of a gather, or on the zeros of a mask.
"""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from revmom.jacobian.program.equations import (
  Equation,
  Operand,
  Program,
  Variable,
)
from revmom.jacobian.program.primitives import KEEP_ZEROS

# They move elements about.
MOVES = {
  "broadcast_in_dim",
  "expand_dims",
  "reshape",
  "rev",
  "slice",
  "squeeze",
  "transpose",
}


class Origin(NamedTuple):
  """Where the value of a loop's or a branch's input comes from."""

  constants: "Constants"
  operand: Operand


class Constants:
  """Values, and places of zeros, of what the equations compute."""

  def __init__(
    self,
    equations: Iterable[Equation],
    origins: Mapping[Variable, Origin] | None = None,
  ):
    self._producer = {v: e for e in equations for v in e.outputs}
    self._origins = origins or {}
    self._values: dict[Variable, Any] = {}

  def inside(
    self, program: Program, operands: Sequence[Operand]
  ) -> "Constants":
    """What is known inside of a loop or a branch.

    Args:
      program: of the loop's body, or of the branch.
      operands: what its first inputs are outside; of the others, as of those
        that change from step to step, nothing is known.
    """
    origins = {
      v: Origin(self, operand)
      for v, operand in zip(program.inputs, operands, strict=False)
    }
    return Constants(program.equations, origins)

  def value(self, operand: Operand) -> np.ndarray | None:
    """The value, or None where it depends on an input or is traced."""
    value = self._known(operand)
    is_array = value is not None and not _is_key(value)
    return np.asarray(value) if is_array else None

  def _known(self, operand: Operand) -> Any:
    if not isinstance(operand, Variable):
      return None if isinstance(operand, jax.core.Tracer) else operand
    if operand not in self._values:
      self._values[operand] = None
      self._values.update(self._compute(operand))
    return self._values[operand]

  def _compute(self, variable: Variable) -> dict[Variable, Any]:
    if variable in self._origins:
      origin = self._origins[variable]
      return {variable: origin.constants._known(origin.operand)}
    equation = self._producer.get(variable)
    if equation is None:
      return {}
    values = [self._known(operand) for operand in equation.operands]
    if any(value is None for value in values):
      return {}
    results = apply_now(equation, values)
    return dict(zip(equation.outputs, results, strict=True))

  def support(self, operand: Operand) -> np.ndarray | None:
    """False where the value is known to be zero; None where nothing is known.

    The zeros of a mask are known even where what it masks is traced.
    """
    value = self.value(operand)
    if value is not None:
      return value != 0
    if not isinstance(operand, Variable):
      return None
    if operand in self._origins:
      origin = self._origins[operand]
      return origin.constants.support(origin.operand)
    equation = self._producer.get(operand)
    return None if equation is None else self._support_of(equation)

  def _support_of(self, equation: Equation) -> np.ndarray | None:
    name, operands = equation.name, equation.operands
    shape = equation.outputs[0].shape
    if name == "mul":
      known = [s for v in operands if (s := self.support(v)) is not None]
      if not known:
        return None
      return np.broadcast_to(np.logical_and.reduce(known), shape)
    if name in KEEP_ZEROS and len(operands) == 1:
      return self.support(operands[0])
    if name in MOVES:
      support = self.support(operands[0])
      if support is None:
        return None
      return np.asarray(apply_now(equation, [support])[0])
    if name == "select_n":
      predicate = self.value(operands[0])
      cases = [self.support(v) for v in operands[1:]]
      if predicate is None or all(case is None for case in cases):
        return None
      full = [np.ones(shape, bool) if c is None else c for c in cases]
      return np.asarray(apply_now(equation, [predicate, *full])[0])
    return None


def _is_key(value: Any) -> bool:
  return jnp.issubdtype(jnp.result_type(value), jax.dtypes.extended)


def apply_now(equation: Equation, values: Iterable[Any]) -> list[Any]:
  """The outputs, also while something else is traced."""
  with jax.ensure_compile_time_eval():
    return equation.apply([jnp.asarray(value) for value in values])
