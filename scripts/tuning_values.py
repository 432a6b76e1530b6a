"""The hyperparameters that scripts/tune.py tunes, and their values."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from problem_file import Problem

# Hyperparameters in (0, 1); all others are positive.
FRACTIONS = "momentum", "decay", "average", "b1", "b2"


@dataclasses.dataclass(frozen=True)
class Config:
  """One experiment; see the flags of the same names."""

  problem: str | None = None
  tune: list[str] = dataclasses.field(
    default_factory=lambda: ["learning_rate", "momentum"]
  )
  per_step: bool = False
  per_array: bool = False
  steps: int = 100
  meta_steps: int = 40
  meta_learning_rate: float = 0.1
  seed: int = 0
  fresh_seeds: bool = True


# [arrays or 1, steps or 1]: logarithms or logits of the values tuned.
Tuned = dict[str, Any]


def transform(name: str, values: np.ndarray) -> np.ndarray:
  """The logits or logarithms of a hyperparameter; float64.

  Raises:
    ValueError: a value has none.
  """
  values = np.asarray(values, np.float64)
  fraction = name in FRACTIONS
  bad = ~((values > 0) & (values < 1 if fraction else np.isfinite(values)))
  if bad.any():
    raise ValueError(
      f"{name} starts at {values[bad][0]:g}; tuning keeps it "
      f"{'between 0 and 1' if fraction else 'positive'}, so start it there."
    )
  return np.log(values) - np.log1p(-values) if fraction else np.log(values)


def values_of(name: str, tuned: jax.Array) -> jax.Array:
  """The hyperparameter with these logits or logarithms."""
  return jax.nn.sigmoid(tuned) if name in FRACTIONS else jnp.exp(tuned)


def start(problem: Problem, config: Config) -> Tuned:
  """Where tuning starts: the values of the problem's optimizer.

  Raises:
    ValueError: a name is not one of the optimizer's hyperparameters, or its
      values can't be tuned with these flags.
  """
  optimizer = problem.optimizer
  available = list(optimizer.hyperparameters())
  if not config.tune or len(set(config.tune)) < len(config.tune):
    raise ValueError(
      f"--tune={','.join(config.tune)}: name each hyperparameter once, from "
      f"{', '.join(available)}."
    )
  for name in config.tune:
    if name in available:
      continue
    fields = [field.name for field in dataclasses.fields(optimizer)]
    reason = "is not one"
    if name in fields and getattr(optimizer, name) is None:
      reason = "is not in use: let optimizer() of the problem give it a value"
    raise ValueError(
      f"--tune={name}: the hyperparameters of {type(optimizer).__name__} are "
      f"{', '.join(available)}; {name} {reason}."
    )
  optimizer.resolve(problem.params, config.steps)  # or an error that says why
  chosen = {}
  for name in config.tune:
    table = table_of(name, getattr(optimizer, name), problem, config)
    values = transform(name, reduced(name, table, config))
    chosen[name] = jnp.asarray(values, jnp.result_type(float))
  return chosen


def table_of(
  name: str, value: Any, problem: Problem, config: Config
) -> np.ndarray:
  """A hyperparameter's values, [arrays, steps].

  Raises:
    ValueError: it has none of that shape.
  """
  # A function of the step is wrapped, so that it is one leaf of a pytree.
  wrapped = lambda leaf: callable(getattr(leaf, "function", None))
  params = jax.tree.map(lambda leaf: 0, problem.params)
  try:
    # A pytree may be a prefix of the parameters; a number is always one.
    leaves = jax.tree.leaves(
      jax.tree.broadcast(value, params, is_leaf=wrapped), is_leaf=wrapped
    )
  except ValueError as error:
    raise ValueError(
      f"{name} is not a number, an array over steps or a pytree like the "
      "parameters, so there is nothing to tune."
    ) from error
  rows = []
  for leaf in leaves:
    if wrapped(leaf):
      leaf = jax.vmap(leaf.function)(jnp.arange(config.steps, dtype=jnp.int32))
    row = np.asarray(leaf, np.float64)
    if row.ndim > 1:
      raise ValueError(
        f"{name} has a value for each element of a parameter array; tuning "
        "starts from one for the array."
      )
    rows.append(np.broadcast_to(row, config.steps))
  return np.stack(rows)


def reduced(name: str, table: np.ndarray, config: Config) -> np.ndarray:
  """A table [arrays, steps] without the axes that are not tuned.

  Raises:
    ValueError: values differ along one of them.
  """
  axes = ("per_array", "parameter array"), ("per_step", "step")
  for axis, (flag, what) in enumerate(axes):
    if getattr(config, flag):
      continue
    first = table.take([0], axis)
    if (table != first).any():
      raise ValueError(
        f"{name} of the problem's optimizer varies with the {what}; give "
        f"--{flag}, or start from a constant."
      )
    table = first
  return table


def optimizer_of(
  problem: Problem, config: Config, tuned: Tuned, floors: tuple | None = None
) -> Any:
  """The problem's optimizer with the tuned values in place."""
  structure: Any = jax.tree.structure(problem.params)
  chosen: dict[str, Any] = {}
  for name, table in tuned.items():
    rows = [row if config.per_step else row[0] for row in table]
    rows = [values_of(name, row) for row in rows]
    chosen[name] = structure.unflatten(rows) if config.per_array else rows[0]
  if floors is not None:
    chosen["floors"] = floors
  return problem.optimizer.replace(**chosen)


def labels(problem: Problem, config: Config) -> list[str]:
  """What tells apart the arrays that have values of their own."""
  return problem.arrays if config.per_array else [""]


def columns(problem: Problem, config: Config, tuned: Tuned) -> dict[str, float]:
  """Means over steps: a number for each hyperparameter, and array if so."""
  means = {}
  for name, table in tuned.items():
    rows = np.asarray(values_of(name, table), np.float64).mean(-1)
    for label, mean in zip(labels(problem, config), rows, strict=True):
      means[name + label] = float(mean)
  return means


def arrays_of(problem: Problem, config: Config, tuned: Tuned) -> dict[str, Any]:
  """The tuned values, [steps] or [], of each hyperparameter and array."""
  arrays = {}
  for name, table in tuned.items():
    rows = np.asarray(values_of(name, table))
    for label, row in zip(labels(problem, config), rows, strict=True):
      arrays[name + label] = row if config.per_step else row[0]
  return arrays


def summarise_values(tuned: Tuned, when: str) -> dict[str, float]:
  """Means, and where there are several values also their range."""
  summary = {}
  for name, table in tuned.items():
    values = np.asarray(values_of(name, table), np.float64)
    summary[f"{name}_{when}"] = float(values.mean())
    if values.size > 1:
      summary[f"{name}_{when}_smallest"] = float(values.min())
      summary[f"{name}_{when}_largest"] = float(values.max())
  return summary
