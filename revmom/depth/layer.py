"""Layers that change the arrays of their carry in turn."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from revmom.depth.gates import Gate
from revmom.exact import capacities
from revmom.exact.keys import kind_of_key, with_keys, without_key
from revmom.exact.pytree import static
from revmom.exact.tracing import concrete
from revmom.steps.closure import hoist
from revmom.steps.equations import Equations
from revmom.steps.leaf import Gated, Role


class Updates(NamedTuple):
  """The equations of a layer.

  Attributes:
    functions: phi of each array of the carry, in the order in which they
      change: (layer, carry) -> increment, where the array's own place in the
      carry holds None.
    decays: rho of each array, in (0, 1]: a number or a function of the layer
      that gives one; None is 1.  With a `Gate` the array's function gives
      (gate, increment), both like the array, and rho is the gate.
  """

  functions: tuple[Callable[[Any, tuple], jax.Array], ...]
  decays: tuple[Any, ...]


class Structure(NamedTuple):
  """How the arrays of a layer make what the user gave, random keys too."""

  tree: Any
  kinds: list  # of the keys among the leaves

  def unflatten(self, leaves: list) -> Any:
    """The layer of a list of arrays."""
    return self.tree.unflatten(with_keys(leaves, self.kinds))


def flatten(layers: Any) -> tuple[list[jax.Array], Structure]:
  """Layers as arrays of numbers."""
  leaves, tree = jax.tree.flatten(layers)
  kinds = [kind_of_key(leaf) for leaf in leaves]
  return [without_key(leaf) for leaf in leaves], Structure(tree, kinds)


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
  ) -> Any:
    place = self.names.index(name)
    others = [values[other] for other in self.names if other != name]
    return self.functions[place](self.constants[place], self.params, *others)

  def contracts(self, name: str) -> bool:
    return True


def check(updates: Updates, carry: tuple, layers: Any) -> int:
  """The depth; raises ValueError for what is no carry of such layers."""
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
  if len(updates.decays) != len(updates.functions):
    raise ValueError(
      f"there are {len(updates.functions)} updates, but "
      f"{len(updates.decays)} decays; give one for each, which may be None."
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


def pure(updates, structure, arrays, carry, wide) -> tuple[tuple, tuple]:
  """The functions of flat arrays, and what they close over."""
  layer = [jax.ShapeDtypeStruct(a.shape[1:], a.dtype) for a in arrays]
  other = jax.ShapeDtypeStruct(carry[0].shape, wide)
  dtype = carry[0].dtype
  functions, constants = [], []

  def like_the_carry(place, array):
    got = getattr(array, "shape", type(array).__name__)
    if got != carry[0].shape:
      raise ValueError(
        f"update {place} gives {got}, but the arrays of the carry have the "
        f"shape {carry[0].shape}."
      )
    return jnp.asarray(array).astype(wide)

  for place, function in enumerate(updates.functions):

    def flat(params, *others, place=place, function=function):
      seen = [value.astype(dtype) for value in others]
      values = (*seen[:place], None, *seen[place:])
      change = function(structure.unflatten(params), values)
      if not isinstance(updates.decays[place], Gate):
        return like_the_carry(place, change)
      if not (isinstance(change, tuple | list) and len(change) == 2):
        raise ValueError(
          f"update {place} has a Gate, so its function must give two arrays, "
          f"(gate, increment), but it gives {type(change).__name__}."
        )
      return Gated(*(like_the_carry(place, part) for part in change))

    function_of, own, _ = hoist(flat, layer, *[other] * (len(carry) - 1))
    functions.append(function_of)
    constants.append(own)
  return tuple(functions), tuple(constants)


def pure_outputs(outputs, structure, arrays, carry, wide) -> tuple:
  """What is read off after a layer, as `pure` gives functions."""
  layer = [jax.ShapeDtypeStruct(a.shape[1:], a.dtype) for a in arrays]
  values = [jax.ShapeDtypeStruct(a.shape, wide) for a in carry]

  def flat(params, *values):
    seen = tuple(value.astype(carry[0].dtype) for value in values)
    return outputs(structure.unflatten(params), seen)

  return hoist(flat, layer, *values)[:2]


def decays_of(updates, structure, arrays, depth, roles) -> dict[str, jax.Array]:
  """The factors of all layers, [depth]."""
  decays = {}
  for role, decay in zip(roles, updates.decays, strict=True):
    if decay is None or isinstance(decay, Gate):
      continue
    kind = capacities.layout(role.integer).float_dtype
    with jax.ensure_compile_time_eval():  # what is known stays known
      if callable(decay):
        of = lambda params, decay=decay: decay(structure.unflatten(params))
        values = jnp.asarray(jax.vmap(of)(arrays), kind)
      else:
        check_number(f"the decay of array {role.name[1:]}", decay)
        values = jnp.full(depth, jnp.asarray(decay, kind))
    if values.shape != (depth,):
      raise ValueError(
        f"the decay of array {role.name[1:]} has shape {values.shape[1:]} in a "
        "layer; a factor must be one number, because all elements spill "
        "together."
      )
    decays[role.name] = values
  return decays


def check_number(name: str, value: Any) -> None:
  """Raises ValueError for what is not the one number that a layer needs."""
  if isinstance(value, str) or not hasattr(value, "__float__"):
    raise ValueError(
      f"{name} is {value!r}; give a number, or a function of the layer.  What "
      "adapts to the carry can't be undone."
    )
  if jnp.ndim(value):
    raise ValueError(
      f"{name} has shape {jnp.shape(value)}; give a number, or a function of "
      "the layer, as in gamma=lambda layer: layer['gamma'], with its values "
      "among the layers."
    )


def timing_of(decays, floors, depth, roles) -> tuple[tuple, dict[str, int]]:
  """When each buffer spills, whether that is right, and its number of words.

  It is wrong where a factor that was not known is below its floor.
  """
  if floors is None:
    floors = [0.5] * len(roles)
  if len(floors) != len(roles) or not all(0 < floor <= 1 for floor in floors):
    raise ValueError(
      f"floors={floors}; give one number in (0, 1] for each of the "
      f"{len(roles)} arrays."
    )
  schedules, rows, valid = {}, {}, jnp.ones((), bool)
  for role, floor in zip(roles, floors, strict=True):
    if role.name not in decays:
      continue
    with jax.ensure_compile_time_eval():
      forgetting = 1 - lax.stop_gradient(decays[role.name])
      schedules[role.name] = capacities.schedule(
        forgetting[:, None], role.integer
      )
    known = concrete(forgetting)
    if known is None:
      least = np.full(depth, 1 - floor)
      capacities.check_invertible(role.name, least, role.integer)
      most = capacities.largest_forgotten(floor)
      known = np.full(depth, most)
      valid &= jnp.all((forgetting >= 0) & (forgetting <= most))
    else:
      capacities.check_invertible(role.name, known, role.integer)
    rows[role.name] = capacities.rows_needed(known, role.integer)
  return (schedules, valid), rows
