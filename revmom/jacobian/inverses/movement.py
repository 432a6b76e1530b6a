"""What either side of an equation that moves elements tells of the other."""

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from revmom.jacobian.inverses.knowledge import Known, NotInvertible, blanked
from revmom.jacobian.program.constants import Constants, apply_now
from revmom.jacobian.program.equations import Equation, Variable
from revmom.jacobian.program.rearrangement import moved_operands, rearranged

Learnt = list[tuple[Variable, Known]]
# The update that undoes an update: x.at[i].add(u), subtract, multiply.
UPDATES: dict[str, Callable[[Any], Any]] = {
  "scatter-add": lambda u: -u,
  "scatter-mul": lambda u: jnp.where(u == 0, jnp.nan, 1 / u).astype(u.dtype),
  "scatter-sub": lambda u: -u,
}


class Movement:
  """An equation that only moves elements, with the place of each of them."""

  def __init__(self, equation: Equation, constants: Constants):
    self._equation = equation
    self._numbers: dict[int, np.ndarray] = {}  # of the operands that are moved
    start = 0
    for k in moved_operands(equation):
      shape = np.shape(equation.operands[k])
      own = np.arange(start, start + int(np.prod(shape)), dtype=np.int32)
      self._numbers[k] = own.reshape(shape)
      start += own.size
    places = rearranged(equation, self._numbers, constants)
    if places is None:
      raise _no_constant_index(equation)
    self._places = places

  def learn(
    self, operands: Sequence[Known], outputs: Sequence[Known]
  ) -> Learnt:
    """What the operands tell of the outputs, and these of the operands."""
    learnt = self._forward(operands, outputs)
    for k, own in self._numbers.items():
      variable = self._equation.operands[k]
      if isinstance(variable, Variable) and not operands[k].complete:
        learnt.append((variable, self._backward(variable, own, outputs)))
    return learnt

  def _forward(
    self, operands: Sequence[Known], outputs: Sequence[Known]
  ) -> Learnt:
    """Elements of the outputs; one of the number -1 is a constant."""
    flags = [operands[k].mask.ravel() for k in self._numbers]
    known = np.concatenate([*flags, [True]])
    masks = [known[ids] for ids in self._places]
    fresh = [
      mask & ~output.mask for mask, output in zip(masks, outputs, strict=True)
    ]
    if not any(mask.any() for mask in fresh):
      return []
    values = self._equation.apply([operand.value for operand in operands])
    found = map(Known, values, masks)
    return list(zip(self._equation.outputs, found, strict=True))

  def _backward(
    self, variable: Variable, own: np.ndarray, outputs: Sequence[Known]
  ) -> Known:
    """The elements of an operand, from wherever they went to."""
    flat = jnp.full(variable.size, 0.5).astype(variable.dtype)
    mask = np.zeros(variable.size, bool)
    for ids, output in zip(self._places, outputs, strict=True):
      inside = (ids >= own.flat[0]) & (ids <= own.flat[-1]) & output.mask
      places = np.flatnonzero(inside)
      numbers, first = np.unique(ids.ravel()[places], return_index=True)
      numbers, places = numbers - own.flat[0], places[first]
      values = jnp.ravel(output.value)
      if numbers.size == variable.size:
        return Known(
          _taken(values, places).reshape(variable.shape),
          np.ones(variable.shape, bool),
        )
      if numbers.size:
        flat = flat.at[numbers].set(values[places])
        mask[numbers] = True
    return Known(flat.reshape(variable.shape), mask.reshape(variable.shape))


def _taken(values: jax.Array, places: np.ndarray) -> jax.Array:
  """values[places]; a slice where they follow each other."""
  first = int(places[0])
  if np.array_equal(places, np.arange(first, first + len(places))):
    return values[first : first + len(places)]
  return values[places]


def updated(
  equation: Equation,
  operands: Sequence[Known],
  output: Known,
  constants: Constants,
) -> Learnt:
  """What an array tells of its update, and the update of the array.

  Elements that are not updated are known on both sides, and the others as soon
  as all updates are known.
  """
  base, indices, update = operands
  shape = output.mask.shape
  known = constants.value(equation.operands[1])
  if known is None:
    raise _no_constant_index(equation)
  # What leaves a number as it is, and what does not.
  same = equation.name == "scatter-mul"
  before = np.full(shape, same, output.value.dtype)
  change = np.full(update.mask.shape, not same, output.value.dtype)
  after = np.asarray(apply_now(equation, [before, known, change])[0])
  reachable = (after == before) | update.complete
  undo = UPDATES[equation.name](jnp.asarray(update.value))
  learnt: Learnt = []
  for there, here, change in (
    (equation.outputs[0], base, update.value),
    (equation.operands[0], output, undo),
  ):
    mask = here.mask & reachable
    if isinstance(there, Variable) and mask.any():
      value = equation.apply([here.value, indices.value, change])[0]
      learnt.append((there, Known(blanked(value, mask), mask)))
  return learnt


def _no_constant_index(equation: Equation) -> NotInvertible:
  return NotInvertible(
    f"`{equation.name}` has an index or a condition that is no constant"
  )
