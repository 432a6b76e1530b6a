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

from revmom.depth import gates
from revmom.depth.layer import (
  Layer,
  Updates,
  check,
  decays_of,
  flatten,
  pure,
  pure_outputs,
  timing_of,
)
from revmom.depth.receipt import Kept
from revmom.depth.sweep import Sweep, scanned
from revmom.exact import capacities
from revmom.steps.leaf import Role

_FRACTION_BITS = {"int32": 22, "int64": 44}


def reversible_scan(
  updates: Updates,
  arrays: Sequence[jax.Array],
  layers: Any,
  *,
  outputs: Callable[[Any, tuple], Any] | None = None,
  fraction_bits: int | None = None,
  integer: str = "int32",
  floors: Sequence[float] | None = None,
) -> Any:
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
    outputs: (layer, carry after it) -> what is wanted of each layer, such as
      the loss of a step of time; only its results are kept.
    fraction_bits: the grid's resolution is 2^-fraction_bits.  By default 22,
      so that values reach 2^(30 - 22) = 256, and 44 with int64.
    integer: "int32", or "int64" where x64 is on.
    floors: for each array the smallest factor that its buffer has room for
      where the factor is traced; 0.5 by default.

  Returns:
    Arrays like the carry; with `outputs` a pair of them and of the outputs of
    all layers, [depth, ...].  They are NaN where a value left its grid, and
    everywhere if a traced factor fell below its floor or a `Gate` forgot more
    bits than its budget.

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
  bits = grid_bits(fraction_bits, integer)
  if not depth:
    return carry if outputs is None else (carry, None)
  views, read, _ = run(updates, carry, layers, outputs, bits, integer, floors)
  out = tuple(array.astype(carry[0].dtype) for array in views)
  return out if outputs is None else (out, read)


def run(
  updates: Updates,
  carry: tuple[jax.Array, ...],
  layers: Any,
  outputs: Callable[[Any, tuple], Any] | None,
  bits: int,
  integer: str,
  floors: Sequence[float] | None,
) -> tuple[list, Any, Kept]:
  """The floats of the final carry, the outputs, and what gradients need."""
  params, structure = flatten(layers)
  depth = params[0].shape[0]
  least = [gates.least_gate(decay) for decay in updates.decays]
  roles = tuple(
    Role(f"z{i}", bits, integer=np.dtype(integer), least_gate=gate)
    for i, gate in enumerate(least)
  )
  dtype = carry[0].dtype
  wide = jnp.dtype("float32") if dtype.itemsize < 4 else dtype
  functions, constants = pure(updates, structure, params, carry, wide)
  decays = decays_of(updates, structure, params, depth, roles)
  timing, rows = timing_of(decays, floors, depth, roles)
  rows |= gates.rooms_of(updates.decays, roles, carry[0].size, depth)
  read: Callable | None = None
  read_of: list[jax.Array] = []
  if outputs is not None:
    pure_read, read_of = pure_outputs(outputs, structure, params, carry, wide)
    read = lambda own, layer, *values: pure_read(own, layer.params, *values)

  def layer_of(params, constants, decays, t):
    pick = lambda a: lax.dynamic_index_in_dim(a, t, keepdims=False)
    return Layer(
      roles=roles,
      params=[pick(array) for array in params],
      constants=constants,
      decays={name: pick(decay) for name, decay in decays.items()},
      functions=functions,
    )

  wider = [a.astype(wide) for a in carry]
  sweep = Sweep(layer_of, read, roles, rows, depth)
  return scanned(sweep)((wider, read_of, params, constants, decays), timing)


def grid_bits(fraction_bits: int | None, integer: str) -> int:
  """Of the grid; raises ValueError for what is none."""
  capacities.check_integer(integer)
  if fraction_bits is None:
    return _FRACTION_BITS[integer]
  most = jnp.iinfo(integer).bits - 2
  if not (isinstance(fraction_bits, int) and 0 <= fraction_bits <= most):
    raise ValueError(
      f"fraction_bits={fraction_bits!r}; give a whole number from 0 to {most}."
    )
  return fraction_bits
