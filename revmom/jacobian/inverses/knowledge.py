"""What is known of a value: all of its elements, some of them, or none."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.extend import source_info_util

from revmom.jacobian.program.equations import Equation, Variable


class NotInvertible(ValueError):
  """No inverse of a function was found; the message says why."""


def located(reason: str, equation: Equation) -> str:
  """A reason with the line of the user's function that it is about."""
  if equation.source is None or "(at " in reason:
    return reason
  where = source_info_util.summarize(equation.source)
  return f"{reason} (at {where})" if where else reason


class Known(NamedTuple):
  """A value, and which of its elements are known.

  The other elements are blank: they hold a number at which every rule and its
  derivative are finite, so that no NaN leaks out of them through a gradient.
  """

  value: Any
  mask: np.ndarray  # bool, of the value's shape

  @property
  def complete(self) -> bool:
    """Whether all elements are known."""
    return bool(self.mask.all())


def whole(value: Any) -> Known:
  """A value that is known altogether."""
  return Known(value, np.broadcast_to(np.True_, np.shape(value)))


def nothing(variable: Variable) -> Known:
  """A value that is not known at all; random keys have no blank value."""
  mask = np.broadcast_to(np.False_, variable.shape)
  if jnp.issubdtype(variable.dtype, jax.dtypes.extended):
    return Known(None, mask)
  return Known(np.broadcast_to(_blank(variable.dtype), variable.shape), mask)


def blanked(value: Any, mask: np.ndarray) -> Any:
  """The value, blank where the mask is false; scalars stay as they are."""
  if mask.all() or np.shape(value) != mask.shape:
    return value
  return jnp.where(mask, value, _blank(jnp.result_type(value)))


def _blank(dtype: Any) -> Any:
  inexact = jnp.issubdtype(dtype, jnp.inexact)
  return np.asarray(0.5 if inexact else 0, dtype)


def merge(old: Known, new: Known) -> Known | None:
  """What is known by both together; None if the new one adds nothing."""
  added = new.mask & ~old.mask
  if not added.any():
    return None
  if new.complete or not old.mask.any():
    return new
  return Known(jnp.where(added, new.value, old.value), old.mask | new.mask)
