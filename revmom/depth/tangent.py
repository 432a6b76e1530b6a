"""The tangent of a scan over layers, which is such a scan itself.

Along a direction in all that the layers depend on,
z_k' = rho_k z_k + phi_k(theta, others) has the tangent

    dz_k' = rho_k dz_k + drho_k z_k + dphi_k,

in which all but rho_k dz_k is an increment of what is known on the way back: of
z_k before it changes, and of the others.  So dz_k is one more array of the
carry, right before z_k, that is restored as any other; its gradient is a second
derivative.  Where rho_k is a gate, it is one of both.  Tangents live on
grids of their own, scaled by powers of two that a first pass in floats finds.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from revmom.depth.cotangents import only_floats
from revmom.depth.layer import Layer
from revmom.steps.equations import Equations
from revmom.steps.leaf import Gated, Role, scale_for


class TangentLayer(Equations, kw_only=True):
  """One layer beside its tangent along a direction."""

  own: Layer
  along: tuple  # of params, constants and decays; None for what is no float
  scales: dict[str, jax.Array]  # role -> power of two of its tangent

  @property
  def params(self) -> Any:
    """Of the layer."""
    return self.own.params

  @property
  def constants(self) -> Any:
    """Of the layer."""
    return self.own.constants

  @property
  def decays(self) -> Any:
    """Of the layer."""
    return self.own.decays

  @property
  def early(self) -> tuple[Role, ...]:
    return ()

  def seen_by(self, role: Role) -> tuple[Role, ...]:
    seen = self.own.names
    if role.name in seen:
      seen = tuple(name for name in seen if name != role.name)
    else:
      tangents = (_tangent(name) for name in self.own.names)
      seen += tuple(name for name in tangents if name != role.name)
    return tuple(own for own in self.roles if own.name in seen)

  def forgetting(self, step: jax.Array) -> dict[str, jax.Array]:
    forgotten = self.own.forgetting(step)
    return forgotten | {_tangent(name): f for name, f in forgotten.items()}

  def increment(
    self, name: str, given: Any, values: dict[str, jax.Array], step: jax.Array
  ) -> Any:
    own = self.own
    if name in own.names:
      return own.increment(name, given, values, step)
    (role,) = (r for r in own.names if _tangent(r) == name)
    others = [other for other in own.names if other != role]
    phi = lambda params, constants, seen: own.functions[own.names.index(role)](
      constants, params, *seen
    )
    params, constants, decays = self.along
    of = own.params, own.constants[own.names.index(role)]
    dots = params, constants[own.names.index(role)]
    seen_dot = [values[_tangent(o)] / self.scales[o] for o in others]
    change, dot = jax.jvp(
      phi,
      (*of, [values[other] for other in others]),
      (*map(_tangents, of, dots), seen_dot),
    )
    if isinstance(change, Gated):
      moved = dot.gate * values[role] + dot.increment
      return Gated(change.gate, moved * self.scales[role])
    if role in decays:
      dot = dot + decays[role].astype(dot.dtype) * values[role]
    return dot * self.scales[role]

  def contracts(self, name: str) -> bool:
    return True


def _tangent(name: str) -> str:
  return f"d{name}"


def _tangents(values: list, dots: list) -> list:
  """The tangents that JAX wants, of integers too."""
  return [
    np.zeros(value.shape, jax.dtypes.float0) if dot is None else dot
    for value, dot in zip(values, dots, strict=True)
  ]


class Twice(NamedTuple):
  """A scan over layers and its tangent, as one scan."""

  layer_of: Callable
  read: Callable | None
  roles: tuple[Role, ...]
  rows: dict[str, int]
  inputs: tuple
  timing: tuple
  scales: list[jax.Array]

  def views(self, both: list) -> list[jax.Array]:
    """The tangents of the final carry."""
    return [dz / s for dz, s in zip(both[::2], self.scales, strict=True)]


def of(sweep: Any, inputs: tuple, timing: tuple, along: tuple) -> Twice:
  """The scan of a scan and its tangent.

  Args:
    sweep: the layers, a `Sweep` of `Layer`.
    inputs: its inputs.
    timing: its timing.
    along: like `inputs`, None for what is no float.
  """
  roles = sweep.roles
  both = tuple(
    own
    for role in roles
    for own in (role._replace(name=_tangent(role.name)), role)
  )
  carry, read_of, params, constants, decays = inputs
  carry_dot, read_dot, *dots = lax.stop_gradient(along)

  def twice_of(params, constants, decays, dots, scales, t):
    own = sweep.layer_of(params, constants, decays, t)
    params_dot, constants_dot, decays_dot = dots
    pick = lambda a: lax.dynamic_index_in_dim(a, t, keepdims=False)
    return TangentLayer(
      roles=both,
      own=own,
      along=(
        [None if a is None else pick(a) for a in params_dot],
        constants_dot,
        {name: pick(decay) for name, decay in decays_dot.items()},
      ),
      scales=scales,
    )

  ones = {role.name: jnp.ones((), carry[0].dtype) for role in roles}
  starts = [a for pair in zip(carry_dot, carry, strict=True) for a in pair]
  layer_at = lambda t: twice_of(params, constants, decays, dots, ones, t)
  peaks = lax.stop_gradient(_peaks(layer_at, both, starts, sweep.depth))
  scales = {r.name: scale_for(r, peaks[_tangent(r.name)]) for r in roles}
  ordered = [scales[role.name] for role in roles]
  starts[::2] = [a * s for a, s in zip(starts[::2], ordered, strict=True)]
  schedules, valid = timing
  with_tangents = lambda own: own | {_tangent(n): a for n, a in own.items()}
  return Twice(
    twice_of,
    sweep.read and _tangent_of_outputs(sweep.read),
    both,
    with_tangents(sweep.rows),
    (starts, (read_of, read_dot), params, constants, decays, dots, scales),
    (with_tangents(schedules), valid),
    ordered,
  )


def _tangent_of_outputs(read: Callable) -> Callable:
  """The outputs of `Twice`: tangents of those of floats, None for others."""

  def read_twice(own, layer, *both):
    constants, constants_dot = own
    dots = [
      dz / layer.scales[name]
      for dz, name in zip(both[::2], layer.own.names, strict=True)
    ]
    of = lambda constants, params, *values: only_floats(
      read(constants, layer.own.replace(params=params), *values)
    )
    _, dot = jax.jvp(
      of,
      (constants, layer.params, *both[1::2]),
      (
        _tangents(constants, constants_dot),
        _tangents(layer.params, layer.along[0]),
        *dots,
      ),
    )
    return dot

  return read_twice


def _peaks(
  layer_at: Callable, roles: tuple[Role, ...], starts: list, depth: int
) -> dict[str, jax.Array]:
  """The largest magnitudes of all roles, in floats."""

  def step(state, t):
    values, peaks = state
    layer = layer_at(t)
    forgotten = layer.forgetting(t)
    values = dict(values)
    for role in roles:
      old = values[role.name]
      if role.name in forgotten:
        old = (1 - forgotten[role.name]).astype(old.dtype) * old
      change = layer.increment(role.name, None, values, t)
      if isinstance(change, Gated):
        values[role.name] = change.gate * old + change.increment
      else:
        values[role.name] = old + change
    return (values, jax.tree.map(jnp.maximum, peaks, _largest(values))), None

  values = {role.name: a for role, a in zip(roles, starts, strict=True)}
  places = jnp.arange(depth, dtype=jnp.int32)
  return lax.scan(step, (values, _largest(values)), places)[0][1]


def _largest(values: dict[str, jax.Array]) -> dict[str, jax.Array]:
  return {n: jnp.max(jnp.abs(a), initial=0) for n, a in values.items()}
