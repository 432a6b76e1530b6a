"""The hyperparameters that scripts/tune.py tunes, and their values.

Those of a partition's optimizers have names such as "matrices.learning_rate";
those of the loss are the arguments of loss_fn that have defaults.
"""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from shared.settings import flag
from tuning.problem_file import Problem

# Hyperparameters in (0, 1); all others are positive.
FRACTIONS = "momentum", "decay", "average", "b1", "b2"


@dataclasses.dataclass(frozen=True)
class Config:
  """One experiment."""

  problem: str | None = flag(
    None,
    "Python file that defines it; by default the example.",
    may_change=True,
  )
  tune: tuple[str, ...] = flag(
    ("learning_rate", "momentum"),
    "Hyperparameters of the optimizer or the loss, separated by commas.",
  )
  per_step: bool = flag(False, "Tune a value for each training step.")
  per_array: bool = flag(False, "Tune a value for each parameter array.")
  steps: int = flag(100, "Steps of one training run.", at_least=1)
  meta_steps: int = flag(
    40, "Training runs, each with a hypergradient.", at_least=1, may_change=True
  )
  meta_learning_rate: float = flag(
    0.1, "Of Adam, on logarithms and logits.", at_least=0.0
  )
  seed: int = flag(0, "Of the keys of init and batches.")
  fresh_seeds: bool = flag(
    True,
    "Draw init and batches anew in each meta iteration; --nofresh_seeds tunes"
    " one and the same run.",
  )


# [arrays or 1, steps or 1]: logarithms or logits of the values tuned.
Tuned = dict[str, Any]


def is_fraction(name: str) -> bool:
  """Whether a hyperparameter lies between 0 and 1."""
  return name.rpartition(".")[-1] in FRACTIONS


def transform(name: str, values: np.ndarray) -> np.ndarray:
  """The logits or logarithms of a hyperparameter [arrays, steps]; float64.

  Those of zeros are -inf, and stay there, as a warm-up begins at zero.

  Raises:
    ValueError: a value has none, or all of an array are zero.
  """
  values = np.asarray(values, np.float64)
  fraction = is_fraction(name)
  good = (values >= 0) & (values < 1 if fraction else np.isfinite(values))
  good &= (values > 0).any(-1, keepdims=True)
  if not good.all():
    raise ValueError(
      f"{name} starts at {values[~good][0]:g}; tuning keeps it "
      f"{'between 0 and 1' if fraction else 'positive'}, so start it there."
    )
  with np.errstate(divide="ignore"):
    logs = np.log(values)
  return logs - np.log1p(-values) if fraction else logs


def values_of(name: str, tuned: jax.Array) -> jax.Array:
  """The hyperparameter with these logits or logarithms."""
  return jax.nn.sigmoid(tuned) if is_fraction(name) else jnp.exp(tuned)


def named(optimizer: Any, prefix: str = "") -> dict[str, Any]:
  """The hyperparameters of an optimizer, and of those in a partition."""
  found = dict(optimizer.hyperparameters())
  parts = found.pop("optimizers", {})
  found = {prefix + name: value for name, value in found.items()}
  for label, own in parts.items():
    found |= named(own, f"{prefix}{label}.")
  return found


def replaced(optimizer: Any, values: dict[str, Any], prefix: str = "") -> Any:
  """The optimizer with other values, by the names of `named`."""
  own = optimizer.hyperparameters()
  parts = own.pop("optimizers", None)
  chosen = {name: values.get(prefix + name, old) for name, old in own.items()}
  if parts is not None:
    chosen["optimizers"] = {
      label: replaced(part, values, f"{prefix}{label}.")
      for label, part in parts.items()
    }
  return optimizer.replace(**chosen)


def start(problem: Problem, config: Config) -> Tuned:
  """Where tuning starts: the values of the problem's optimizer.

  Raises:
    ValueError: a name is not one of the optimizer's hyperparameters, or its
      values can't be tuned with these flags.
  """
  optimizer = problem.optimizer
  values = named(optimizer) | problem.loss_hyperparameters
  available = list(values)
  if not config.tune or len(set(config.tune)) < len(config.tune):
    raise ValueError(
      f"--tune={','.join(config.tune)}: name each hyperparameter once, from "
      f"{', '.join(available)}."
    )
  for name in config.tune:
    if name not in available:
      _explain(name, problem, available)
    if name in problem.loss_hyperparameters:
      _check_loss(name, problem)
  optimizer.resolve(problem.params, config.steps)  # or an error that says why
  chosen = {}
  for name in config.tune:
    table = table_of(name, values[name], problem, config)
    logs = transform(name, reduced(name, table, problem, config))
    chosen[name] = jnp.asarray(logs, jnp.result_type(float))
  return chosen


def _explain(name: str, problem: Problem, available: list[str]) -> None:
  """Raises ValueError: there is no such hyperparameter."""
  optimizer = problem.optimizer
  fields = [field.name for field in dataclasses.fields(optimizer)]
  reason = "is not one"
  if any(other.endswith(f".{name}") for other in available):
    reason = "is one of each part, so name the part, too"
  elif name in fields and getattr(optimizer, name) is None:
    reason = "is not in use: let optimizer() of the problem give it a value"
  raise ValueError(
    f"--tune={name}: the hyperparameters of {type(optimizer).__name__} and of "
    f"the loss are {', '.join(available)}; {name} {reason}.  Those of the loss "
    "are the arguments of loss_fn with a default, as in loss_fn(params, batch, "
    "l2=1e-4)."
  )


def _check_loss(name: str, problem: Problem) -> None:
  """Raises ValueError if a hyperparameter of the loss can't be tuned."""
  if name in named(problem.optimizer):
    raise ValueError(
      f"--tune={name}: both loss_fn and the optimizer have one; rename the "
      "argument of loss_fn."
    )
  if problem.validates_by_loss:
    raise ValueError(
      f"--tune={name}: it is part of loss_fn, which would be lowered by "
      f"choosing another {name}; define validation_loss(params) without it."
    )


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


def reduced(
  name: str, table: np.ndarray, problem: Problem, config: Config
) -> np.ndarray:
  """A table [arrays, steps] without the axes that are not tuned.

  Raises:
    ValueError: values differ along one of them.
  """
  axes = ("per_array", "parameter array"), ("per_step", "step")
  for axis, (name_of_flag, what) in enumerate(axes):
    of_array = axis == 0 and name not in problem.loss_hyperparameters
    if getattr(config, name_of_flag) and (axis or of_array):
      continue
    first = table.take([0], axis)
    if (table != first).any():
      raise ValueError(
        f"{name} of the problem's optimizer varies with the {what}; give "
        f"--{name_of_flag}, or start from a constant."
      )
    table = first
  return table


def optimizer_of(
  problem: Problem, config: Config, tuned: Tuned, floors: tuple = ()
) -> Any:
  """The problem's optimizer with the tuned values in place.

  Args:
    problem, config, tuned: of this experiment.
    floors: (role, factor), where they are to be lower than the optimizer's.
  """
  structure: Any = jax.tree.structure(problem.params)
  chosen: dict[str, Any] = {}
  for name, table in tuned.items():
    if name in problem.loss_hyperparameters:
      continue
    rows = [row if config.per_step else row[0] for row in table]
    rows = [values_of(name, row) for row in rows]
    chosen[name] = structure.unflatten(rows) if config.per_array else rows[0]
  return replaced(problem.optimizer, chosen).with_floors(dict(floors))


def loss_arguments(
  problem: Problem, config: Config, tuned: Tuned
) -> dict[str, jax.Array]:
  """The tuned hyperparameters of the loss, [steps]."""
  return {
    name: jnp.broadcast_to(values_of(name, table[0]), config.steps)
    for name, table in tuned.items()
    if name in problem.loss_hyperparameters
  }


def labels(problem: Problem, config: Config, name: str) -> list[str]:
  """What tells apart the arrays that have values of their own."""
  of_arrays = config.per_array and name not in problem.loss_hyperparameters
  return problem.arrays if of_arrays else [""]


def columns(problem: Problem, config: Config, tuned: Tuned) -> dict[str, float]:
  """Means over steps: a number for each hyperparameter, and array if so."""
  means = {}
  for name, table in tuned.items():
    rows = np.asarray(values_of(name, table), np.float64).mean(-1)
    for label, mean in zip(labels(problem, config, name), rows, strict=True):
      means[name + label] = float(mean)
  return means


def arrays_of(problem: Problem, config: Config, tuned: Tuned) -> dict[str, Any]:
  """The tuned values, [steps] or [], of each hyperparameter and array."""
  arrays = {}
  for name, table in tuned.items():
    rows = np.asarray(values_of(name, table))
    for label, row in zip(labels(problem, config, name), rows, strict=True):
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
