"""A run through all layers, and the reverse pass that restores it."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from revmom.depth import gates, receipt, tangent
from revmom.depth.receipt import Kept
from revmom.exact import bit_buffer, fixed_point, gate_buffer
from revmom.exact.capacities import Schedule
from revmom.exact.fence import origin
from revmom.steps import equations as steps
from revmom.steps.leaf import Leaf

_THRICE = (
  "reversible_scan can't be differentiated three times.  Use the same layers "
  "in jax.lax.scan for third derivatives."
)
_OUTPUTS_TWICE = (
  "reversible_scan with outputs can't be differentiated twice.  Use the same "
  "layers in jax.lax.scan for second derivatives, or let the loss depend on "
  "the final carry alone."
)


def scanned(
  layer_of: Callable,
  read: Callable | None,
  roles: tuple,
  rows: dict,
  depth: int,
  order: int = 2,
) -> Callable[[tuple, list, tuple], tuple[list, Any, Kept]]:
  """(inputs, own, timing) -> the final carry, the outputs, and `Kept`.

  Args:
    layer_of: (*inputs after the carry, t) -> the equations of a layer.
    read: (own, a layer's parameters, *carry) -> its outputs, or None.
    roles: of the arrays of the carry.
    rows: by the role, how much memory its buffer needs.
    depth: how many layers there are.
    order: of the derivatives that it has.
  """

  def now(schedules: dict[str, Schedule], t: jax.Array) -> dict:
    return jax.tree.map(lambda a: a[t, 0], schedules)

  def begin(carry: list, valid: jax.Array) -> Leaf:
    integers: dict = {}
    buffers: dict = {}
    for role, array in zip(roles, carry, strict=True):
      start = fixed_point.to_fixed(array, role.bits, role.integer)
      beyond = fixed_point.overflow(role.integer)
      integers[role.name] = jnp.where(valid, start, beyond)
      if role.name in rows:
        kind: Any = bit_buffer if role.least_gate is None else gate_buffer
        buffers[role.name] = kind.init(integers[role.name], rows[role.name])
    return Leaf(integers, buffers)

  def floats(leaf: Leaf, dtype: Any) -> list[jax.Array]:
    return [
      fixed_point.from_fixed(leaf.integers[role.name], role.bits, dtype)
      for role in roles
    ]

  @jax.custom_vjp
  def run(inputs: tuple, own: list, timing: tuple) -> tuple[list, Any, Kept]:
    (carry, *rest), (schedules, valid) = inputs, timing
    dtype = carry[0].dtype
    start = begin(carry, valid)
    zero = origin([start.integers[roles[0].name]])

    def step(leaf, t):
      layer = layer_of(*rest, t)
      after = steps.forward(layer, leaf, None, t, now(schedules, t), dtype)
      outputs = None
      if read is not None:
        outputs = read(own, layer.params, *floats(after, dtype))
      return after, (outputs, receipt.hash_of(leaf, t))

    places = zero + jnp.arange(depth, dtype=jnp.int32)
    leaf, (outputs, hashes) = lax.scan(step, start, places)
    lost = leaf.overflowed | gates.are_full(leaf)
    views = [jnp.where(lost, jnp.nan, view) for view in floats(leaf, dtype)]
    return views, outputs, Kept(leaf, hashes)

  def run_forward(inputs, own, timing):
    views, outputs, kept = run(inputs, own, timing)
    return (views, outputs, kept), (inputs, own, timing, kept)

  def run_backward(residuals, bars):
    views_bar, outputs_bar, _ = bars
    return *pull_back(*residuals, views_bar, outputs_bar), None

  run.defvjp(run_forward, run_backward)

  @jax.custom_vjp
  def pull_back(
    inputs, own, timing, kept: Kept, views_bar: list, outputs_bar: Any
  ) -> tuple:
    (carry, *rest), (schedules, _) = inputs, timing
    leaf, dtype = kept.leaf, carry[0].dtype
    zero = origin([leaf.integers[roles[0].name]])
    words = leaf.words()

    def step(state, place):
      leaf, bars, shared, diverged_at = state
      t, outputs_bar = place
      layer, schedule = layer_of(*rest, t), now(schedules, t)
      after = leaf.with_words(words)
      own_bar, more_bar = None, None
      if read is not None:
        pull = jax.vjp(read, own, layer.params, *floats(after, dtype))[1]
        own_bar, more_bar, *views_bar = pull(outputs_bar)
        for role, bar in zip(roles, views_bar, strict=True):
          bars = bars | {role.name: bars[role.name] + bar}
      before, rounded = steps.retrace(
        layer, roles, after, None, t, schedule, dtype
      )
      bars, _, layer_bars = steps.pull_back(
        layer, roles, after, before, None, bars, t, schedule, dtype, rounded
      )
      total: Any = jax.tree.map(_sum, *layer_bars)
      params_bar = total.params
      if read is not None:
        params_bar = jax.tree.map(_sum, params_bar, more_bar)
      shared = jax.tree.map(
        jnp.add, shared, _floats((total.constants, own_bar))
      )
      stacked = _floats(params_bar), total.decays
      diverged_at = receipt.compare(kept, before, t, diverged_at)
      return (before.bare(), bars, shared, diverged_at), stacked

    bars = {r.name: bar for r, bar in zip(roles, views_bar, strict=True)}
    shared = jax.tree.map(
      lambda a: jnp.zeros_like(a) if _is_float(a) else None,
      (rest[1], None if read is None else own),
    )
    state = leaf.bare(), bars, shared, jnp.int32(-1)
    places = zero + jnp.arange(depth, dtype=jnp.int32)
    (back, bars, shared, diverged_at), stacked = lax.scan(
      step, state, (places, outputs_bar), reverse=True
    )
    # Bytes that no layer asked for are as wrong as any before the first one.
    unread = (diverged_at < 0) & ~gates.are_read(back)
    diverged_at = jnp.where(unread, 0, diverged_at)
    proven = receipt.proven(leaf, diverged_at)
    params_bar, decays_bar = jax.tree.map(proven, stacked)
    constants_bar, own_bar = jax.tree.map(proven, shared)
    carry_bar = [proven(bars[role.name]) for role in roles]
    others = [None] * (len(rest) - 3)
    inputs_bar = carry_bar, params_bar, constants_bar, decays_bar, *others
    return inputs_bar, [] if read is None else own_bar

  def pull_back_forward(inputs, own, timing, kept, views_bar, outputs_bar):
    if order < 2:
      raise ValueError(_THRICE)
    if read is not None:
      raise ValueError(_OUTPUTS_TWICE)
    bars = pull_back(inputs, own, timing, kept, views_bar, outputs_bar)
    return bars, (inputs, timing, views_bar)

  def pull_back_backward(residuals, along):
    inputs, timing, views_bar = residuals

    def change(inputs):
      """How the results change where the inputs do so along `along`."""
      twice = tangent.of(layer_of, roles, rows, inputs, timing, along[0], depth)
      both = scanned(twice.layer_of, None, twice.roles, twice.rows, depth, 1)
      return twice.views(both(twice.inputs, [], twice.timing)[0])

    found, pull = jax.vjp(change, inputs)
    (inputs_bar,) = pull(views_bar)
    return _floats(inputs_bar), [], None, None, found, None

  pull_back.defvjp(pull_back_forward, pull_back_backward)
  return run


def _is_float(array: jax.Array) -> bool:
  return jnp.issubdtype(array.dtype, jnp.inexact)


def _sum(first: Any, *others: Any) -> Any:
  return first if first.dtype == jax.dtypes.float0 else sum(others, first)


def _floats(bars: Any) -> Any:
  """Cotangents, None for arrays of integers."""
  return jax.tree.map(
    lambda bar: None if bar.dtype == jax.dtypes.float0 else bar, bars
  )
