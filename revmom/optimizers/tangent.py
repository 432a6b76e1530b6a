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
from revmom.optimizers.dynamics import Dynamics, Spills, add_bars
from revmom.optimizers.leaf import (
  PARAMS,
  Leaf,
  base,
  is_tangent,
  tangent_of,
)
from revmom.optimizers.reversible import ReversibleOptimizer


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

  def all_forgetting(self, step: jax.Array) -> dict[str, jax.Array]:
    factors = self.own.all_forgetting(step)
    return factors | {tangent_of(role): f for role, f in factors.items()}

  def increment_of(
    self, role: str, gradient: Any, values: dict[str, jax.Array], step: Any
  ) -> jax.Array:
    of = base(role)
    before = {r: values[r] for r in self.own.roles_before(of)}
    own, along = (None, None) if gradient is None else gradient
    phi = lambda optimizer, gradient, before: optimizer.increment_of(
      of, gradient, before, step
    )
    if not is_tangent(role):
      return phi(self.own, own, before)
    tangents = {r: values[tangent_of(r)] for r in before}
    phi, phi_dot = jax.jvp(
      phi, (self.own, own, before), (self.along, along, tangents)
    )
    forgotten, forgotten_dot = jax.jvp(
      lambda optimizer: optimizer.all_forgetting(step).get(of, jnp.zeros(())),
      (self.own,),
      (self.along,),
    )
    old = (values[of] - phi) / (1 - forgotten.astype(phi.dtype))
    return phi_dot - forgotten_dot.astype(phi.dtype) * old

  def contracts(self, role: str) -> bool:
    return is_tangent(role) or self.own.contracts(role)

  def scale(self, role: str) -> Any:
    return self.scales[base(role)] if is_tangent(role) else 1


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

  def bars_of_roles(self, params_bar: jax.Array, slots_bar: dict) -> dict:
    own, tangent = params_bar
    return {PARAMS: own, tangent_of(PARAMS): tangent, **slots_bar}

  def bars_of_leaf(self, bars: dict) -> tuple[jax.Array, dict]:
    both = PARAMS, tangent_of(PARAMS)
    rest = {role: bar for role, bar in bars.items() if role not in both}
    return jnp.stack([bars[role] for role in both]), rest

  def begin(self, params: list, spills: Spills, length: int) -> list[Leaf]:
    role = tangent_of(PARAMS)
    leaves = super().begin([own for own, _ in params], spills, length)
    begun = []
    for i, (leaf, (_, tangent)) in enumerate(zip(leaves, params, strict=True)):
      equations = self.at(i, jnp.zeros((), jnp.int32), tangent.dtype)
      bits = dict(equations.fraction_bits)[role]
      scaled = tangent * equations.scale(role)
      integers = fixed_point.to_fixed(scaled, bits, self.integer)
      buffer = leaf.buffers.get(role)
      if buffer is not None:
        number = bit_buffer.init(integers, 0).number
        buffer = buffer._replace(number=number)
      begun.append(leaf.put(role, integers, buffer))
    return begun

  def view(self, i: int, leaf: Leaf, dtype: Any) -> jax.Array:
    role = tangent_of(PARAMS)
    equations = self.at(i, jnp.zeros((), jnp.int32), dtype)
    bits = dict(equations.fraction_bits)[role]
    scaled = fixed_point.from_fixed(leaf.of(role), bits, dtype)
    return jnp.stack(
      [super().view(i, leaf, dtype), scaled / equations.scale(role)]
    )


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
    both = lambda pairs: tuple(
      pair for role, x in pairs for pair in ((role, x), (tangent_of(role), x))
    )
    parts.append(
      Tangent(
        own=equations,
        along=equations,
        scales=dict.fromkeys(equations.roles),
        fraction_bits=both(equations.fraction_bits),
        floors=both(equations.floors),
        fine=tuple(role for role, _ in both((r, 0) for r in equations.fine)),
        nonnegative=equations.nonnegative,
        integer=equations.integer,
        shown_bits=equations.shown_bits,
        forgetting_varies=equations.forgetting_varies,
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
    hypers, tuple(parts), dynamics.part, dynamics.packing, dynamics.steps
  )
