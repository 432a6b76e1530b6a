"""The tangent of a run, which is a run of the same form.

Along a direction in all that a run depends on, the step z' = rho z + phi has
the tangent

    dz' = rho dz + drho z + dphi,    z = (z' - phi) / rho,                (1)

in which all but rho dz is an increment computed from what changed before.  So
the tangent of each role is one more role, right after it, and is rounded and
subtracted again like any other.  Tangents live on grids of their own, scaled
by powers of two, since no one knows how large they are before a run was made.
"""

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp

from revmom.exact import bit_buffer, fixed_point
from revmom.optimizers import hyperparameters
from revmom.optimizers.dynamics import Bars, Dynamics
from revmom.optimizers.resolved import add_bars
from revmom.optimizers.reversible import ReversibleOptimizer
from revmom.optimizers.slot import PARAMS
from revmom.optimizers.spills import Spills
from revmom.steps.leaf import Leaf, Role, base, is_tangent, tangent_of


def _scale_of(role: str) -> str:
  return f"scale of {role}"


class Tangent(ReversibleOptimizer, kw_only=True):
  """An optimizer's equations beside their tangents, of scalars."""

  own: ReversibleOptimizer
  along: ReversibleOptimizer  # the hyperparameters' tangents
  scales: dict[str, Any]  # role -> power of two that its tangent is held in

  def with_values(self, values: dict[str, Any]) -> "Tangent":
    own = {n: v for n, v in values.items() if n in _fields(self.own)}
    along = {base(n): v for n, v in values.items() if is_tangent(n)}
    scales = {
      role: values.get(_scale_of(role), scale)
      for role, scale in self.scales.items()
    }
    return self.replace(
      own=self.own.with_values(own),
      along=self.along.with_values(along),
      scales=scales,
    )

  def value(self, name: str) -> Any:
    if is_tangent(name):
      return self.along.value(base(name))
    for role, scale in self.scales.items():
      if name == _scale_of(role):
        return scale
    return self.own.value(name)

  def forgetting(self, step: jax.Array) -> dict[str, jax.Array]:
    factors = self.own.forgetting(step)
    return factors | {tangent_of(name): f for name, f in factors.items()}

  def increment(
    self, name: str, given: Any, values: dict[str, jax.Array], step: Any
  ) -> jax.Array:
    of = base(name)
    before = {role.name: values[role.name] for role in self.own.before(of)}
    own, along = (None, None) if given is None else given
    phi = lambda optimizer, given, before: optimizer.increment(
      of, given, before, step
    )
    if not is_tangent(name):
      return phi(self.own, own, before)
    tangents = {r: values[tangent_of(r)] for r in before}
    phi, phi_dot = jax.jvp(
      phi, (self.own, own, before), (self.along, along, tangents)
    )
    forgotten, forgotten_dot = jax.jvp(
      lambda optimizer: optimizer.forgetting(step).get(of, jnp.zeros(())),
      (self.own,),
      (self.along,),
    )
    old = (values[of] - phi) / (1 - forgotten.astype(phi.dtype))
    return phi_dot - forgotten_dot.astype(phi.dtype) * old

  def contracts(self, name: str) -> bool:
    return is_tangent(name) or self.own.contracts(name)

  def scale(self, name: str) -> Any:
    return self.scales[base(name)] if is_tangent(name) else 1


def _fields(optimizer: ReversibleOptimizer) -> set[str]:
  return set(optimizer.__dataclass_fields__)


class TangentDynamics(Dynamics):
  """A run and its tangent; parameters, gradients and so on are [2, ...]."""

  def thresholds(self, step: jax.Array) -> list[jax.Array]:
    own = super().thresholds(step)
    tangents = self.hyperparameters[-1].get(tangent_of("clip"), ())
    return [
      jnp.stack([a, hyperparameters.at((b,), 0, step, a.dtype)])
      for a, b in zip(own, tangents, strict=True)
    ]

  def add_thresholds_bar(self, totals: tuple, bars: list, step: Any) -> tuple:
    last = totals[-1]
    for row, name in enumerate(["clip", tangent_of("clip")]):
      last = add_bars(last, name, [bar[row] for bar in bars], step)
    return (*totals[:-1], last)

  def bars_of(self, view_bar: jax.Array) -> Bars:
    own, tangent = view_bar
    return {PARAMS: own, tangent_of(PARAMS): tangent}

  def view_bar(self, bars: Bars) -> jax.Array:
    return jnp.stack([bars[PARAMS], bars[tangent_of(PARAMS)]])

  def begin(self, params: list, spills: Spills, length: int) -> list[Leaf]:
    name = tangent_of(PARAMS)
    leaves = super().begin([own for own, _ in params], spills, length)
    begun = []
    for i, (leaf, (_, tangent)) in enumerate(zip(leaves, params, strict=True)):
      equations, role = self._tangent_role(i)
      scaled = tangent * equations.scale(name)
      integers = fixed_point.to_fixed(scaled, role.bits, role.integer)
      buffer = leaf.buffers.get(name)
      if buffer is not None:
        number = bit_buffer.init(integers, 0).number
        buffer = buffer._replace(number=number)
      begun.append(leaf.put(name, integers, buffer))
    return begun

  def view(self, i: int, leaf: Leaf) -> jax.Array:
    equations, role = self._tangent_role(i)
    integers = leaf.integers[role.name]
    scaled = fixed_point.from_fixed(integers, role.bits, self.dtypes[i])
    return jnp.stack(
      [super().view(i, leaf), scaled / equations.scale(role.name)]
    )

  def _tangent_role(self, i: int) -> tuple[Tangent, Role]:
    """The equations of a leaf, and the role of its parameters' tangent."""
    equations = self.at(i, jnp.zeros((), jnp.int32))
    return equations, equations.role(tangent_of(PARAMS))


def tangent(
  dynamics: Dynamics, along: tuple, scales: Sequence[dict[str, Any]]
) -> TangentDynamics:
  """The dynamics of a run and its tangent.

  Args:
    dynamics: of the run.
    along: the tangents of its hyperparameters.
    scales: of each part, role -> power of two.
  """
  parts = []
  for equations in dynamics.equations:
    roles = tuple(
      own
      for role in equations.roles
      for own in (
        role,
        role._replace(name=tangent_of(role.name), nonnegative=False),
      )
    )
    parts.append(
      Tangent(
        own=equations,
        along=equations,
        scales=dict.fromkeys(equations.names),
        roles=roles,
        shown_bits=equations.shown_bits,
      )
    )
  named = [{_scale_of(r): (s,) for r, s in own.items()} for own in scales]
  hypers = tuple(
    own | {tangent_of(name): value for name, value in dots.items()} | extra
    for own, dots, extra in zip(
      dynamics.hyperparameters, along, [*named, {}], strict=True
    )
  )
  return TangentDynamics(
    hypers,
    tuple(parts),
    dynamics.part,
    dynamics.dtypes,
    dynamics.steps,
    dynamics.packing,
  )
