"""One step of the roles of an array: forward, back, and its adjoint.

Every step that changes its quantities z_1, ..., z_n in turn,

    z_k' = rho_k z_k + phi_k(g, z_1', ..., z_{k-1}'),                     (1)

with 0 < rho <= 1, is an exact bijection on a grid: phi is an increment that is
computed from quantities which are known on the way back, so it is rounded and
subtracted again; only the factors lose information, and a `BitBuffer` keeps it
(Maclaurin, Duvenaud & Adams 2015, Algorithm 3).  Its Jacobian is a product of
shears and scalings, so log|det| is the sum of the log factors.  A factor may
also be computed like an increment, for each element by itself, from all but
what it multiplies: a gate, whose bits a `GateBuffer` keeps.

What is given, g, may depend on the quantities that have not changed yet; those
that change before it is asked for are early roles, the others are late ones.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
from jax import lax
from jax.typing import DTypeLike

from revmom.exact import gate_buffer
from revmom.exact.capacities import Schedule
from revmom.exact.fence import fence, isolate
from revmom.exact.pytree import Pytree, static
from revmom.steps import leaf as leaves
from revmom.steps.leaf import Gated, Leaf, Role

Now = Mapping[str, Schedule]  # of the roles that are multiplied, at one step
# What makes the same of increments that contract, although they may be computed
# otherwise on the way back.
Settle = Callable[[str, jax.Array], jax.Array]


class Equations(Pytree, kw_only=True):
  """What is changed, in which order, by which factors and increments.

  Attributes:
    roles: in the order in which a step changes them.
  """

  roles: tuple[Role, ...] = static()

  def forgetting(self, step: jax.Array) -> dict[str, jax.Array]:
    """1 - rho of every role that is multiplied."""
    raise NotImplementedError

  def increment(
    self, name: str, given: Any, values: dict[str, jax.Array], step: jax.Array
  ) -> Any:
    """phi of a role, `Gated` if its elements have factors of their own.

    `values` are the floats of those that it is computed from.
    """
    raise NotImplementedError

  def contracts(self, name: str) -> bool:
    """Whether products and sums may meet within the increment of a role."""
    raise NotImplementedError

  def scale(self, name: str) -> Any:
    """A power of two that the integers of a role are multiplied with."""
    return 1

  @property
  def names(self) -> tuple[str, ...]:
    """Of the roles."""
    return tuple(role.name for role in self.roles)

  @property
  def early(self) -> tuple[Role, ...]:
    """Roles whose increments see what is given."""
    raise NotImplementedError

  @property
  def late(self) -> tuple[Role, ...]:
    """The others, which change after them."""
    return self.roles[len(self.early) :]

  def role(self, name: str) -> Role:
    """A role by its name."""
    return self.roles[self.names.index(name)]

  def seen_by(self, role: Role) -> tuple[Role, ...]:
    """Roles whose values its increment is computed from: not its own.

    Those before it have changed already, those after it have not.
    """
    return self.before(role.name)

  def before(self, name: str) -> tuple[Role, ...]:
    """The roles that change before another one."""
    return self.roles[: self.names.index(name)]


def value_after(
  equations: Equations, role: Role, leaf: Leaf, now: Now, dtype: DTypeLike
) -> jax.Array:
  """A role as floats, after the step that `now` belongs to."""
  capacity = now[role.name].after if role.name in now else 0
  return leaves.value(role, leaf, capacity, dtype, equations.scale(role.name))


def value_before(
  equations: Equations, role: Role, leaf: Leaf, now: Now, dtype: DTypeLike
) -> jax.Array:
  """A role as floats, before the step that `now` belongs to."""
  capacity = now[role.name].full if role.name in now else 0
  return leaves.value(role, leaf, capacity, dtype, equations.scale(role.name))


def forward(
  equations: Equations,
  leaf: Leaf,
  given: Any,
  step: Any,
  now: Now,
  dtype: DTypeLike,
  settle: Settle | None = None,
) -> Leaf:
  """Equation (1) for all roles in turn; see `Settle`."""
  for role in equations.roles:
    increment = _increment(
      equations, role, leaf, given, step, now, dtype, settle
    )
    leaf = leaves.advance(role, leaf, increment, now.get(role.name))
  return leaf


def undo(
  equations: Equations,
  roles: Sequence[Role],
  leaf: Leaf,
  given: Any,
  step: Any,
  now: Now,
  dtype: DTypeLike,
  settle: Settle | None = None,
) -> Leaf:
  """Equation (1) undone for the early roles, or for the late ones."""
  return retrace(equations, roles, leaf, given, step, now, dtype, settle)[0]


def retrace(
  equations: Equations,
  roles: Sequence[Role],
  leaf: Leaf,
  given: Any,
  step: Any,
  now: Now,
  dtype: DTypeLike,
  settle: Settle | None = None,
) -> tuple[Leaf, dict[str, jax.Array]]:
  """`undo`, and the gates that it computed for that, as `pull_back` wants."""
  gates = {}
  for role in reversed(roles):
    increment = _increment(
      equations, role, leaf, given, step, now, dtype, settle
    )
    leaf = leaves.retreat(role, leaf, increment, now.get(role.name))
    if role.least_gate is not None:
      rounded = leaves.gates_of(role, increment)
      gates[role.name] = gate_buffer.from_gates(rounded, dtype)
  return leaf, gates


def _values(equations, role, changed, rest, now, dtype) -> dict[str, jax.Array]:
  """What the increment of a role is computed from, when it is its turn.

  Args:
    changed: the integers of the roles that change before it.
    rest: those of the others.
  """
  values = {}
  for other in equations.seen_by(role):
    is_new = other in equations.before(role.name)
    value, leaf = (value_after, changed) if is_new else (value_before, rest)
    values[other.name] = value(equations, other, leaf, now, dtype)
  return values


def _increment(equations, role, leaf, given, step, now, dtype, settle) -> Any:
  """phi of a role, behind fences: its bits are the same both ways."""
  values = {
    name: fence(value, step)
    for name, value in _values(equations, role, leaf, leaf, now, dtype).items()
  }
  if role not in equations.early:
    given = None
  if given is not None:
    given = fence(given, step)
  if equations.contracts(role.name):
    phi = lambda equations, *args: equations.increment(role.name, *args)
    increment = isolate(phi, step, equations, given, values, step)
    if settle is not None:
      increment = settle(role.name, increment)
  else:
    increment = equations.increment(role.name, given, values, step)
    increment = jax.tree.map(lambda value: fence(value, step), increment)
  if role.least_gate is not None:
    return increment  # of a role that no scale belongs to
  return increment * equations.scale(role.name)


def pull_back(
  equations: Equations,
  roles: Sequence[Role],
  after: Leaf,
  before: Leaf,
  given: Any,
  bars: dict[str, jax.Array],
  step: Any,
  now: Now,
  dtype: DTypeLike,
  gates: Mapping[str, jax.Array] | None = None,
) -> tuple[dict[str, jax.Array], Any, list[Equations]]:
  """The adjoint of equation (1) for the early roles, or for the late ones.

  Rounding is differentiated as the identity.  Every derivative is taken of the
  equations themselves, in one place.

  Args:
    equations: of one step.
    roles: `equations.early` or `equations.late`.
    after: the integers after these roles changed.
    before: the integers before.
    given: what the increments of early roles see, else None.
    bars: cotangents of all roles after.
    step: int32 [].
    now: the schedules of this step.
    dtype: of the floats.
    gates: of `retrace`.

  Returns:
    Cotangents of all roles before, of what is given, and of the equations
    from each of the roles.
  """
  given_bar = None
  equations_bars = []
  rounded = gates or {}
  for role in reversed(roles):
    values = _values(equations, role, after, before, now, dtype)
    old = value_before(equations, role, before, now, dtype)

    def change(equations, given, values, old, name=role.name):
      forgotten = equations.forgetting(step).get(name)
      kept = old if forgotten is None else (1 - forgotten) * old
      change = equations.increment(name, given, values, step)
      if not isinstance(change, Gated):
        return kept + change
      # Rounded as it was, though it may be computed a little otherwise here.
      moved = change.gate - lax.stop_gradient(change.gate)
      return (rounded[name] + moved) * kept + change.increment

    _, pullback = jax.vjp(change, equations, given, values, old)
    own_bar, from_given, values_bar, old_bar = pullback(bars[role.name])
    bars = bars | {role.name: old_bar}
    bars |= {name: bars[name] + bar for name, bar in values_bar.items()}
    if given is not None:
      given_bar = from_given if given_bar is None else given_bar + from_given
    equations_bars.append(own_bar)
  return bars, given_bar, equations_bars
