"""An optimizer's choices, resolved for one run.

Every hyperparameter has a value for each parameter array and step.
"""

from typing import Any, Self

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.typing import DTypeLike

from revmom.exact import capacities, compensated
from revmom.exact.capacities import Schedule
from revmom.exact.pytree import Pytree, static
from revmom.exact.tracing import concrete
from revmom.optimizers import hyperparameters
from revmom.optimizers.declared import correction_of
from revmom.optimizers.hyperparameters import PerStep
from revmom.optimizers.slot import AVERAGE, PARAMS
from revmom.optimizers.spills import Spills
from revmom.steps.leaf import base


class Resolved(Pytree):
  """An optimizer's equations with the hyperparameters of one run.

  Parameter arrays that are packed together are one leaf.
  """

  # For each part name -> one value, or one for each leaf; then those of the
  # optimizer as a whole.
  hyperparameters: tuple[dict[str, tuple], ...]
  equations: tuple = static()  # the parts, emptied
  part: tuple[int, ...] = static()  # of each leaf
  dtypes: tuple = static()  # of the floats of each leaf
  steps: int = static()

  @property
  def keeps_average(self) -> bool:
    """Whether all parts keep an average of the parameters."""
    return all(AVERAGE in equations.names for equations in self.equations)

  @property
  def integer(self) -> Any:
    """The type of all integers."""
    return self.equations[0].roles[0].integer

  def at(self, leaf: int, step: Any, dtype: DTypeLike | None = None) -> Any:
    """The optimizer of one parameter array at one step, of scalars."""
    part = self.part[leaf]
    dtype = dtype or self.dtypes[leaf]
    values = {
      name: hyperparameters.at(values, leaf, step, dtype)
      for name, values in self.hyperparameters[part].items()
    }
    return self.equations[part].with_values(values)

  def thresholds(self, step: jax.Array) -> list[jax.Array]:
    """Of the clipping at one step: none, a global one, or one for each leaf."""
    values = self.hyperparameters[-1].get("clip", ())
    return [
      hyperparameters.at((value,), 0, step, jnp.result_type(float))
      for value in values
    ]

  def add_thresholds_bar(self, totals: tuple, bars: list, step: Any) -> tuple:
    """Adds the cotangents of `thresholds` to those of hyperparameters."""
    return (*totals[:-1], add_bars(totals[-1], "clip", bars, step))

  def tabulated(self) -> Self:
    """With corrections of moving averages computed for all steps at once."""
    found = []
    dtype = max(self.dtypes, key=lambda d: d.itemsize, default=jnp.float32)
    steps = jnp.arange(self.steps, dtype=jnp.int32)
    for part, (equations, own) in enumerate(
      zip(self.equations, self.hyperparameters, strict=False)
    ):
      alike = self.replace(part=tuple(part for _ in self.part))
      of = lambda factor, leaf, alike=alike: jax.vmap(
        lambda t: alike.at(leaf, t, dtype).correction(factor, t)
      )(steps)
      found.append(
        own
        | {
          correction_of(factor): tuple(
            PerStep(of(factor, leaf)) for leaf in range(len(own[factor]))
          )
          for factor in equations.corrected
        }
      )
    return self.replace(
      hyperparameters=(*found, *self.hyperparameters[len(found) :])
    )

  def tables(self) -> dict[str, jax.Array]:
    """Numbers of every step, [steps], by where they belong."""
    return {name: v.values for name, v in self._values()[0] if _is_table(v)}

  def with_tables(self, tables: dict[str, jax.Array]) -> Self:
    """With others in the place of those of `tables` that have these names."""
    leaves, structure = self._values()
    values = [
      PerStep(tables[name]) if _is_table(v) and name in tables else v
      for name, v in leaves
    ]
    return self.replace(hyperparameters=structure.unflatten(values))

  def _values(self) -> tuple[list[tuple[str, Any]], Any]:
    structure: Any
    leaves, structure = jax.tree.flatten_with_path(
      self.hyperparameters, is_leaf=lambda v: isinstance(v, PerStep)
    )
    return [(jax.tree_util.keystr(path), v) for path, v in leaves], structure

  def forgetting(self, leaf: int) -> dict[str, jax.Array]:
    """1 - rho of every role, [] if no step differs from another or [steps]."""
    dtype = capacities.layout(self.integer).float_dtype
    of_step = lambda step: self._forgetting(leaf, step, dtype)
    part = self.part[leaf]
    varies = any(
      isinstance(values[leaf if len(values) > 1 else 0], PerStep)
      for values in self.hyperparameters[part].values()
    )
    if not varies:
      return of_step(jnp.zeros((), jnp.int32))
    return jax.vmap(of_step)(jnp.arange(self.steps, dtype=jnp.int32))

  def _forgetting(self, leaf, step, dtype) -> dict[str, jax.Array]:
    """1 - rho of every role at one step; each must be one number."""
    factors = self.at(leaf, step, dtype).forgetting(step)
    for role, forgotten in factors.items():
      if base(role) == PARAMS and not self._decays(leaf):
        # Nothing decays, whatever the learning rate of each element.
        factors[role] = jnp.zeros((), dtype)
      elif jnp.ndim(forgotten):
        raise ValueError(
          f"the factor of {role!r} has shape {jnp.shape(forgotten)} within one "
          "parameter array; a factor must be one number for a whole array, "
          "because all its elements spill together."
        )
    return factors

  def _decays(self, leaf: int) -> bool:
    """Whether the weight decay of a leaf may be other than zero."""
    values = self.hyperparameters[self.part[leaf]].get("weight_decay")
    if values is None:
      return False
    value = values[leaf if len(values) > 1 else 0]
    if isinstance(value, PerStep):
      value = value.values
    known = concrete(value)
    return known is None or bool(np.any(known))

  def _columns(self, part: int) -> list[int]:
    """The leaves whose factors a part's schedules hold."""
    values = self.hyperparameters[part].values()
    if max((len(v) for v in values), default=1) > 1:
      return list(range(len(self.part)))
    return [i for i, own in enumerate(self.part) if own == part][:1]

  def _group(self, leaf: int) -> tuple[int, int]:
    """The part of a leaf, and its column in the part's schedules."""
    part = self.part[leaf]
    return part, leaf if len(self._columns(part)) > 1 else 0

  def spills(self, past: list[dict[str, Schedule]] | None = None) -> Spills:
    """When the buffers of a run spill; nothing here differentiates.

    Args:
      past: the schedules of its first steps, if they were taken.

    Raises:
      ValueError: a factor is known and has no inverse.
    """
    schedules: list[dict] = []
    bounds: list[dict] = []
    valid = jnp.ones((), bool)
    for part, equations in enumerate(self.equations):
      schedules.append({})
      bounds.append({})
      for role, forgetting in self.factors(part).items():
        taken = None if past is None else past[part][role]
        schedules[-1][role] = capacities.schedule(
          forgetting, self.integer, taken
        )
        if taken is not None:
          valid &= _multiplied_by(taken, forgetting)
        known = concrete(forgetting)
        floor = equations.role(role).floor
        if known is None:
          least = np.full(forgetting.shape, 1 - floor)
          capacities.check_invertible(role, least, self.integer)
          most = capacities.largest_forgotten(floor)
          known = np.full(forgetting.shape, most)
          valid &= jnp.all((forgetting >= 0) & (forgetting <= most))
        else:
          capacities.check_invertible(role, known, self.integer)
        bounds[-1][role] = known
    groups = [self._group(leaf) for leaf in range(len(self.part))]
    roles = [len(self.equations[part].roles) for part in self.part]
    return Spills(schedules, bounds, valid, groups, roles, self.integer)

  def factors(self, part: int) -> dict[str, jax.Array]:
    """1 - rho of the roles of a part, [steps, groups]."""
    # Inside jit too, factors that are known should size the buffers.
    with jax.ensure_compile_time_eval():
      fixed = lax.stop_gradient(self).replace(
        part=tuple(part for _ in self.part)
      )
      groups = [fixed.forgetting(leaf) for leaf in self._columns(part)]
      return {
        role: jnp.stack(
          [jnp.broadcast_to(g[role], (self.steps,)) for g in groups], -1
        )
        for role in (groups[0] if groups else ())
      }

  def now(self, schedules: list, leaf: int, step: jax.Array) -> dict:
    """One step of the schedules of one leaf."""
    part, column = self._group(leaf)
    pick = lambda a: lax.dynamic_index_in_dim(a, step, keepdims=False)[column]
    return jax.tree.map(pick, schedules[part])

  def log_factors(self, count: jax.Array) -> list[compensated.Sum]:
    """Of an element of each leaf, what `count` steps multiply volume with."""
    factors = []
    for leaf in range(len(self.part)):
      log = compensated.zero(capacities.layout(self.integer).float_dtype)
      with jax.ensure_compile_time_eval():  # what is known stays known
        forgetting = self.forgetting(leaf)
      for forgotten in forgetting.values():
        log = log.plus(log_factor(forgotten, count, self.steps))
      factors.append(log)
    return factors


def _multiplied_by(taken: Schedule, forgetting: jax.Array) -> jax.Array:
  """Whether steps that were taken had these factors, bool []."""
  now = forgetting[: len(taken.before)]
  real = lambda capacity: capacity.astype(now.dtype)
  then = real(taken.after - taken.before) / real(taken.after)
  return jnp.all(jnp.abs(then - now) <= 2.0**-20)


def _is_table(value: Any) -> bool:
  return isinstance(value, PerStep) and value.values.ndim == 1


def log_factor(
  forgotten: jax.Array, count: jax.Array, steps: int
) -> compensated.Sum:
  """log(rho) of the first `count` steps; `forgotten` is [] or [steps]."""
  known = concrete(forgotten)
  logs = (
    jnp.log1p(-forgotten)
    if known is None
    else np.log1p(-known.astype(np.float64))
  )
  terms = compensated.of(logs, forgotten.dtype)
  if not forgotten.ndim:
    return terms.times(count)
  taken = jnp.arange(steps) < count
  return compensated.total_of(
    jax.tree.map(lambda a: jnp.where(taken, a, 0), terms)
  )


def add_bars(totals: dict, name: str, bars: list, step: Any) -> dict:
  """Adds cotangents at a step to those of one hyperparameter's values."""
  values = totals.get(name, ())
  for i, bar in enumerate(bars):
    values = hyperparameters.accumulate(values, i, step, bar)
  return {**totals, name: values} if bars else totals
