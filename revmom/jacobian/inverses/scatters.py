"""Updates of some elements of an array: x.at[i].add(u), subtract, multiply."""

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from revmom.jacobian.inverses.knowledge import (
  Known,
  NotInvertible,
  blanks,
  concrete,
  fill,
  mask_of,
)
from revmom.jacobian.program.equations import Equation, Variable

# The update that undoes an update; each element may get several.
OPPOSITE: dict[str, Callable[[Any], Any]] = {
  "scatter-add": lambda u: -u,
  "scatter-mul": lambda u: jnp.where(u == 0, jnp.nan, 1 / u).astype(u.dtype),
  "scatter-sub": lambda u: -u,
}


def updated(
  equation: Equation, operands: Sequence[Known], output: Known
) -> dict[Variable, Known]:
  """What either side tells about the other.

  Elements that are not updated are known together; the others, too, once all
  updates are known.
  """
  base, _, update = operands
  touched = _touched(equation, operands)
  reachable = ~touched | update.complete
  learnt: dict[Variable, Known] = {}
  variables = (equation.operands[0], equation.outputs[0])
  for there, here, undo in (
    (variables[1], base, False),
    (variables[0], output, True),
  ):
    mask = mask_of(here, touched.shape) & reachable
    if isinstance(there, Variable) and here.value is not None and mask.any():
      value = fill(_apply(equation, operands, here.value, undo), mask)
      learnt[there] = Known(value, None if mask.all() else mask)
  return learnt


def _touched(equation: Equation, operands: Sequence[Known]) -> np.ndarray:
  """The elements that are updated."""
  indices = concrete(operands[1])
  if indices is None:
    raise NotInvertible(f"`{equation.name}` has an index that is no constant")
  product = equation.name == "scatter-mul"
  base = np.full(equation.outputs[0].shape, 1 if product else 0)
  update = np.full(equation.operands[2].shape, 0 if product else 1)
  dtype = equation.outputs[0].dtype
  with jax.ensure_compile_time_eval():
    values = (jnp.asarray(base, dtype), indices, jnp.asarray(update, dtype))
    return np.asarray(equation.apply(values)[0] != values[0])


def _apply(
  equation: Equation, operands: Sequence[Known], value: Any, undo: bool
) -> Any:
  """The other side, right where it is reachable."""
  update = operands[2].value
  if operands[2].value is None or not operands[2].complete:
    update = blanks(equation.operands[2])
  if undo:
    update = OPPOSITE[equation.name](jnp.asarray(update))
  return equation.apply([value, operands[1].value, update])[0]
