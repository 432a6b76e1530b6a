"""What every factory of an optimizer checks and fills in."""

import math
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np
import optax

from revmom.optimizers import hyperparameters
from revmom.optimizers.leaf import PARAMS


def choices(
  bits: Mapping[str, int],
  factor_floors: Mapping[str, float],
  *,
  learning_rate: Any,
  weight_decay: Any = None,
  clip: Any,
  preprocess: optax.GradientTransformation | None,
  fraction_bits: Mapping[str, int] | None,
  floors: Mapping[str, float] | None,
  integer: Any,
) -> dict[str, Any]:
  """The fields that all optimizers share.

  Args:
    bits: role -> fraction bits, in the order of a step; with int64 all are 48.
    factor_floors: role -> the smallest factor that buffers leave room for.
    learning_rate: as the user gave it, like all that follow.
    weight_decay: decoupled.
    clip: the largest norm of the gradients.
    preprocess: a stateless transformation.
    fraction_bits: override `bits`.
    floors: override `factor_floors`.
    integer: "int32" or "int64".

  Raises:
    ValueError: an unknown role or type, or a `preprocess` with a state.
  """
  learning_rate = hyperparameters.wrap("learning_rate", learning_rate)
  weight_decay = hyperparameters.wrap("weight_decay", weight_decay)
  check_stateless(preprocess)
  integer = _check_integer(integer)
  if integer == np.dtype("int64"):
    bits = dict.fromkeys(bits, 48)
  if weight_decay is not None:
    room = _decay_floor(learning_rate, weight_decay)
    factor_floors = {**factor_floors, PARAMS: room}
  return {
    "learning_rate": learning_rate,
    "weight_decay": weight_decay,
    "clip": hyperparameters.wrap("clip", clip),
    "preprocess": preprocess,
    "fraction_bits": tuple(
      _override("fraction_bits", bits, fraction_bits).items()
    ),
    "floors": tuple(_override("floors", factor_floors, floors).items()),
    "integer": integer,
  }


def check_factor(name: str, value: Any) -> None:
  """Raises ValueError for no factor, or a known one outside (0, 1]."""
  hyperparameters.check_kind(name, value)
  smallest = hyperparameters.extreme(value, np.min)
  largest = hyperparameters.extreme(value, np.max)
  if smallest is None or largest is None:
    return
  if not (smallest > 0 and largest <= 1):
    bad = largest if smallest > 0 else smallest
    raise ValueError(
      f"{name}={bad}, but it must lie in (0, 1].  A step multiplies a part of "
      f"its state by {name}; with 0 it forgets that part, so two states lead "
      "to the same one and no inverse exists, and a negative or larger factor "
      "is not a decay that a buffer of known size can undo."
    )


def check_stateless(preprocess: optax.GradientTransformation | None) -> None:
  """Raises ValueError for a transformation that keeps a state.

  Its state would have to be reversed too; equation (1) has no place for it.
  """
  if preprocess is None:
    return
  if not isinstance(preprocess, optax.GradientTransformation):
    raise ValueError(
      f"preprocess is {preprocess!r}; give an optax transformation without a "
      "state, such as optax.clip_by_global_norm(1.0)."
    )
  state = preprocess.init({"probe": jax.numpy.zeros(1)})
  if jax.tree.leaves(state):
    raise ValueError(
      "preprocess keeps a state "
      f"({jax.tree.structure(state)}), which no step could undo; use a "
      "stateless transformation such as optax.clip_by_global_norm."
    )


def floor(factor: Any) -> float:
  """Room for twice the bits of a factor; 0.5 if it is traced or a function."""
  smallest = hyperparameters.extreme(factor, np.min)
  return 0.5 if smallest is None else roomy_floor(smallest)


def _decay_floor(learning_rate: Any, weight_decay: Any) -> float:
  """Likewise for 1 - learning_rate * weight_decay, by default 0.99."""
  rate = hyperparameters.extreme(learning_rate, np.max)
  decay = hyperparameters.extreme(weight_decay, np.max)
  if rate is None or decay is None or not 0 <= rate * decay < 1:
    return 0.99
  return roomy_floor(1 - rate * decay)


def roomy_floor(factor: float) -> float:
  """A floor that leaves room for twice the bits of a factor, rounded up.

  Quarter octaves, so that nearby factors share a floor and a compilation.

  >>> round(roomy_floor(0.9), 3)
  0.783
  """
  bits = -2 * math.log2(factor)
  if bits == 0:
    return 1.0
  return 2.0 ** -(2.0 ** (math.ceil(4 * math.log2(bits)) / 4))


def _check_integer(integer: Any) -> np.dtype:
  integer = np.dtype(integer)
  if integer not in (np.dtype("int32"), np.dtype("int64")):
    raise ValueError(f"integer={integer.name}; choose int32 or int64.")
  if jax.dtypes.canonicalize_dtype(integer) != integer:
    raise ValueError(
      'integer="int64" needs 64-bit types; set JAX_ENABLE_X64=1 or '
      'jax.config.update("jax_enable_x64", True) first, or use int32.'
    )
  return integer


def _override(
  name: str, default: Mapping[str, Any], given: Mapping[str, Any] | None
) -> dict[str, Any]:
  unknown = set(given or {}) - set(default)
  if unknown:
    raise ValueError(
      f"{name} has roles {sorted(unknown)}; choose from {sorted(default)}."
    )
  for role, value in (given or {}).items():
    fits = (
      isinstance(value, int | np.integer)
      if name == "fraction_bits"
      else hyperparameters.is_real(value) and 0 < value <= 1
    )
    if not fits:
      kind = "a whole number" if name == "fraction_bits" else "in (0, 1]"
      raise ValueError(f"{name}[{role!r}] is {value!r}; it must be {kind}.")
  return {**default, **(given or {})}
