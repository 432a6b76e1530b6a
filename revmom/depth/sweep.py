"""A run through all layers, and the reverse pass that restores it."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from revmom.depth import gates, receipt, tangent
from revmom.depth.cotangents import is_float, of_floats, only_floats, total
from revmom.depth.receipt import Kept
from revmom.exact import bit_buffer, fixed_point, gate_buffer
from revmom.exact.capacities import Schedule
from revmom.exact.fence import origin
from revmom.steps import equations as steps
from revmom.steps.leaf import Leaf, Role

_THRICE = (
  "reversible_scan can't be differentiated three times.  Use the same layers "
  "in jax.lax.scan for third derivatives."
)


class Sweep(NamedTuple):
  """Layers, one after the other.

  Its inputs are (carry, what `read` closes over, params, constants, decays) and
  whatever else `layer_of` takes; its timing is (schedules, whether they are
  right).
  """

  # (*inputs after the second, t) -> the equations of a layer
  layer_of: Callable
  read: Callable | None  # (what it closes over, layer, *carry) -> its outputs
  roles: tuple[Role, ...]
  rows: dict[str, int]  # by the role, how much memory its buffer needs
  depth: int

  def begin(self, carry: list, valid: jax.Array) -> Leaf:
    """The integers before all layers."""
    integers: dict = {}
    buffers: dict = {}
    for role, array in zip(self.roles, carry, strict=True):
      start = fixed_point.to_fixed(array, role.bits, role.integer)
      beyond = fixed_point.overflow(role.integer)
      integers[role.name] = jnp.where(valid, start, beyond)
      if role.name in self.rows:
        kind: Any = bit_buffer if role.least_gate is None else gate_buffer
        rows = self.rows[role.name]
        buffers[role.name] = kind.init(integers[role.name], rows)
    return Leaf(integers, buffers)

  def floats(self, leaf: Leaf, dtype: Any) -> list[jax.Array]:
    """The carry."""
    return [
      fixed_point.from_fixed(leaf.integers[role.name], role.bits, dtype)
      for role in self.roles
    ]

  def places(self, leaf: Leaf) -> jax.Array:
    """The numbers of the layers; no compiler knows them."""
    zero = origin([leaf.integers[self.roles[0].name]])
    return zero + jnp.arange(self.depth, dtype=jnp.int32)

  def forward(self, inputs: tuple, timing: tuple) -> tuple[list, Any, Kept]:
    """The final carry, the outputs, and what the reverse pass needs."""
    (carry, own, *rest), (schedules, valid) = inputs, timing
    dtype = carry[0].dtype

    def step(leaf, t):
      layer = self.layer_of(*rest, t)
      after = steps.forward(layer, leaf, None, t, _now(schedules, t), dtype)
      outputs = None
      if self.read is not None:
        outputs = self.read(own, layer, *self.floats(after, dtype))
      return after, (outputs, receipt.hash_of(leaf, t))

    start = self.begin(carry, valid)
    leaf, (outputs, hashes) = lax.scan(step, start, self.places(start))
    full = gates.are_full(leaf)
    lost = leaf.overflowed | full
    views = [
      jnp.where(lost, jnp.nan, view) for view in self.floats(leaf, dtype)
    ]
    if any(role.least_gate is not None for role in self.roles):
      outputs = jax.tree.map(
        lambda a: jnp.where(full, jnp.nan, a) if is_float(a) else a, outputs
      )
    return views, outputs, Kept(leaf, hashes)

  def backward(
    self,
    inputs: tuple,
    timing: tuple,
    kept: Kept,
    views_bar: list,
    outputs_bar: Any,
  ) -> tuple:
    """Cotangents of the inputs, None for what is of integers."""
    (carry, own, *rest), (schedules, _) = inputs, timing
    dtype = carry[0].dtype
    words = kept.leaf.words()

    def step(state, place):
      leaf, bars, shared, diverged_at = state
      t, outputs_bar = place
      layer, now = self.layer_of(*rest, t), _now(schedules, t)
      after = leaf.with_words(words)
      own_bar, read_bar, bars = self._read_back(
        own, layer, after, bars, outputs_bar, dtype
      )
      before, rounded = steps.retrace(
        layer, self.roles, after, None, t, now, dtype
      )
      bars, _, layer_bars = steps.pull_back(
        layer, self.roles, after, before, None, bars, t, now, dtype, rounded
      )
      layer_bar = total([*layer_bars, *read_bar])
      shared = jax.tree.map(
        jnp.add, shared, of_floats((layer_bar.constants, own_bar))
      )
      diverged_at = receipt.compare(kept, before, t, diverged_at)
      stacked = of_floats(layer_bar.params), layer_bar.decays
      return (before.bare(), bars, shared, diverged_at), stacked

    names = [role.name for role in self.roles]
    bars = dict(zip(names, views_bar, strict=True))
    shared = jax.tree.map(
      lambda a: jnp.zeros_like(a) if is_float(a) else None, (rest[1], own)
    )
    state = kept.leaf.bare(), bars, shared, jnp.int32(-1)
    (_, bars, shared, diverged_at), stacked = lax.scan(
      step, state, (self.places(kept.leaf), outputs_bar), reverse=True
    )
    proven = receipt.proven(kept.leaf, diverged_at)
    params_bar, decays_bar = jax.tree.map(proven, stacked)
    constants_bar, own_bar = jax.tree.map(proven, shared)
    carry_bar = [proven(bars[name]) for name in names]
    others = [None] * (len(rest) - 3)
    return (carry_bar, own_bar, params_bar, constants_bar, decays_bar, *others)

  def _read_back(self, own, layer, after, bars, outputs_bar, dtype) -> tuple:
    """The adjoint of the outputs: cotangents of all that they see."""
    if self.read is None:
      return own, [], bars  # it closes over nothing
    read = lambda *args: only_floats(self.read(*args))
    pull = jax.vjp(read, own, layer, *self.floats(after, dtype))[1]
    own_bar, layer_bar, *seen_bars = pull(outputs_bar)
    for role, bar in zip(self.roles, seen_bars, strict=True):
      bars = bars | {role.name: bars[role.name] + bar}
    return own_bar, [layer_bar], bars


def scanned(
  sweep: Sweep, order: int = 2
) -> Callable[[tuple, tuple], tuple[list, Any, Kept]]:
  """(inputs, timing) -> the final carry, the outputs and `Kept`.

  Args:
    sweep: the layers.
    order: of the derivatives that it has.
  """

  @jax.custom_vjp
  def run(inputs: tuple, timing: tuple) -> tuple[list, Any, Kept]:
    return sweep.forward(inputs, timing)

  def run_forward(inputs, timing):
    results = run(inputs, timing)
    return results, (inputs, timing, results[2])

  def run_backward(residuals, results_bar):
    views_bar, outputs_bar, _ = results_bar
    return pull_back(*residuals, views_bar, of_floats(outputs_bar)), None

  run.defvjp(run_forward, run_backward)

  @jax.custom_vjp
  def pull_back(inputs, timing, kept, views_bar, outputs_bar) -> tuple:
    return sweep.backward(inputs, timing, kept, views_bar, outputs_bar)

  def pull_back_forward(inputs, timing, kept, *results_bar):
    if order < 2:
      raise ValueError(_THRICE)
    bars = pull_back(inputs, timing, kept, *results_bar)
    return bars, (inputs, timing, results_bar)

  def pull_back_backward(residuals, along):
    inputs, timing, results_bar = residuals

    def change(inputs):
      """How the results change where the inputs do so along `along`."""
      twice = tangent.of(sweep, inputs, timing, along)
      both = Sweep(
        twice.layer_of, twice.read, twice.roles, twice.rows, sweep.depth
      )
      views, outputs, _ = scanned(both, 1)(twice.inputs, twice.timing)
      return twice.views(views), outputs

    found, pull = jax.vjp(change, inputs)
    (inputs_bar,) = pull(results_bar)
    return of_floats(inputs_bar), None, None, *found

  pull_back.defvjp(pull_back_forward, pull_back_backward)
  return run


def _now(schedules: dict[str, Schedule], t: jax.Array) -> dict:
  return jax.tree.map(lambda a: a[t, 0], schedules)
