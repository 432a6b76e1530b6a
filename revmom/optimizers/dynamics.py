"""The integers of an optimizer's run, one step forward and one step back.

`ReversibleOptimizer` holds what a user chooses; `Dynamics` is that choice
resolved for one run: every hyperparameter has a value for each parameter array
and step, so that steps can be taken in a scan.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.typing import DTypeLike

from revmom.exact import bit_buffer, compensated, fixed_point
from revmom.exact.bit_buffer import Schedule
from revmom.exact.fence import fence, isolate
from revmom.exact.pytree import Pytree, static
from revmom.optimizers import hyperparameters
from revmom.optimizers.hyperparameters import PerStep
from revmom.optimizers.leaf import (
  AVERAGE,
  PARAMS,
  Leaf,
  advance,
  base,
  retreat,
  value_after,
  with_words,
)
from revmom.optimizers.packing import Packing

_OTHER = "the state was made by another optimizer"


class Spills(NamedTuple):
  """When the buffers of a run spill, and how large they get.

  A list has an entry for each part of the optimizer.
  """

  schedules: list[dict[str, Schedule]]  # role -> [steps, groups]
  bounds: list[dict[str, np.ndarray]]  # role -> largest 1 - rho, alike
  valid: jax.Array  # bool []: no traced factor is beyond its bound
  groups: list[tuple[int, int]]  # leaf -> its part, its column there
  roles: list[int]  # leaf -> how many arrays of integers it has
  integer: Any

  def rows(self, length: int) -> list[dict[str, int]]:
    """For each leaf, role -> words an element spills in so many steps."""
    known = {
      group: {
        role: bit_buffer.rows_needed(bound[:, group[1]], self.integer, length)
        for role, bound in self.bounds[group[0]].items()
      }
      for group in set(self.groups)
    }
    return [known[group] for group in self.groups]

  def bytes_per_step(self, sizes: list[int]) -> float:
    """Bytes that arrays of these sizes spill in a step, on average."""
    total = 0.0
    for size, (part, column) in zip(sizes, self.groups, strict=True):
      for bound in self.bounds[part].values():
        bits = -np.log2(1 - bound[:, column])
        total += size * float(np.sum(bits)) / 8 / max(1, len(bits))
    return total

  def state_bytes(self, sizes: list[int]) -> int:
    """Bytes of integers and numbers."""
    arrays = [
      roles + len(self.bounds[part])
      for roles, (part, _) in zip(self.roles, self.groups, strict=True)
    ]
    return jnp.dtype(self.integer).itemsize * int(np.dot(sizes, arrays))


class Dynamics(Pytree):
  """An optimizer's equations with the hyperparameters of one run."""

  # For each part name -> one value, or one for each leaf; then those of the
  # optimizer as a whole.
  hyperparameters: tuple[dict[str, tuple], ...]
  equations: tuple = static()  # the parts, emptied
  part: tuple[int, ...] = static()  # of each leaf
  packing: Packing = static()  # of arrays in leaves
  steps: int = static()

  @property
  def keeps_average(self) -> bool:
    """Whether all parts keep an average of the parameters."""
    return all(AVERAGE in equations.roles for equations in self.equations)

  @property
  def integer(self) -> Any:
    """The type of all integers."""
    return self.equations[0].integer

  def at(self, leaf: int, step: jax.Array, dtype: DTypeLike) -> Any:
    """The optimizer of one parameter array at one step, of scalars."""
    part = self.part[leaf]
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
    if not varies and not self.equations[part].forgetting_varies:
      return of_step(jnp.zeros((), jnp.int32))
    return jax.vmap(of_step)(jnp.arange(self.steps, dtype=jnp.int32))

  def _forgetting(self, leaf, step, dtype) -> dict[str, jax.Array]:
    """1 - rho of every role at one step; each must be one number."""
    factors = self.at(leaf, step, dtype).all_forgetting(step)
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
      for role, forgetting in self._factors(part).items():
        schedules[-1][role] = bit_buffer.schedule(forgetting, self.integer)
        known = hyperparameters.concrete(forgetting)
        if known is None:
          largest = 1 - dict(equations.floors)[role]
          known = np.full(forgetting.shape, largest)
          valid &= jnp.all((forgetting >= 0) & (forgetting <= largest))
        _check_factor(role, known, self.integer)
        bounds[-1][role] = known
    groups = [self._group(leaf) for leaf in range(len(self.part))]
    roles = [len(self.equations[part].fraction_bits) for part in self.part]
    return Spills(schedules, bounds, valid, groups, roles, self.integer)

  def _factors(self, part: int) -> dict[str, jax.Array]:
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

  def bars_of_roles(self, params_bar: jax.Array, slots_bar: dict) -> dict:
    """The cotangents of a leaf's floats, by role."""
    return {PARAMS: params_bar, **slots_bar}

  def bars_of_leaf(self, bars: dict) -> tuple[jax.Array, dict]:
    """Undoes `bars_of_roles`."""
    return bars[PARAMS], {r: bar for r, bar in bars.items() if r != PARAMS}

  def pack(self, arrays: Sequence[Any]) -> list[jax.Array]:
    """The parameters as the floats of leaves."""
    wide = [jnp.asarray(a, compute_dtype(jnp.result_type(a))) for a in arrays]
    return self.packing.pack(wide)

  def snapped(
    self, params: Sequence[jax.Array], dtypes: Sequence[Any]
  ) -> list[jax.Array]:
    """Packed parameters on their grid; differentiates as the identity."""

    def snap(values, i, dtype):
      bits = dict(self.equations[self.part[i]].fraction_bits)[PARAMS]
      integers = fixed_point.to_fixed(values, bits, self.integer)
      return self.view(i, Leaf(integers, {}, {}), dtype)

    rounded = [
      snap(lax.stop_gradient(values), i, dtype)
      for i, (values, dtype) in enumerate(zip(params, dtypes, strict=True))
    ]
    return [_as_if(new, old) for new, old in zip(rounded, params, strict=True)]

  def begin(self, params: list, spills: Spills, length: int) -> list[Leaf]:
    """The integers of packed parameters, slots at zero, buffers empty.

    The buffers have words for `length` steps.  If a traced factor is beyond
    its bound all integers are `overflow`.
    """
    leaves = []
    for values, part in zip(params, self.part, strict=True):
      bits = dict(self.equations[part].fraction_bits)
      start = fixed_point.to_fixed(values, bits[PARAMS], self.integer)
      start = jnp.where(spills.valid, start, fixed_point.overflow(self.integer))
      # Each slot has a buffer of its own, so that a step may donate them.
      slots = {r: jnp.zeros_like(start) for r in bits if r != PARAMS}
      multiplied = spills.schedules[part]
      begun = {PARAMS: start, **slots}
      buffers = {role: bit_buffer.init(begun[role], 0) for role in multiplied}
      leaves.append(Leaf(start, slots, buffers))
    return with_words(leaves, spills.rows(length))

  def forward(
    self, leaves: list, gradients: list, step: jax.Array, schedules: list
  ) -> list[Leaf]:
    """z' = rho z + phi for all roles in turn, of all leaves."""
    advanced = []
    for i, (leaf, gradient) in enumerate(zip(leaves, gradients, strict=True)):
      now = self.now(schedules, i, step)
      equations = self.at(i, step, gradient.dtype)
      for role in equations.roles:
        increment = self._increment(equations, role, leaf, gradient, step, now)
        leaf = advance(equations, role, leaf, increment, now)
      advanced.append(leaf)
    return advanced

  def undo_update(self, i: int, leaf: Leaf, step, now, dtype) -> Leaf:
    """The parameters before a step, and what followed them in it."""
    equations = self.at(i, step, dtype)
    return self._undo(equations, equations.late, leaf, None, step, now, dtype)

  def undo_increments(self, i: int, leaf: Leaf, gradient, step, now) -> Leaf:
    """The slots before a step, from its gradient."""
    dtype = gradient.dtype
    equations = self.at(i, step, dtype)
    return self._undo(
      equations, equations.early, leaf, gradient, step, now, dtype
    )

  def _undo(self, equations, roles, leaf, gradient, step, now, dtype) -> Leaf:
    for role in reversed(roles):
      increment = self._increment(
        equations, role, leaf, gradient, step, now, dtype
      )
      leaf = retreat(equations, role, leaf, increment, now)
    return leaf

  def _increment(
    self, equations, role, leaf, gradient, step, now, dtype=None
  ) -> jax.Array:
    """phi of a role, behind fences: its bits are the same both ways."""
    dtype = dtype or gradient.dtype
    values = {
      earlier: fence(value_after(equations, earlier, leaf, now, dtype), step)
      for earlier in equations.roles_before(role)
    }
    if role not in equations.early:
      gradient = None
    if gradient is not None:
      gradient = fence(gradient, step)
    if equations.contracts(role):
      increment = lambda equations, *args: equations.increment_of(role, *args)
      return isolate(increment, step, equations, gradient, values, step)
    return fence(equations.increment_of(role, gradient, values, step), step)

  def view(self, i: int, leaf: Leaf, dtype: DTypeLike) -> jax.Array:
    """The parameters of a leaf as floats, on the grid that is shown."""
    equations = self.equations[self.part[i]]
    bits, shown = dict(equations.fraction_bits)[PARAMS], equations.shown_bits
    if shown is None or shown >= bits:
      return fixed_point.from_fixed(leaf.params, bits, dtype)
    hidden = bits - shown
    rounded = (leaf.params + (1 << (hidden - 1))) >> hidden
    values = fixed_point.from_fixed(rounded, shown, dtype)
    return jnp.where(fixed_point.has_overflowed(leaf.params), jnp.nan, values)

  def views(self, leaves: list[Leaf], dtypes: Sequence[Any]) -> list[jax.Array]:
    """The parameters of all leaves as floats."""
    return [
      self.view(i, leaf, dtype)
      for i, (leaf, dtype) in enumerate(zip(leaves, dtypes, strict=True))
    ]

  def averages(
    self, leaves: list[Leaf], dtypes: Sequence[Any], schedules: list, count: Any
  ) -> list[jax.Array]:
    """The raw averages of the parameters of all leaves after so many steps."""
    last = jnp.maximum(count - 1, 0)
    return [
      value_after(
        self.equations[part], AVERAGE, leaf, self.now(schedules, i, last), dtype
      )
      for i, (leaf, dtype, part) in enumerate(
        zip(leaves, dtypes, self.part, strict=True)
      )
    ]

  def average_weights(self, count: jax.Array) -> list[jax.Array]:
    """What the weights in the average of each leaf add up to: 1 - prod rho."""
    weights = []
    for i in range(len(self.part)):
      log = self._log_factor(self.forgetting(i)[AVERAGE], count)
      weights.append(-jnp.expm1(log.total))
    return weights

  def check_slots(self, leaves: Sequence[Leaf]) -> None:
    """Raises ValueError unless leaves are those of such an optimizer.

    What an optimizer keeps can always be compared; see also `check_factors`.
    """
    if len(leaves) != len(self.part):
      raise ValueError(
        f"{_OTHER}: it has {len(leaves)} arrays of parameters, but "
        f"the optimizer has {len(self.part)}."
      )
    for leaf, part in zip(leaves, self.part, strict=True):
      roles = sorted(set(self.equations[part].roles) - {PARAMS})
      if sorted(leaf.slots) != roles:
        raise ValueError(
          f"{_OTHER}: it keeps {sorted(leaf.slots)}, but the optimizer keeps "
          f"{roles}."
        )
      decays = "weight_decay" in self.hyperparameters[part]
      if decays != (PARAMS in leaf.buffers):
        raise ValueError(
          f"{_OTHER}: its weight_decay was "
          + (
            "None, but the optimizer has one."
            if decays
            else "a number, but the optimizer's is None."
          )
        )
      if leaf.params.dtype != self.integer:
        raise ValueError(
          f"{_OTHER}: its integers are {leaf.params.dtype}, but those of the "
          f"optimizer are {self.integer}."
        )

  def check_factors(self, schedules: list, step: Any = None) -> None:
    """Raises ValueError if what is known of the factors says another optimizer.

    Args:
      schedules: of a state.
      step: the one to look at; by default all.
    """
    for part, own in enumerate(schedules):
      for role, forgetting in self._factors(part).items():
        then = own[role]
        arrays = map(
          hyperparameters.concrete, (then.before, then.after, forgetting)
        )
        known = [a.astype(np.float64) for a in arrays if a is not None]
        at = 0 if step is None else hyperparameters.concrete(step)
        if at is None or len(known) < 3:
          continue
        before, after, now = known
        if before.ndim != now.ndim:  # a batch of runs
          continue
        if step is not None:
          before, after, now = (a[at : at + 1] for a in (before, after, now))
        if before.shape != now.shape:
          raise ValueError(
            f"{_OTHER}: it has {before.shape[1]} factors of {role!r} for each "
            f"step, but the optimizer has {now.shape[1]}."
          )
        different = np.abs(before / after - (1 - now)) > 2.0**-20
        if np.any(different):
          row = tuple(np.argwhere(different)[0])
          hint = " (1 - learning_rate * weight_decay)" if role == PARAMS else ""
          raise ValueError(
            f"{_OTHER}: it multiplied {role!r}{hint} by "
            f"{before[row] / after[row]:.7g} in step {row[0] + at}, but the "
            f"optimizer by {1 - now[row]:.7g}."
          )

  def log_factors(self, count: jax.Array) -> list[compensated.Sum]:
    """Of an element of each leaf, what `count` steps multiply volume with."""
    factors = []
    for leaf in range(len(self.part)):
      log = compensated.zero(bit_buffer.layout(self.integer).float_dtype)
      with jax.ensure_compile_time_eval():  # what is known stays known
        forgetting = self.forgetting(leaf)
      for forgotten in forgetting.values():
        log = log.plus(self._log_factor(forgotten, count))
      factors.append(log)
    return factors

  def _log_factor(self, forgotten: jax.Array, count: jax.Array) -> Any:
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
    taken = jnp.arange(self.steps) < count
    return compensated.total_of(
      jax.tree.map(lambda a: jnp.where(taken, a, 0), terms)
    )


def add_bars(totals: dict, name: str, bars: list, step: Any) -> dict:
  """Adds cotangents at a step to those of one hyperparameter's values."""
  values = totals.get(name, ())
  for i, bar in enumerate(bars):
    values = hyperparameters.accumulate(values, i, step, bar)
  return {**totals, name: values} if bars else totals


def clip(gradients: list[jax.Array], thresholds: list[jax.Array]) -> list:
  """g <- g min(1, c / |g|), of all arrays together or of each on its own.

  Norms are those of gradients scaled by a power of two, which is exact, so
  that squares neither overflow nor vanish; at zero the derivative is that of
  the identity.
  """
  if not thresholds or not gradients:
    return gradients
  groups = [gradients] if len(thresholds) == 1 else [[g] for g in gradients]
  clipped = []
  for group, threshold in zip(groups, thresholds, strict=True):
    clipped += _clip_together(group, threshold)
  return clipped


def _clip_together(group: list[jax.Array], threshold: jax.Array) -> list:
  dtype = max((g.dtype for g in group), key=lambda d: d.itemsize)
  wide = [gradient.astype(dtype) for gradient in group]
  largest = [jnp.max(jnp.abs(g), initial=0) for g in wide]
  bound = jnp.finfo(dtype).maxexp - 2
  exponent = jnp.frexp(lax.stop_gradient(jnp.max(jnp.stack(largest))))[1]
  scale = jnp.ldexp(jnp.ones((), dtype), -jnp.clip(exponent, -bound, bound))
  scaled = [gradient * scale for gradient in wide]
  squares = jnp.sum(jnp.stack([jnp.sum(g * g) for g in scaled]))
  positive = squares > 0
  norm = jnp.sqrt(jnp.where(positive, squares, 1))
  large = positive & (norm > threshold.astype(dtype) * scale)
  factor = jnp.where(large, threshold.astype(dtype) / norm, 1)
  return [
    jnp.where(large, small * factor, whole).astype(gradient.dtype)
    for small, whole, gradient in zip(scaled, wide, group, strict=True)
  ]


@jax.custom_jvp
def _as_if(value: jax.Array, other: jax.Array) -> jax.Array:
  """The value, which differentiates as if it were the other."""
  return value


_as_if.defjvp(lambda primals, tangents: (primals[0], tangents[1]))


def compute_dtype(dtype: DTypeLike) -> DTypeLike:
  """Where gradients and adjoints of parameters of a type are computed."""
  narrow = jnp.dtype(dtype).itemsize < 4
  return jnp.dtype("float32") if narrow else jnp.dtype(dtype)


def _check_factor(role: str, forgetting: np.ndarray, integer: Any) -> None:
  factors = 1 - forgetting
  smallest = bit_buffer.layout(integer).smallest_factor
  if np.all(forgetting >= 0) and np.all(factors >= smallest):
    return
  bad = factors[~((forgetting >= 0) & (factors >= smallest))].flat[0]
  raise ValueError(
    f"{role!r} would be multiplied by {bad} in a step; a factor must lie in "
    f"[{smallest}, 1].  A step that multiplies by 0 forgets the value, so it "
    "has no inverse; a factor below the bound spills more than one word a "
    "step; one above 1 would need bits that were never stored."
  )
