"""What is known of the values in a program before it runs.

A `Fact`, as dataflow analysis calls it, tells of every element of an array when
it is ready, that it is zero, or what it is.  Arrays are held as in `compact`;
times have an axis of lanes behind, each of which is a count of its own.
"""

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from revmom.analysis.costs import compact
from revmom.analysis.costs.products import ZERO
from revmom.jacobian.program.constants import apply_now
from revmom.jacobian.program.equations import Equation

# What a value is made of, apart from constants; they add up.
CONSTANT, PARAMETERS, DATA = 0, 1, 2

# A known element of at most LOWEST is a mask: its exponential is zero, also
# after something has been added.  It is held as MASKED.
LOWEST, MASKED = -1e9, -2

# Values of more elements are computed no further.
MOST_ELEMENTS = 2**22

_ARITHMETIC: dict[str, Any] = {
  "add": np.add,
  "sub": np.subtract,
  "mul": np.multiply,
  "max": np.maximum,
  "min": np.minimum,
  "lt": np.less,
  "le": np.less_equal,
  "gt": np.greater,
  "ge": np.greater_equal,
  "eq": np.equal,
  "ne": np.not_equal,
}


class Fact(NamedTuple):
  """What is known of a value."""

  ready: np.ndarray  # int32 [*shape, lanes]; ZERO, or MASKED, where it is so
  made_of: int
  value: np.ndarray | None = None  # [*shape] of what is made of constants

  @property
  def is_weight(self) -> bool:
    return self.made_of == PARAMETERS


def of_constant(operand: Any) -> Fact:
  """The fact of a literal, or of an array that a function closes over."""
  ndim = np.ndim(operand)
  if isinstance(operand, jax.core.Tracer):
    return Fact(_start(ndim), DATA)
  if _is_key(operand):
    return Fact(_start(ndim), CONSTANT)
  value = compact.compact(np.asarray(operand), ndim)
  return of_value(value)


def of_value(value: np.ndarray) -> Fact:
  """The fact of a known value, which is there from the start."""
  ready = np.where(value == 0, np.int32(ZERO), np.int32(0))
  if jnp.issubdtype(value.dtype, jnp.floating):
    ready = np.where(value <= LOWEST, np.int32(MASKED), ready)
  ready = compact.compact(ready, ready.ndim)[..., None]
  return Fact(ready, CONSTANT, value)


def of_input(ndim: int, made_of: int) -> Fact:
  """The fact of an argument, which is there from the start."""
  return Fact(_start(ndim), made_of)


def _start(ndim: int) -> np.ndarray:
  return np.zeros((1,) * (ndim + 1), np.int32)


def _is_key(value: Any) -> bool:
  return jnp.issubdtype(jnp.result_type(value), jax.dtypes.extended)


def nonzeros(fact: Fact, shape: tuple[int, ...]) -> int:
  """The number of elements that aren't known to be zero."""
  array = fact.ready[..., 0]
  held = [n for n, own in zip(shape, array.shape, strict=True) if own == 1]
  return int((array != ZERO).sum()) * math.prod(held)


# Values.


def values_of(
  equation: Equation, facts: Sequence[Fact]
) -> list[np.ndarray | None]:
  """The values of the outputs, as far as they are known."""
  values = [fact.value for fact in facts if fact.value is not None]
  unknown: list[np.ndarray | None] = [None] * len(equation.outputs)
  if len(values) < len(facts) or equation.name.startswith("random_"):
    return unknown
  if equation.name in compact.MOVES:
    return list(compact.MOVES[equation.name](values, equation))
  if equation.name in _ARITHMETIC:
    with np.errstate(all="ignore"):
      return [_ARITHMETIC[equation.name](*values)]
  shapes = [np.shape(v) for v in (*equation.operands, *equation.outputs)]
  if max(map(math.prod, shapes)) > MOST_ELEMENTS:
    return unknown
  if any(_is_key(v) for v in equation.outputs):
    return unknown
  full = [
    np.broadcast_to(value, np.shape(operand))
    for value, operand in zip(values, equation.operands, strict=True)
  ]
  return [
    compact.compact(np.asarray(result), np.ndim(result))
    for result in apply_now(equation, full)
  ]
