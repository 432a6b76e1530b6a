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
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from revmom.exact import bit_buffer, fixed_point
from revmom.exact.bit_buffer import Schedule
from revmom.exact.fence import origin
from revmom.exact.pytree import static
from revmom.exact.refusal import refuse_derivative
from revmom.steps import equations as steps
from revmom.steps.checksum import checksum
from revmom.steps.closure import hoist
from revmom.steps.equations import Equations
from revmom.steps.leaf import Leaf, Role

_FRACTION_BITS = {"int32": 22, "int64": 44}
_TWICE = (
  "reversible_scan can't be differentiated twice: its reverse pass restores "
  "integers, through which a derivative would be zero.  Use the same layers in "
  "jax.lax.scan for second derivatives."
)


class Updates(NamedTuple):
  """The equations of a layer.

  Attributes:
    functions: phi of each array of the carry, in the order in which they
      change: (layer, carry) -> increment, where the array's own place in the
      carry holds None.
    decays: rho of each array, in (0, 1]: a number or a function of the layer
      that gives one; None is 1.
  """

  functions: tuple[Callable[[Any, tuple], jax.Array], ...]
  decays: tuple[Any, ...]


class Layer(Equations, kw_only=True):
  """One layer, of concrete parameters."""

  params: list[jax.Array]
  constants: tuple[list[jax.Array], ...]  # that the functions close over
  decays: dict[str, jax.Array]
  functions: tuple[Callable, ...] = static()

  @property
  def early(self) -> tuple[Role, ...]:
    return ()

  def seen_by(self, role: Role) -> tuple[Role, ...]:
    return tuple(other for other in self.roles if other != role)

  def forgetting(self, step: jax.Array) -> dict[str, jax.Array]:
    return {name: 1 - decay for name, decay in self.decays.items()}

  def increment(
    self, name: str, given: Any, values: dict[str, jax.Array], step: jax.Array
  ) -> jax.Array:
    place = self.names.index(name)
    others = [values[other] for other in self.names if other != name]
    return self.functions[place](self.constants[place], self.params, *others)

  def contracts(self, name: str) -> bool:
    return True


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
  identity.

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
    Arrays like the carry; NaN where a value left its grid.

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
  depth = _check(updates, carry, layers)
  bits = fraction_bits or _FRACTION_BITS[integer]
  roles = tuple(
    Role(f"z{i}", bits, integer=np.dtype(integer))
    for i in range(len(updates.functions))
  )
  structure: Any
  leaves, structure = jax.tree.flatten(layers)
  params = [jnp.asarray(leaf) for leaf in leaves]
  dtype = carry[0].dtype
  wide = jnp.dtype("float32") if dtype.itemsize < 4 else dtype
  functions, constants = _pure(updates, structure, params, carry, wide)
  decays = _decays(updates, structure, params, depth, roles)
  timing, rows = _schedules(decays, floors, depth, roles)

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


def _check(updates: Updates, carry: tuple, layers: Any) -> int:
  if not isinstance(updates, Updates):
    raise ValueError(
      f"reversible_scan got {updates!r}; a layer that can be undone is given "
      "by the updates of its arrays, such as revmom.depth.revnet(f, g), not by "
      "one function of the carry as in jax.lax.scan."
    )
  if len(carry) != len(updates.functions):
    raise ValueError(
      f"the carry has {len(carry)} arrays, but there are "
      f"{len(updates.functions)} updates; give one array for each."
    )
  kinds = {(array.shape, array.dtype) for array in carry}
  if len(kinds) != 1 or not jnp.issubdtype(carry[0].dtype, jnp.floating):
    raise ValueError(
      "the arrays of the carry must have one shape and one floating-point "
      "type, but they are "
      + ", ".join(f"{a.dtype}{list(a.shape)}" for a in carry)
    )
  depths = {jnp.shape(leaf)[:1] for leaf in jax.tree.leaves(layers)}
  if len(depths) != 1 or () in depths:
    raise ValueError(
      "every array of the layers needs the same leading axis, over layers, but "
      f"these axes are {sorted(map(str, depths))}."
    )
  return depths.pop()[0]


def _pure(updates, structure, arrays, carry, wide) -> tuple[tuple, tuple]:
  """The functions of flat arrays, and what they close over."""
  layer = [jax.ShapeDtypeStruct(a.shape[1:], a.dtype) for a in arrays]
  other = jax.ShapeDtypeStruct(carry[0].shape, wide)
  dtype = carry[0].dtype
  functions, constants = [], []
  for place, function in enumerate(updates.functions):

    def flat(params, *others, place=place, function=function):
      seen = [value.astype(dtype) for value in others]
      values = (*seen[:place], None, *seen[place:])
      increment = function(structure.unflatten(params), values)
      if jnp.shape(increment) != carry[0].shape:
        raise ValueError(
          f"update {place} has shape {jnp.shape(increment)}, but the carry has "
          f"{carry[0].shape}."
        )
      return jnp.asarray(increment).astype(wide)

    pure, own = hoist(flat, layer, *[other] * (len(carry) - 1))
    functions.append(pure)
    constants.append(own)
  return tuple(functions), tuple(constants)


def _decays(updates, structure, arrays, depth, roles) -> dict[str, jax.Array]:
  """The factors of all layers, [depth]."""
  decays = {}
  for role, decay in zip(roles, updates.decays, strict=True):
    if decay is None:
      continue
    with jax.ensure_compile_time_eval():  # what is known stays known
      if callable(decay):
        of = lambda params, decay=decay: decay(structure.unflatten(params))
        values = jax.vmap(of)(arrays)
      else:
        values = jnp.broadcast_to(jnp.asarray(decay, jnp.float32), (depth,))
    if values.shape != (depth,):
      raise ValueError(
        f"the decay of array {role.name[1:]} has shape {values.shape[1:]} in a "
        "layer; a factor must be one number, because all elements spill "
        "together."
      )
    with jax.ensure_compile_time_eval():
      kind = bit_buffer.layout(role.integer).float_dtype
      decays[role.name] = values.astype(kind)
  return decays


def _schedules(decays, floors, depth, roles) -> tuple[tuple, dict[str, int]]:
  """When each buffer spills, whether that is right, and its number of words.

  It is wrong where a factor that was not known is below its floor.
  """
  floors = floors or [0.5] * len(roles)
  schedules, rows, valid = {}, {}, jnp.ones((), bool)
  for role, floor in zip(roles, floors, strict=True):
    if role.name not in decays:
      continue
    with jax.ensure_compile_time_eval():
      forgetting = 1 - lax.stop_gradient(decays[role.name])
      schedules[role.name] = bit_buffer.schedule(
        forgetting[:, None], role.integer
      )
    known = _concrete(forgetting)
    if known is None:
      known = np.full(depth, 1 - floor)
      valid &= jnp.all((forgetting >= 0) & (forgetting <= 1 - floor))
    bit_buffer.check_invertible(role.name, known, role.integer)
    rows[role.name] = bit_buffer.rows_needed(known, role.integer)
  return (schedules, valid), rows


def _concrete(values: jax.Array) -> np.ndarray | None:
  try:
    return np.asarray(values)
  except jax.errors.TracerArrayConversionError:
    return None


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
    check = lambda bar: jnp.where(restored, bar, jnp.nan)
    params_bar, decays_bar = jax.tree.map(check, stacked)
    shared = jax.tree.map(check, shared)
    carry_bar = [check(bars[role.name]) for role in roles]
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
