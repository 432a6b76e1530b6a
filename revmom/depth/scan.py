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

from revmom.depth.layer import (
  Layer,
  Updates,
  check,
  decays_of,
  pure,
  timing_of,
)
from revmom.exact import bit_buffer, capacities, fixed_point
from revmom.exact.capacities import Schedule
from revmom.exact.fence import origin
from revmom.exact.refusal import refuse_derivative
from revmom.steps import equations as steps
from revmom.steps.checksum import checksum
from revmom.steps.leaf import Leaf, Role

_FRACTION_BITS = {"int32": 22, "int64": 44}
_TWICE = (
  "reversible_scan can't be differentiated twice: its reverse pass restores "
  "integers, through which a derivative would be zero.  Use the same layers in "
  "jax.lax.scan for second derivatives."
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
  the first carry, all derivatives are NaN.  Rounding is differentiated as the
  identity.  There are no second derivatives: `revmom.train` trains a loss with
  such layers, but has no hypergradients of it.

  Args:
    updates: the equations, such as those of `revmom.depth.revnet`.
    arrays: the carry, of one shape and floating-point type, one for each
      function.
    layers: a pytree of arrays [depth, ...]: parameters, and whatever else the
      functions take of a layer, such as random keys' data.
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
  structure: Any
  leaves, structure = jax.tree.flatten(layers)
  params = [jnp.asarray(leaf) for leaf in leaves]
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
  out = _scanned(layer_of, roles, rows, depth)(inputs, timing)
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


def _scanned(layer_of: Callable, roles: tuple, rows: dict, depth: int):
  """(inputs, timing) -> the floats of the final carry."""

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

  def forward(inputs: tuple, timing: tuple) -> tuple[list, Leaf]:
    (carry, *rest), (schedules, valid) = inputs, timing
    start = begin(carry, valid)
    zero = origin([start.integers[roles[0].name]])

    def step(leaf, t):
      layer = layer_of(*rest, t)
      return steps.forward(
        layer, leaf, None, t, now(schedules, t), carry[0].dtype
      ), None

    places = zero + jnp.arange(depth, dtype=jnp.int32)
    leaf, _ = lax.scan(step, start, places)
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
    return views, leaf

  @jax.custom_vjp
  def run(inputs: tuple, timing: tuple) -> list:
    return forward(inputs, timing)[0]

  def run_forward(inputs, timing):
    inputs = refuse_derivative(inputs, _TWICE)
    views, leaf = forward(inputs, timing)
    first = checksum([begin(inputs[0], timing[1]).bare()])
    return views, (inputs, timing[0], leaf, first)

  def run_backward(residuals, views_bar):
    (carry, *rest), schedules, leaf, first = residuals
    dtype = carry[0].dtype
    zero = origin([leaf.integers[roles[0].name]])
    words = leaf.words()

    def step(state, t):
      leaf, bars, shared = state
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
      return (before.bare(), bars, shared), stacked

    bars = {r.name: bar for r, bar in zip(roles, views_bar, strict=True)}
    shared = jax.tree.map(
      lambda a: jnp.zeros_like(a) if _is_float(a) else None, rest[1]
    )
    state = leaf.bare(), bars, shared
    places = zero + jnp.arange(depth, dtype=jnp.int32)
    (back, bars, shared), stacked = lax.scan(step, state, places, reverse=True)
    restored = jnp.all(checksum([back]) == first) & ~jnp.any(leaf.overflowed)
    # A reversal that failed must not return a plausible number.
    proven = lambda bar: jnp.where(restored, bar, jnp.nan)
    params_bar, decays_bar = jax.tree.map(proven, stacked)
    shared = jax.tree.map(proven, shared)
    carry_bar = [proven(bars[role.name]) for role in roles]
    return (carry_bar, params_bar, shared, decays_bar), None

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
