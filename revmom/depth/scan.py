"""A scan over layers that restores its activations instead of keeping them.

A layer changes the arrays of its carry in turn,

    z_k' = rho_k z_k + phi_k(theta, z_1', ..., z_{k-1}', z_{k+1}, ..., z_n),

as a step of an optimizer does (`revmom.steps.equations`): each is computed
from the others and never from itself, so that it can be undone.  On a grid of
integers it is undone bit for bit, at any depth, negative values and factors
included, where floats drift (Gomez, Ren, Urtasun & Grosse 2017; Sander, Ablin,
Blondel & Peyre 2021; MacKay, Vicol, Ba & Grosse 2018).
"""

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from revmom.depth import receipt, tangent
from revmom.depth.layer import (
  Layer,
  Updates,
  check,
  decays_of,
  flatten,
  pure,
  timing_of,
)
from revmom.depth.receipt import Kept
from revmom.exact import bit_buffer, capacities, fixed_point
from revmom.exact.capacities import Schedule
from revmom.exact.fence import origin
from revmom.steps import equations as steps
from revmom.steps.leaf import Leaf, Role

_FRACTION_BITS = {"int32": 22, "int64": 44}
_THRICE = (
  "reversible_scan can't be differentiated three times.  Use the same layers "
  "in jax.lax.scan for third derivatives."
)


def reversible_scan(
  updates: Updates,
  arrays: Sequence[jax.Array],
  layers: Any,
  *,
  fraction_bits: int | None = None,
  integer: str = "int32",
  floors: Sequence[float] | None = None,
) -> tuple[jax.Array, ...]:
  r"""The carry after all layers; its gradient keeps no activations.

  .. math::
    z_k' = \rho_k z_k + \varphi_k(\theta, z_1', \dots, z_{k-1}',
      z_{k+1}, \dots, z_n)

  Values are rounded to a grid, and what a factor below one would forget goes
  to a buffer of log2(1 / rho) bits a layer and element.  The reverse pass
  undoes one layer after the other, bit for bit; if it does not come back to
  what it compares every 16 layers, all derivatives are NaN, which
  `revmom.explain` asks for the layer.  Rounding is differentiated as the
  identity.  Second derivatives, by reverse mode, restore activations and their
  tangents in the same way: so `revmom.train` has hypergradients of a loss with
  such layers.

  Args:
    updates: the equations, such as those of `revmom.depth.revnet`.
    arrays: the carry, of one shape and floating-point type, one for each
      function.
    layers: a pytree of arrays [depth, ...]: parameters, and whatever else the
      functions take of a layer, such as random keys.
    fraction_bits: the grid's resolution is 2^-fraction_bits.  By default 22,
      so that values reach 2^(30 - 22) = 256, and 44 with int64.
    integer: "int32", or "int64" where x64 is on.
    floors: for each array the smallest factor that its buffer has room for
      where the factor is traced; 0.5 by default.

  Returns:
    Arrays like the carry; NaN where a value left its grid, and everywhere if a
    traced factor fell below its floor.

  Raises:
    ValueError: arrays of the carry differ, there is not one for each function,
      the layers have no leading axis in common, or a factor has no inverse.

  >>> from revmom.depth import reversible_scan, revnet
  >>> updates = revnet(
  ...   lambda layer, x: jnp.tanh(layer["w"] * x),
  ...   lambda layer, x: jnp.sin(x),
  ... )
  >>> layers, x = {"w": jnp.linspace(0.1, 1, 1000)}, jnp.ones(3)
  >>> def loss(layers):
  ...   a, b = reversible_scan(updates, (x, 0 * x), layers)
  ...   return jnp.sum(a * b)
  >>> jax.grad(loss)(layers)["w"].shape
  (1000,)
  """
  carry = tuple(map(jnp.asarray, arrays))
  depth = check(updates, carry, layers)
  bits = _bits(fraction_bits, integer)
  if not depth:
    return carry
  roles = tuple(
    Role(f"z{i}", bits, integer=np.dtype(integer))
    for i in range(len(updates.functions))
  )
  params, structure = flatten(layers)
  dtype = carry[0].dtype
  wide = jnp.dtype("float32") if dtype.itemsize < 4 else dtype
  functions, constants = pure(updates, structure, params, carry, wide)
  decays = decays_of(updates, structure, params, depth, roles)
  timing, rows = timing_of(decays, floors, depth, roles)

  def layer_of(params, constants, decays, t):
    pick = lambda a: lax.dynamic_index_in_dim(a, t, keepdims=False)
    return Layer(
      roles=roles,
      params=[pick(array) for array in params],
      constants=constants,
      decays={name: pick(decay) for name, decay in decays.items()},
      functions=functions,
    )

  inputs = ([a.astype(wide) for a in carry], params, constants, decays)
  out, _ = _scanned(layer_of, roles, rows, depth)(inputs, timing)
  return tuple(array.astype(dtype) for array in out)


def _bits(fraction_bits: int | None, integer: str) -> int:
  capacities.check_integer(integer)
  if fraction_bits is None:
    return _FRACTION_BITS[integer]
  most = jnp.iinfo(integer).bits - 2
  if not (isinstance(fraction_bits, int) and 0 <= fraction_bits <= most):
    raise ValueError(
      f"fraction_bits={fraction_bits!r}; give a whole number from 0 to {most}."
    )
  return fraction_bits


def _scanned(
  layer_of: Callable, roles: tuple, rows: dict, depth: int, order: int = 2
):
  """(inputs, timing) -> the floats of the final carry, and `Kept`.

  Args:
    layer_of: (*inputs after the carry, t) -> a layer.
    roles: of the layers.
    rows: words of each buffer.
    depth: the number of layers.
    order: of the derivatives that it has.
  """

  def now(schedules: dict[str, Schedule], t: jax.Array) -> dict:
    return jax.tree.map(lambda a: a[t, 0], schedules)

  def begin(carry: list, valid: jax.Array) -> Leaf:
    integers = {}
    for role, array in zip(roles, carry, strict=True):
      start = fixed_point.to_fixed(array, role.bits, role.integer)
      beyond = fixed_point.overflow(role.integer)
      integers[role.name] = jnp.where(valid, start, beyond)
    buffers = {
      name: bit_buffer.init(integers[name], count)
      for name, count in rows.items()
    }
    return Leaf(integers, buffers)

  def forward(inputs: tuple, timing: tuple) -> tuple[list, Kept]:
    (carry, *rest), (schedules, valid) = inputs, timing
    start = begin(carry, valid)
    zero = origin([start.integers[roles[0].name]])

    def step(leaf, t):
      layer = layer_of(*rest, t)
      after = steps.forward(
        layer, leaf, None, t, now(schedules, t), carry[0].dtype
      )
      return after, receipt.hash_of(leaf, t)

    places = zero + jnp.arange(depth, dtype=jnp.int32)
    leaf, hashes = lax.scan(step, start, places)
    views = [
      jnp.where(
        leaf.overflowed,
        jnp.nan,
        fixed_point.from_fixed(
          leaf.integers[role.name], role.bits, carry[0].dtype
        ),
      )
      for role in roles
    ]
    return views, Kept(leaf, hashes)

  @jax.custom_vjp
  def run(inputs: tuple, timing: tuple) -> tuple[list, Kept]:
    return forward(inputs, timing)

  def run_forward(inputs, timing):
    views, kept = run(inputs, timing)
    return (views, kept), (inputs, timing, kept)

  def run_backward(residuals, bars):
    return pull_back(*residuals, bars[0]), None

  run.defvjp(run_forward, run_backward)

  @jax.custom_vjp
  def pull_back(inputs, timing, kept: Kept, views_bar: list) -> tuple:
    (carry, *rest), (schedules, _) = inputs, timing
    leaf, dtype = kept.leaf, carry[0].dtype
    zero = origin([leaf.integers[roles[0].name]])
    words = leaf.words()

    def step(state, t):
      leaf, bars, shared, diverged_at = state
      layer = layer_of(*rest, t)
      own = now(schedules, t)
      after = leaf.with_words(words)
      before = steps.undo(layer, roles, after, None, t, own, dtype)
      bars, _, layer_bars = steps.pull_back(
        layer, roles, after, before, None, bars, t, own, dtype
      )
      total: Any = jax.tree.map(_sum, *layer_bars)
      shared = jax.tree.map(jnp.add, shared, _floats(total.constants))
      stacked = _floats(total.params), total.decays
      diverged_at = receipt.compare(kept, before, t, diverged_at)
      return (before.bare(), bars, shared, diverged_at), stacked

    bars = {r.name: bar for r, bar in zip(roles, views_bar, strict=True)}
    shared = jax.tree.map(
      lambda a: jnp.zeros_like(a) if _is_float(a) else None, rest[1]
    )
    state = leaf.bare(), bars, shared, jnp.int32(-1)
    places = zero + jnp.arange(depth, dtype=jnp.int32)
    (_, bars, shared, diverged_at), stacked = lax.scan(
      step, state, places, reverse=True
    )
    proven = receipt.proven(leaf, diverged_at)
    params_bar, decays_bar = jax.tree.map(proven, stacked)
    shared = jax.tree.map(proven, shared)
    carry_bar = [proven(bars[role.name]) for role in roles]
    others = [None] * (len(rest) - 3)
    return (carry_bar, params_bar, shared, decays_bar, *others)

  def pull_back_forward(inputs, timing, kept, views_bar):
    if order < 2:
      raise ValueError(_THRICE)
    bars = pull_back(inputs, timing, kept, views_bar)
    return bars, (inputs, timing, views_bar)

  def pull_back_backward(residuals, along):
    inputs, timing, views_bar = residuals

    def change(inputs):
      """How the results change where the inputs do so along `along`."""
      twice = tangent.of(layer_of, roles, rows, inputs, timing, along, depth)
      both = _scanned(twice.layer_of, twice.roles, twice.rows, depth, order=1)
      return twice.views(both(twice.inputs, twice.timing)[0])

    found, pull = jax.vjp(change, inputs)
    (inputs_bar,) = pull(views_bar)
    return _floats(inputs_bar), None, None, found

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
