"""The integers of an optimizer's run, one step forward and one step back."""

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from revmom.exact import bit_buffer, fixed_point
from revmom.exact.fence import origin
from revmom.exact.pytree import static
from revmom.optimizers import hyperparameters
from revmom.optimizers.gradients import compute_dtype
from revmom.optimizers.packing import Packing
from revmom.optimizers.resolved import Resolved, log_factor
from revmom.optimizers.slot import AVERAGE, PARAMS
from revmom.optimizers.spills import Spills
from revmom.steps import equations as steps
from revmom.steps.leaf import Leaf

Bars = dict[str, jax.Array]  # cotangents of a leaf's floats, by role


class Dynamics(Resolved):
  """What a step does to the integers of a run; it can be taken in a scan."""

  packing: Packing = static()  # of arrays in leaves

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
      # Spread over devices as the parameters are, see `bit_buffer.empty_words`.
      # Each slot has a buffer of its own, so that a step may donate them.
      zero = origin([start]).astype(start.dtype)
      begun = {r.name: start * zero for r in roles} | {PARAMS: start}
      buffers = {
        name: bit_buffer.init(begun[name], 0) for name in spills.schedules[part]
      }
      leaves.append(Leaf(begun, buffers))
    rows = spills.rows(length)
    return [leaf.with_rows(n) for leaf, n in zip(leaves, rows, strict=True)]

  def checked(self, leaves: list[Leaf], valid: jax.Array) -> list[Leaf]:
    """The leaves, off their grid unless something is true."""
    lost = fixed_point.overflow(self.integer)
    off = lambda leaf: jnp.where(valid, leaf.integers[PARAMS], lost)
    return [leaf.put(PARAMS, off(leaf), None) for leaf in leaves]

  def forward(
    self,
    leaves: list[Leaf],
    gradients: list,
    step: Any,
    schedules: list,
    settle: Any = None,
  ) -> list[Leaf]:
    """One step: z' = rho z + phi for all roles in turn, of all leaves.

    Args:
      leaves: before the step.
      gradients: as they are consumed.
      step: int32 [].
      schedules: of the run.
      settle: (leaf, role, increment) -> increment; see `equations.Settle`.
    """
    return [
      steps.forward(
        self.at(i, step),
        leaf,
        gradient,
        step,
        self.now(schedules, i, step),
        self.dtypes[i],
        _of_leaf(settle, i),
      )
      for i, (leaf, gradient) in enumerate(zip(leaves, gradients, strict=True))
    ]

  def undo_update(
    self, leaves: list[Leaf], step: Any, schedules: list, settle: Any = None
  ) -> list[Leaf]:
    """The parameters before a step, and what followed them in it."""
    return self._undo(leaves, [None] * len(leaves), step, schedules, settle)

  def undo_increments(
    self,
    leaves: list[Leaf],
    gradients: list,
    step: Any,
    schedules: list,
    settle: Any = None,
  ) -> list[Leaf]:
    """The slots before a step, from its gradients."""
    return self._undo(leaves, gradients, step, schedules, settle)

  def _undo(self, leaves, gradients, step, schedules, settle) -> list[Leaf]:
    undone = []
    for i, (leaf, gradient) in enumerate(zip(leaves, gradients, strict=True)):
      equations, now = self.at(i, step), self.now(schedules, i, step)
      roles = equations.late if gradient is None else equations.early
      undone.append(
        steps.undo(
          equations,
          roles,
          leaf,
          gradient,
          step,
          now,
          self.dtypes[i],
          _of_leaf(settle, i),
        )
      )
    return undone

  def words_of(
    self, leaves: list[Leaf], step: Any, schedules: list
  ) -> list[dict[str, jax.Array | None]]:
    """The words that a step spilled, [1, ...]; any where it spilled none."""
    found: list[dict] = []
    for i, leaf in enumerate(leaves):
      now = self.now(schedules, i, step)
      found.append({})
      for name, words in leaf.words().items():
        own = None
        if words is not None:
          own = lax.dynamic_index_in_dim(words, now[name].row)
        found[-1][name] = own
    return found

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


def _of_leaf(settle: Any, leaf: int) -> steps.Settle | None:
  return (
    None if settle is None else lambda name, values: settle(leaf, name, values)
  )


@jax.custom_jvp
def _as_if(value: jax.Array, other: jax.Array) -> jax.Array:
  """The value, which differentiates as if it were the other."""
  return value


_as_if.defjvp(lambda primals, tangents: (primals[0], tangents[1]))
