"""Hyperparameters that vary with the step and with the parameter.

A hyperparameter is a float; an array whose leading axis counts steps, of shape
[steps] or, with one value per element, [steps, *leaf] ([1, *leaf] if it is the
same at every step); a function of the step, such as an optax schedule; or a
pytree of these, like the parameters or a prefix of them.
"""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.typing import ArrayLike, DTypeLike

from revmom.exact.pytree import Pytree, static
from revmom.exact.tracing import concrete

# What hyperparameters may be.
_KINDS = (
  "give a real number, an array over steps, a function of the step, or a "
  "pytree of these like the parameters"
)
_OPTIONAL = ("clip", "eps_root", "weight_decay")
_LEAST = {
  "clip": "more than 0",
  "max_norm": "more than 0",
  "eps": "at least 0",
  "eps_root": "at least 0",
  "initial_accumulator_value": "at least 0",
}


_TABULATE = (
  "it has no derivative; for one, tabulate it, as in learning_rate="
  "jax.vmap(schedule)(jnp.arange(num_steps)), or build the optimizer from the "
  "numbers that the function depends on"
)


class StepFunction(Pytree):
  """A hyperparameter given as a function of the step; it has no leaves."""

  function: Callable[[ArrayLike], ArrayLike] = static()

  def __repr__(self) -> str:
    return f"StepFunction({self.function!r}: {_TABULATE})"

  def __float__(self) -> float:
    raise ValueError(f"a function of the step is no number: {_TABULATE}")

  def __array__(self, *args: Any, **kwargs: Any) -> np.ndarray:
    raise ValueError(f"a function of the step is no array: {_TABULATE}")

  def __jax_array__(self) -> jax.Array:
    raise ValueError(f"a function of the step is no array: {_TABULATE}")


class PerStep(NamedTuple):
  """A hyperparameter with a value for every step."""

  values: jax.Array  # [steps, ...]


def wrap(name: str, value: Any) -> Any:
  """Makes functions of the step into pytrees without leaves.

  Args:
    name: of the hyperparameter, for error messages.
    value: as the user gave it; None where it may be left out.

  Raises:
    ValueError: a leaf is neither a real number, an array of them nor a
      function of the step, or a number is out of the hyperparameter's range.
  """
  if value is None and name in _OPTIONAL:
    return None
  check_kind(name, value)
  return jax.tree.map(
    lambda leaf: StepFunction(leaf) if callable(leaf) else leaf,
    value,
    is_leaf=callable,
  )


def check_kind(name: str, value: Any) -> None:
  """Raises ValueError unless a value can be a hyperparameter."""
  leaves = jax.tree.leaves_with_path(
    value, is_leaf=lambda leaf: leaf is None or callable(leaf)
  )
  if not leaves:
    raise ValueError(f"{name}={value!r} holds no number; {_KINDS}.")
  for path, leaf in leaves:
    where = f"{name}{jax.tree_util.keystr(path)}"
    if callable(leaf):
      _check_function(where, leaf)
    elif not is_real(leaf):
      raise ValueError(f"{where} is {leaf!r}; {_KINDS}.")
    else:
      check_range(name, leaf)


def is_real(leaf: Any) -> bool:
  """Whether a leaf is a real number or an array of them."""
  dtype = leaf.dtype if hasattr(leaf, "dtype") else np.asarray(leaf).dtype
  return jnp.issubdtype(dtype, np.floating) or jnp.issubdtype(dtype, np.integer)


def _check_function(where: str, function: Callable) -> None:
  try:
    out = jax.eval_shape(function, jax.ShapeDtypeStruct((), jnp.int32))
  except Exception as error:
    raise ValueError(
      f"{where} is {function!r}, which fails with a traced step (int32 []) as "
      "its argument; a schedule is a function of the step alone that gives a "
      "number, such as optax.cosine_decay_schedule(0.1, 100).  The failure: "
      f"{error}"
    ) from error
  if not (isinstance(out, jax.ShapeDtypeStruct) and is_real(out)):
    raise ValueError(
      f"{where} is {function!r}, which gives {out} for a step; a schedule "
      "gives a real number, or an array with one for each element."
    )


def check_range(name: str, numbers: Any) -> None:
  """Raises ValueError if known numbers are out of a hyperparameter's range."""
  if name not in _LEAST:
    return
  known = concrete(numbers)
  if known is None:
    return
  inside = known > 0 if _LEAST[name] == "more than 0" else known >= 0
  if not np.all(inside):
    bad = known[~inside].flat[0] if known.ndim else known
    raise ValueError(f"{name}={bad}, but it must be {_LEAST[name]}.")


def _is_leaf(value: Any) -> bool:
  return isinstance(value, StepFunction)


def num_steps(value: Any) -> int | None:
  """The length of the step axis, if a hyperparameter has one."""
  for leaf in jax.tree.leaves(value):
    if jnp.ndim(leaf) and jnp.shape(leaf)[0] > 1:
      return jnp.shape(leaf)[0]
  return None


def first(tree: Any, steps: int) -> Any:
  """Hyperparameters of the first steps of a longer run."""
  cut = lambda leaf: leaf[:steps] if (num_steps(leaf) or 0) > steps else leaf
  with jax.ensure_compile_time_eval():  # what is known stays known
    return jax.tree.map(cut, tree)


def per_leaf(name: str, value: Any, params: Any, steps: int) -> tuple:
  """One array or `PerStep` for every parameter leaf, or one that all share.

  Args:
    name: of the hyperparameter, for error messages.
    value: as the user gave it, functions wrapped.
    params: the parameters (or anything of their structure and shapes).
    steps: length of the run.

  Raises:
    ValueError: the pytree is not a prefix of the parameters, an array's
      leading axis is not the step axis, or its other axes are not those of
      the parameter array.
  """
  shapes = [jnp.shape(leaf) for leaf in jax.tree.leaves(params)]
  if _is_leaf(value) or jax.tree_util.all_leaves([value]):
    return (_resolve(name, value, steps, shapes),)
  try:
    full = jax.tree.broadcast(value, params, is_leaf=_is_leaf)
  except ValueError as error:
    raise ValueError(
      f"{name} is a pytree {jax.tree.structure(value)}, but the parameters are "
      f"{jax.tree.structure(params)}; give a number, an array over steps, or "
      "a pytree like the parameters (or a prefix of it)."
    ) from error
  leaves = jax.tree.leaves(full, is_leaf=_is_leaf)
  return tuple(
    _resolve(name, leaf, steps, [shape])
    for leaf, shape in zip(leaves, shapes, strict=True)
  )


def _resolve(
  name: str, value: Any, steps: int, shapes: list[tuple[int, ...]]
) -> jax.Array | PerStep:
  """The value for parameter arrays of these shapes."""
  if isinstance(value, StepFunction):
    value = jax.vmap(value.function)(jnp.arange(steps, dtype=jnp.int32))
    value = jnp.asarray(value)
    _check_shape(name, value, shapes)
    check_range(name, value)
    return PerStep(value)
  check_range(name, value)
  value = jnp.asarray(value)
  if not jnp.issubdtype(value.dtype, jnp.inexact):
    value = value.astype(jnp.result_type(float))
  if value.ndim == 0:
    return value
  _check_shape(name, value, shapes)
  if value.shape[0] == 1:
    return value[0]
  if value.shape[0] != steps:
    raise ValueError(
      f"{name} has shape {value.shape}, but the run has {steps} steps; the "
      f"leading axis must be {steps}, or 1 for a value per element."
    )
  return PerStep(value)


def _check_shape(name: str, value: jax.Array, shapes: list) -> None:
  for shape in shapes:
    if value.shape[1:] not in ((), shape):
      raise ValueError(
        f"{name} has shape {value.shape} for a parameter array of shape "
        f"{shape}; it must be {value.shape[:1]}, with a value per step, or "
        f"{(value.shape[0], *shape)}, with a value per step and element."
      )


def is_uniform(values: Sequence) -> bool:
  """Whether all elements of all leaves have the same value at a step."""
  if len(values) != 1:
    return False
  (value,) = values
  if isinstance(value, PerStep):
    return value.values.ndim == 1
  return value.ndim == 0


def at(values: Sequence, leaf: int, step: ArrayLike, dtype: DTypeLike) -> Any:
  """The value for one leaf at one step."""
  value = values[leaf if len(values) > 1 else 0]
  if isinstance(value, PerStep):
    value = lax.dynamic_index_in_dim(value.values, step, keepdims=False)
  return jnp.asarray(value).astype(dtype)


def accumulate(
  totals: Sequence, leaf: int, step: ArrayLike, cotangent: jax.Array
) -> tuple:
  """Adds the cotangent of `at(values, leaf, step)` to those of `values`."""
  index = leaf if len(totals) > 1 else 0
  total = totals[index]
  if isinstance(total, PerStep):
    dtype = total.values.dtype
    total = PerStep(total.values.at[step].add(cotangent.astype(dtype)))
  else:
    total = total + cotangent.astype(total.dtype)
  return (*totals[:index], total, *totals[index + 1 :])


def extreme(value: Any, pick: Callable[[np.ndarray], Any]) -> float | None:
  """The smallest (pick=np.min) or largest number of a hyperparameter.

  None where it is traced or a function of the step.
  """
  numbers = []
  for leaf in jax.tree.leaves(value, is_leaf=_is_leaf):
    known = None if callable(leaf) or _is_leaf(leaf) else concrete(leaf)
    if known is None or not known.size:
      return None
    numbers.append(pick(known))
  return float(pick(np.asarray(numbers))) if numbers else None
