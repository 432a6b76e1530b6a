"""The adjoint of an optimizer's step, one role at a time.

A step changes its roles in turn, z <- rho z + phi(g, what changed before), so
its adjoint visits them in reverse:

    g_bar += (d phi / d g)^T z_bar,  earlier_bar += (d phi / d earlier)^T z_bar,
    rho_bar += <z, z_bar>,           z_bar <- rho z_bar,

with rounding to a grid differentiated as the identity.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import jax

from revmom.optimizers import hyperparameters
from revmom.optimizers.dynamics import Dynamics
from revmom.optimizers.leaf import Leaf, value_after, value_before


class Adjoint(NamedTuple):
  """The cotangents of everything, between two steps of the reverse pass."""

  params: list[jax.Array]
  slots: list[dict[str, jax.Array]]
  hyperparameters: tuple[dict[str, tuple], ...]
  shared: list[jax.Array]  # of the differentiated inputs common to all steps
  stacked: list[jax.Array]  # of those with a step axis


def pull_back_update(
  dynamics: Dynamics,
  after: Sequence[Leaf],
  between: Sequence[Leaf],
  now: Sequence[dict],
  adjoint: Adjoint,
  step: jax.Array,
) -> Adjoint:
  """The adjoint of what a step does to the parameters and after them."""
  gradients = [None] * len(after)
  adjoint, _ = _pull_back(
    dynamics, after, between, now, gradients, adjoint, step, early=False
  )
  return adjoint


def pull_back_increments(
  dynamics: Dynamics,
  between: Sequence[Leaf],
  before: Sequence[Leaf],
  now: Sequence[dict],
  gradients: Sequence[jax.Array],
  adjoint: Adjoint,
  step: jax.Array,
) -> tuple[Adjoint, list[jax.Array]]:
  """The adjoint of what a step does to the slots; cotangents of gradients."""
  return _pull_back(
    dynamics, between, before, now, gradients, adjoint, step, early=True
  )


def _pull_back(dynamics, after, before, now, gradients, adjoint, step, early):
  params_bar: list[jax.Array] = []
  slots_bar: list[dict[str, jax.Array]] = []
  gradients_bar = []
  totals = adjoint.hyperparameters
  for i, gradient in enumerate(gradients):
    dtype = adjoint.params[i].dtype
    equations = dynamics.at(i, step, dtype)
    bars = dynamics.bars_of_roles(adjoint.params[i], adjoint.slots[i])
    gradient_bar = None
    for role in reversed(equations.early if early else equations.late):
      values = {
        earlier: value_after(equations, earlier, after[i], now[i], dtype)
        for earlier in equations.roles_before(role)
      }
      old = value_before(equations, role, before[i], now[i], dtype)

      def change(equations, gradient, values, old, role=role):
        forgotten = equations.all_forgetting(step).get(role)
        kept = old if forgotten is None else (1 - forgotten) * old
        return kept + equations.increment_of(role, gradient, values, step)

      _, pullback = jax.vjp(change, equations, gradient, values, old)
      equations_bar, own_bar, values_bar, bars[role] = pullback(bars[role])
      bars |= {r: bars[r] + bar for r, bar in values_bar.items()}
      gradient_bar = tree_sum(gradient_bar, own_bar)
      totals = _accumulate(dynamics, totals, i, step, equations_bar)
    own, rest = dynamics.bars_of_leaf(bars)
    params_bar.append(own)
    slots_bar.append(rest)
    gradients_bar.append(gradient_bar)
  adjoint = adjoint._replace(
    params=params_bar, slots=slots_bar, hyperparameters=totals
  )
  return adjoint, gradients_bar


def _accumulate(dynamics, totals, i, step, equations_bar) -> tuple:
  part = dynamics.part[i]
  own = {
    name: hyperparameters.accumulate(values, i, step, equations_bar.value(name))
    for name, values in totals[part].items()
  }
  return (*totals[:part], own, *totals[part + 1 :])


def tree_sum(first: Any, *others: Any) -> Any:
  """The sum of pytrees of one structure; None is nothing."""
  if first is None:
    return tree_sum(*others) if others else None
  return jax.tree.map(lambda *bars: sum(bars[1:], bars[0]), first, *others)
