"""What is known of a value: all of it, some of its elements, or nothing."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.extend import source_info_util

from revmom.jacobian.program.equations import Equation, Operand


class NotInvertible(ValueError):
  """A function without an inverse that could be found, and the reason."""


def located(reason: str, equation: Equation) -> str:
  """A reason with the line of the user's function that it is about."""
  if equation.source is None or "(at " in reason:
    return reason
  where = source_info_util.summarize(equation.source)
  return f"{reason} (at {where})" if where else reason


class Known(NamedTuple):
  """The value of a variable, as far as it is known.

  Unknown elements hold `blank`, at which every rule and its derivative are
  finite, so that no NaN leaks out of them through a gradient.
  """

  value: Any
  mask: np.ndarray | None = None  # bool, the value's shape; None: all known
  constant: bool = False  # whether it depends on neither end of the program

  @property
  def complete(self) -> bool:
    return self.mask is None


NOTHING = Known(None, np.zeros((), bool))


def constant(value: Any) -> Known:
  """What an operand that is no variable is known to be."""
  return Known(value, None, True)


def mask_of(known: Known, shape: tuple[int, ...]) -> np.ndarray:
  """Which elements are known, in the shape of the result of an equation."""
  mask = np.True_ if known.mask is None else known.mask
  return np.broadcast_to(mask, shape)


def concrete(known: Known) -> np.ndarray | None:
  """The value of a constant that is no tracer."""
  if not known.constant or isinstance(known.value, jax.core.Tracer):
    return None
  if jnp.issubdtype(jnp.result_type(known.value), jax.dtypes.extended):
    return None  # a random key
  return np.asarray(known.value)


def blank(dtype: Any) -> Any:
  """What unknown elements hold."""
  inexact = jnp.issubdtype(dtype, jnp.inexact)
  return jnp.asarray(0.5 if inexact else 0, dtype)


def fill(value: Any, mask: np.ndarray) -> Any:
  """The value with blanks where the mask is false; scalars stay as they are."""
  if mask.all() or np.shape(value) != mask.shape:
    return value
  return jnp.where(mask, value, blank(jnp.result_type(value)))


def blanks(operand: Operand) -> Any:
  """What stands for a value of which nothing is known."""
  return jnp.full(operand.shape, blank(operand.dtype))


def merge(old: Known | None, new: Known) -> Known | None:
  """Both together, or None if there is nothing new."""
  if old is not None and old.complete:
    return None
  if new.mask is None:
    return new
  if old is None or old.mask is None:
    return new if new.mask.any() else None
  added = new.mask & ~old.mask
  if not added.any():
    return None
  value = jnp.where(added, new.value, old.value)
  mask = old.mask | added
  return Known(value, None if mask.all() else mask)
