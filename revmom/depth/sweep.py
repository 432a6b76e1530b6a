"""A run through all layers, and the reverse pass that restores it."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from revmom.depth import gates
from revmom.exact import bit_buffer, fixed_point, gate_buffer
from revmom.exact.capacities import Schedule
from revmom.exact.fence import origin
from revmom.exact.refusal import refuse_derivative
from revmom.steps import equations as steps
from revmom.steps.checksum import checksum
from revmom.steps.leaf import Leaf

_TWICE = (
  "reversible_scan can't be differentiated twice: its reverse pass restores "
  "integers, through which a derivative would be zero.  Use the same layers in "
  "jax.lax.scan for second derivatives."
)


def scanned(
  layer_of: Callable,
  read: Callable | None,
  roles: tuple,
  rows: dict,
  depth: int,
) -> Callable[[tuple, tuple], tuple[list, Any, dict]]:
  """(inputs, timing) -> the final carry, the outputs, and bits that are kept.

  Args:
    layer_of: (params, constants, decays, t) -> the equations of a layer.
    read: (constants, a layer's parameters, *carry) -> its outputs, or None.
    roles: of the arrays of the carry.
    rows: by the role, how much memory its buffer needs.
    depth: how many layers there are.
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

  def forward(inputs: tuple, timing: tuple) -> tuple[tuple, Leaf]:
    (carry, *rest, own), (schedules, valid) = inputs, timing
    dtype = carry[0].dtype
    start = begin(carry, valid)
    zero = origin([start.integers[roles[0].name]])

    def step(leaf, t):
      layer = layer_of(*rest, t)
      leaf = steps.forward(layer, leaf, None, t, now(schedules, t), dtype)
      if read is None:
        return leaf, None
      return leaf, read(own, layer.params, *floats(leaf, dtype))

    places = zero + jnp.arange(depth, dtype=jnp.int32)
    leaf, outputs = lax.scan(step, start, places)
    lost = leaf.overflowed | gates.are_full(leaf)
    views = [jnp.where(lost, jnp.nan, view) for view in floats(leaf, dtype)]
    return (views, outputs, gates.bits_kept_in(leaf)), leaf

  @jax.custom_vjp
  def run(inputs: tuple, timing: tuple) -> tuple:
    return forward(inputs, timing)[0]

  def run_forward(inputs, timing):
    inputs = refuse_derivative(inputs, _TWICE)
    results, leaf = forward(inputs, timing)
    first = checksum([begin(inputs[0], timing[1]).bare()])
    return results, (inputs, timing[0], leaf, first)

  def run_backward(residuals, results_bar):
    (carry, *rest, own), schedules, leaf, first = residuals
    views_bar, outputs_bar, _ = results_bar
    dtype = carry[0].dtype
    zero = origin([leaf.integers[roles[0].name]])
    words = leaf.words()

    def step(state, place):
      leaf, bars, shared = state
      t, outputs_bar = place
      layer, own_now = layer_of(*rest, t), now(schedules, t)
      after = leaf.with_words(words)
      own_bar, more_bar = None, None
      if read is not None:
        pull = jax.vjp(read, own, layer.params, *floats(after, dtype))[1]
        own_bar, more_bar, *views_bar = pull(outputs_bar)
        for role, bar in zip(roles, views_bar, strict=True):
          bars = bars | {role.name: bars[role.name] + bar}
      before, rounded = steps.retrace(
        layer, roles, after, None, t, own_now, dtype
      )
      bars, _, layer_bars = steps.pull_back(
        layer, roles, after, before, None, bars, t, own_now, dtype, rounded
      )
      total: Any = jax.tree.map(_sum, *layer_bars)
      params_bar = total.params
      if read is not None:
        params_bar = jax.tree.map(_sum, params_bar, more_bar)
      shared = jax.tree.map(
        jnp.add, shared, _floats((total.constants, own_bar))
      )
      return (before.bare(), bars, shared), (_floats(params_bar), total.decays)

    bars = {r.name: bar for r, bar in zip(roles, views_bar, strict=True)}
    shared = jax.tree.map(
      lambda a: jnp.zeros_like(a) if _is_float(a) else None,
      (rest[1], None if read is None else own),
    )
    state = leaf.bare(), bars, shared
    places = zero + jnp.arange(depth, dtype=jnp.int32)
    (back, bars, shared), stacked = lax.scan(
      step, state, (places, outputs_bar), reverse=True
    )
    restored = jnp.all(checksum([back]) == first) & ~jnp.any(leaf.overflowed)
    restored &= gates.are_read(back) & ~gates.are_full(leaf)
    # A reversal that failed must not return a plausible number.
    proven = lambda bar: jnp.where(restored, bar, jnp.nan)
    params_bar, decays_bar = jax.tree.map(proven, stacked)
    constants_bar, own_bar = jax.tree.map(proven, shared)
    carry_bar = [proven(bars[role.name]) for role in roles]
    if read is None:
      own_bar = []
    return (carry_bar, params_bar, constants_bar, decays_bar, own_bar), None

  run.defvjp(run_forward, run_backward)
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
