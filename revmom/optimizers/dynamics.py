"""The integers of an optimizer's run, one step forward and one step back.

`ReversibleOptimizer` holds what a user chooses; `Dynamics` is that choice
resolved for one run: every hyperparameter has a value for each parameter array
and step, so that steps can be taken in a scan.
"""

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.typing import DTypeLike

from revmom.exact import bit_buffer, compensated, fixed_point
from revmom.exact.pytree import Pytree, static
from revmom.optimizers import hyperparameters
from revmom.optimizers.gradients import compute_dtype
from revmom.optimizers.hyperparameters import PerStep
from revmom.optimizers.packing import Packing
from revmom.optimizers.slot import AVERAGE, PARAMS
from revmom.optimizers.spills import Spills, check_invertible
from revmom.steps import equations as steps
from revmom.steps.leaf import Leaf, base

Bars = dict[str, jax.Array]  # cotangents of a leaf's floats, by role


class Dynamics(Pytree):
  """An optimizer's equations with the hyperparameters of one run."""

  # For each part name -> one value, or one for each leaf; then those of the
  # optimizer as a whole.
  hyperparameters: tuple[dict[str, tuple], ...]
  equations: tuple = static()  # the parts, emptied
  part: tuple[int, ...] = static()  # of each leaf
  packing: Packing = static()  # of arrays in leaves
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

  def forgetting(self, leaf: int) -> dict[str, jax.Array]:
    """1 - rho of every role, [] if no step differs from another or [steps]."""
    dtype = bit_buffer.layout(self.integer).float_dtype
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
    known = hyperparameters.concrete(value)
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

  def spills(self) -> Spills:
    """When the buffers of a run spill; nothing here differentiates.

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
        schedules[-1][role] = bit_buffer.schedule(forgetting, self.integer)
        known = hyperparameters.concrete(forgetting)
        if known is None:
          largest = 1 - equations.role(role).floor
          known = np.full(forgetting.shape, largest)
          valid &= jnp.all((forgetting >= 0) & (forgetting <= largest))
        check_invertible(role, known, self.integer)
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

  def pack(self, arrays: Sequence[Any]) -> list[jax.Array]:
    """The parameters as the floats of leaves."""
    wide = [jnp.asarray(a, compute_dtype(jnp.result_type(a))) for a in arrays]
    return self.packing.pack(wide)

  def snapped(self, params: Sequence[Any]) -> list[jax.Array]:
    """Parameters on their grid; differentiates as the identity.

    One by one: cut out of one array they would take longer to compile.
    """
    snapped = []
    groups = self.packing.each(range(len(self.packing.groups)))
    for array, i in zip(params, groups, strict=True):
      role = self.equations[self.part[i]].role(PARAMS)
      values = jnp.asarray(array, self.dtypes[i])
      integers = fixed_point.to_fixed(
        lax.stop_gradient(values), role.bits, role.integer
      )
      shown = self.view(i, Leaf({PARAMS: integers}, {}))
      snapped.append(_as_if(shown, values))
    return snapped

  # The integers.

  def begin(self, params: list, spills: Spills, length: int) -> list[Leaf]:
    """The integers of packed parameters, slots at zero, buffers empty.

    The buffers have words for `length` steps.  If a traced factor is beyond
    its bound all integers are `overflow`.
    """
    leaves = []
    for values, part in zip(params, self.part, strict=True):
      roles = self.equations[part].roles
      bits = self.equations[part].role(PARAMS).bits
      start = fixed_point.to_fixed(values, bits, self.integer)
      start = jnp.where(spills.valid, start, fixed_point.overflow(self.integer))
      # Each slot has a buffer of its own, so that a step may donate them.
      begun = {r.name: jnp.zeros_like(start) for r in roles} | {PARAMS: start}
      buffers = {
        name: bit_buffer.init(begun[name], 0) for name in spills.schedules[part]
      }
      leaves.append(Leaf(begun, buffers))
    rows = spills.rows(length)
    return [leaf.with_rows(n) for leaf, n in zip(leaves, rows, strict=True)]

  def forward(
    self, leaves: list[Leaf], gradients: list, step: Any, schedules: list
  ) -> list[Leaf]:
    """One step: z' = rho z + phi for all roles in turn, of all leaves."""
    return [
      steps.forward(
        self.at(i, step), leaf, gradient, step, self.now(schedules, i, step)
      )
      for i, (leaf, gradient) in enumerate(zip(leaves, gradients, strict=True))
    ]

  def undo_update(
    self, leaves: list[Leaf], step: Any, schedules: list
  ) -> list[Leaf]:
    """The parameters before a step, and what followed them in it."""
    return self._undo(leaves, [None] * len(leaves), step, schedules)

  def undo_increments(
    self, leaves: list[Leaf], gradients: list, step: Any, schedules: list
  ) -> list[Leaf]:
    """The slots before a step, from its gradients."""
    return self._undo(leaves, gradients, step, schedules)

  def _undo(self, leaves, gradients, step, schedules) -> list[Leaf]:
    undone = []
    for i, (leaf, gradient) in enumerate(zip(leaves, gradients, strict=True)):
      equations, now = self.at(i, step), self.now(schedules, i, step)
      roles = equations.late if gradient is None else equations.early
      undone.append(
        steps.undo(equations, roles, leaf, gradient, step, now, self.dtypes[i])
      )
    return undone

  def erase(self, leaves: list[Leaf], step: Any, schedules: list) -> list[Leaf]:
    """Zeroes the words that a step spilled."""
    erased = []
    for i, leaf in enumerate(leaves):
      now = self.now(schedules, i, step)
      words = {
        name: bit_buffer.erase(spilled, now[name])
        for name, spilled in leaf.words().items()
      }
      erased.append(leaf.with_words(words))
    return erased

  def view(self, i: int, leaf: Leaf) -> jax.Array:
    """The parameters of a leaf as floats, on the grid that is shown."""
    equations, dtype = self.equations[self.part[i]], self.dtypes[i]
    bits, shown = equations.role(PARAMS).bits, equations.shown_bits
    params = leaf.integers[PARAMS]
    if shown is None or shown >= bits:
      return fixed_point.from_fixed(params, bits, dtype)
    hidden = bits - shown
    rounded = (params + (1 << (hidden - 1))) >> hidden
    values = fixed_point.from_fixed(rounded, shown, dtype)
    return jnp.where(fixed_point.has_overflowed(params), jnp.nan, values)

  def views(self, leaves: list[Leaf]) -> list[jax.Array]:
    """The parameters of all leaves as floats."""
    return [self.view(i, leaf) for i, leaf in enumerate(leaves)]

  def averages(
    self, leaves: list[Leaf], schedules: list, count: Any
  ) -> list[jax.Array]:
    """The raw averages of the parameters of all leaves after so many steps."""
    last = jnp.maximum(count - 1, 0)
    averages = []
    for i, leaf in enumerate(leaves):
      equations, now = self.at(i, last), self.now(schedules, i, last)
      role = equations.role(AVERAGE)
      averages.append(
        steps.value_after(equations, role, leaf, now, self.dtypes[i])
      )
    return averages

  def average_weights(self, count: jax.Array) -> list[jax.Array]:
    """What the weights in the average of each leaf add up to: 1 - prod rho."""
    return [
      -jnp.expm1(
        log_factor(self.forgetting(i)[AVERAGE], count, self.steps).total
      )
      for i in range(len(self.part))
    ]

  # The adjoint.

  def bars_of(self, view_bar: jax.Array) -> Bars:
    """The cotangents of what `view` shows, by role."""
    return {PARAMS: view_bar}

  def view_bar(self, bars: Bars) -> jax.Array:
    """Undoes `bars_of`."""
    return bars[PARAMS]

  def pull_back(
    self,
    after: list[Leaf],
    before: list[Leaf],
    gradients: list,
    bars: list[Bars],
    totals: tuple,
    step: Any,
    schedules: list,
  ) -> tuple[list[Bars], list, tuple]:
    """The adjoint of what a step does to the slots, or to all that follows.

    Args:
      after: the integers after the half of a step that is pulled back.
      before: and before it.
      gradients: for the slots; None for each leaf for what follows them.
      bars: cotangents after.
      totals: cotangents of the hyperparameters so far.
      step: int32 [].
      schedules: of the run.

    Returns:
      Cotangents before, those of the gradients, and the totals.
    """
    bars_before, gradients_bar = [], []
    for i, gradient in enumerate(gradients):
      equations, now = self.at(i, step), self.now(schedules, i, step)
      roles = equations.late if gradient is None else equations.early
      own, gradient_bar, equations_bars = steps.pull_back(
        equations,
        roles,
        after[i],
        before[i],
        gradient,
        bars[i],
        step,
        now,
        self.dtypes[i],
      )
      bars_before.append(own)
      gradients_bar.append(gradient_bar)
      for equations_bar in equations_bars:
        totals = self._accumulate(totals, i, step, equations_bar)
    return bars_before, gradients_bar, totals

  def _accumulate(self, totals, i, step, equations_bar) -> tuple:
    part = self.part[i]
    own = {
      name: hyperparameters.accumulate(
        values, i, step, equations_bar.value(name)
      )
      for name, values in totals[part].items()
    }
    return (*totals[:part], own, *totals[part + 1 :])

  # The volume.

  def log_factors(self, count: jax.Array) -> list[compensated.Sum]:
    """Of an element of each leaf, what `count` steps multiply volume with."""
    factors = []
    for leaf in range(len(self.part)):
      log = compensated.zero(bit_buffer.layout(self.integer).float_dtype)
      with jax.ensure_compile_time_eval():  # what is known stays known
        forgetting = self.forgetting(leaf)
      for forgotten in forgetting.values():
        log = log.plus(log_factor(forgotten, count, self.steps))
      factors.append(log)
    return factors


def log_factor(
  forgotten: jax.Array, count: jax.Array, steps: int
) -> compensated.Sum:
  """log(rho) of the first `count` steps; `forgotten` is [] or [steps]."""
  known = hyperparameters.concrete(forgotten)
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


@jax.custom_jvp
def _as_if(value: jax.Array, other: jax.Array) -> jax.Array:
  """The value, which differentiates as if it were the other."""
  return value


_as_if.defjvp(lambda primals, tangents: (primals[0], tangents[1]))
