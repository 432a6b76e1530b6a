"""The integers of an optimizer's run, one step forward and one step back.

`ReversibleOptimizer` holds what a user chooses; `Dynamics` is that choice
resolved for one run: every hyperparameter has a value for each parameter array
and step, so that steps can be taken in a scan.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct
from jax import lax
from jax.typing import DTypeLike

from revmom.exact import bit_buffer, fixed_point
from revmom.exact.bit_buffer import BitBuffer, Schedule
from revmom.optimizers import hyperparameters
from revmom.optimizers.hyperparameters import PerStep

PARAMS = "params"


class Leaf(NamedTuple):
  """The integers of one parameter array."""

  params: jax.Array
  slots: dict[str, jax.Array]
  buffers: dict[str, BitBuffer]  # of the roles that are multiplied


def with_words(leaves: list[Leaf], rows: list[dict[str, int]]) -> list[Leaf]:
  """The leaves with empty words; rows of each group, see `Spills.rows`."""
  renewed = []
  for i, leaf in enumerate(leaves):
    own = rows[i if len(rows) > 1 else 0]
    buffers = {
      role: buffer._replace(
        words=bit_buffer.init(buffer.remainder, own[role]).words
      )
      for role, buffer in leaf.buffers.items()
    }
    renewed.append(leaf._replace(buffers=buffers))
  return renewed


class Spills(NamedTuple):
  """When the buffers of a run spill, and how large they get."""

  schedules: dict[str, Schedule]  # role -> [steps, groups]
  bounds: dict[str, np.ndarray]  # role -> largest 1 - rho, [steps, groups]
  valid: jax.Array  # bool []: no traced factor is beyond its bound
  slots: int  # roles besides the parameters
  integer: Any

  def rows(self, length: int) -> list[dict[str, int]]:
    """For each group, role -> words an element spills in so many steps."""
    groups = max((b.shape[1] for b in self.bounds.values()), default=1)
    return [
      {
        role: bit_buffer.rows_needed(bound[:, group], self.integer, length)
        for role, bound in self.bounds.items()
      }
      for group in range(groups)
    ]

  def words_per_step(self, sizes: list[int]) -> float:
    """Bytes that arrays of these sizes spill in a step, on average."""
    total = 0.0
    for i, size in enumerate(sizes):
      for bound in self.bounds.values():
        factors = 1 - bound[:, i if bound.shape[1] > 1 else 0]
        total -= size * float(np.sum(np.log2(factors))) / 8
    return total / max(1, *(len(b) for b in self.bounds.values()))


class Dynamics(struct.PyTreeNode):
  """An optimizer's equations with the hyperparameters of one run."""

  hyperparameters: dict[str, tuple]  # name -> one value, or one for each leaf
  equations: Any = struct.field(pytree_node=False)  # the optimizer, emptied
  steps: int = struct.field(pytree_node=False)

  def at(self, leaf: int, step: jax.Array, dtype: DTypeLike) -> Any:
    """The optimizer of one parameter array at one step, of scalars."""
    values = {
      name: hyperparameters.at(values, leaf, step, dtype)
      for name, values in self.hyperparameters.items()
    }
    return self.equations.replace(**values)

  def forgetting(self, leaf: int) -> dict[str, jax.Array]:
    """1 - rho of every role, [] if no step differs from another or [steps]."""
    dtype = bit_buffer.layout(self.equations.integer).float_dtype
    of_step = lambda step: self._forgetting(leaf, step, dtype)
    varies = any(
      isinstance(values[leaf if len(values) > 1 else 0], PerStep)
      for values in self.hyperparameters.values()
    )
    if not varies and not self.equations.forgetting_varies:
      return of_step(jnp.zeros((), jnp.int32))
    return jax.vmap(of_step)(jnp.arange(self.steps, dtype=jnp.int32))

  def _forgetting(self, leaf, step, dtype) -> dict[str, jax.Array]:
    """1 - rho of every role at one step; each must be one number."""
    factors = self.at(leaf, step, dtype).forgetting(step)
    for role, forgotten in factors.items():
      if jnp.ndim(forgotten):
        raise ValueError(
          f"the factor of {role!r} has shape {jnp.shape(forgotten)} within one "
          "parameter array; a factor must be one number for a whole array, "
          "because all its elements spill together."
        )
    return factors

  @property
  def groups(self) -> int:
    """1 if all parameter arrays share their hyperparameters."""
    return max((len(v) for v in self.hyperparameters.values()), default=1)

  def spills(self) -> "Spills":
    """When the buffers of a run spill; nothing here differentiates.

    Raises:
      ValueError: a factor is known and has no inverse.
    """
    integer = self.equations.integer
    # Inside jit too, factors that are known should size the buffers.
    with jax.ensure_compile_time_eval():
      fixed = lax.stop_gradient(self)
      groups = [fixed.forgetting(group) for group in range(self.groups)]
      factors = {
        role: jnp.stack(
          [jnp.broadcast_to(g[role], (self.steps,)) for g in groups], -1
        )
        for role in groups[0]
      }
    schedules: dict[str, Schedule] = {}
    bounds: dict[str, np.ndarray] = {}
    valid = jnp.ones((), bool)
    for role, forgetting in factors.items():
      schedules[role] = bit_buffer.schedule(forgetting, integer)
      known = hyperparameters.concrete(forgetting)
      if known is None:
        largest = 1 - dict(self.equations.floors)[role]
        known = np.full(forgetting.shape, largest)
        valid &= jnp.all((forgetting >= 0) & (forgetting <= largest))
      _check_factor(role, known, integer)
      bounds[role] = known
    slots = len(self.equations.fraction_bits) - 1
    return Spills(schedules, bounds, valid, slots, integer)

  def begin(self, params: list, spills: Spills, length: int) -> list[Leaf]:
    """The integers of the parameters, slots at zero, buffers empty.

    The buffers have words for `length` steps.  If a traced factor is beyond
    its bound all integers are `overflow`.
    """
    integer = self.equations.integer
    bits = dict(self.equations.fraction_bits)
    leaves = []
    for values in params:
      start = fixed_point.to_fixed(_widen(values), bits[PARAMS], integer)
      start = jnp.where(spills.valid, start, fixed_point.overflow(integer))
      zero = jnp.zeros_like(start)
      slots = {role: zero for role in bits if role != PARAMS}
      buffers = {role: bit_buffer.init(zero, 0) for role in spills.schedules}
      leaves.append(Leaf(start, slots, buffers))
    return with_words(leaves, spills.rows(length))

  def forward(
    self, leaves: list, gradients: list, step: jax.Array, schedules: dict
  ) -> list[Leaf]:
    """z' = rho z + phi(g); theta' = rho theta + u(z'), for all leaves."""
    return [
      self._forward(i, leaf, gradient, step, self.now(schedules, i, step))
      for i, (leaf, gradient) in enumerate(zip(leaves, gradients, strict=True))
    ]

  def _forward(self, i, leaf, gradient, step, now) -> Leaf:
    equations = self.at(i, step, gradient.dtype)
    buffers = dict(leaf.buffers)

    def advance(role, integers, increment):
      increment = self._fix(role, increment)
      if role not in now:
        return fixed_point.add(integers, increment)
      integers, buffers[role] = bit_buffer.multiply_add(
        integers, buffers[role], now[role], increment
      )
      return integers

    increments = equations.increments(gradient, step)
    slots = {
      role: advance(role, z, increments[role]) for role, z in leaf.slots.items()
    }
    update = equations.update(self._views(slots, gradient.dtype), step)
    return Leaf(advance(PARAMS, leaf.params, update), slots, buffers)

  def undo_update(self, i: int, leaf: Leaf, step, now, dtype) -> Leaf:
    """theta = (theta' - u(z')) / rho_theta."""
    update = self.at(i, step, dtype).update(
      self._views(leaf.slots, dtype), step
    )
    params = fixed_point.subtract(leaf.params, self._fix(PARAMS, update))
    return self._unscale(PARAMS, leaf._replace(params=params), now)

  def undo_increments(self, i: int, leaf: Leaf, gradient, step, now) -> Leaf:
    """z = (z' - phi(g)) / rho."""
    increments = self.at(i, step, gradient.dtype).increments(gradient, step)
    for role, z in leaf.slots.items():
      z = fixed_point.subtract(z, self._fix(role, increments[role]))
      leaf = leaf._replace(slots={**leaf.slots, role: z})
      leaf = self._unscale(role, leaf, now)
    return leaf

  def _unscale(self, role: str, leaf: Leaf, now) -> Leaf:
    if role not in now:
      return leaf
    integers = leaf.params if role == PARAMS else leaf.slots[role]
    buffer = leaf.buffers[role]
    integers, remainder = bit_buffer.divide(integers, buffer, now[role])
    buffers = {**leaf.buffers, role: buffer._replace(remainder=remainder)}
    if role == PARAMS:
      return leaf._replace(params=integers, buffers=buffers)
    return leaf._replace(slots={**leaf.slots, role: integers}, buffers=buffers)

  def now(self, schedules: dict, leaf: int, step: jax.Array) -> dict:
    """One step of the schedules of one leaf."""
    group = leaf if self.groups > 1 else 0
    pick = lambda a: lax.dynamic_index_in_dim(a, step, keepdims=False)[group]
    return jax.tree.map(pick, schedules)

  def view(self, leaf: Leaf, dtype: DTypeLike) -> jax.Array:
    """The parameters as floats, on the grid that is shown."""
    bits = dict(self.equations.fraction_bits)[PARAMS]
    shown = self.equations.shown_bits
    if shown is None or shown >= bits:
      return fixed_point.from_fixed(leaf.params, bits, dtype)
    hidden = bits - shown
    rounded = (leaf.params + (1 << (hidden - 1))) >> hidden
    return fixed_point.from_fixed(rounded, shown, dtype)

  def _views(self, slots: dict, dtype: DTypeLike) -> dict[str, jax.Array]:
    bits = dict(self.equations.fraction_bits)
    return {
      role: fixed_point.from_fixed(z, bits[role], dtype)
      for role, z in slots.items()
    }

  def slot_views(self, leaf: Leaf, dtype: DTypeLike) -> dict[str, jax.Array]:
    """The slots as floats."""
    return self._views(leaf.slots, dtype)

  def _fix(self, role: str, increment: jax.Array) -> jax.Array:
    bits = dict(self.equations.fraction_bits)[role]
    return fixed_point.to_fixed(increment, bits, self.equations.integer)


def _widen(values: Any) -> jax.Array:
  values = jnp.asarray(values)
  return values.astype(compute_dtype(values.dtype))


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
