"""How finely the tangents of a run are held, from a float pass over it."""

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from revmom.optimizers.dynamics import Dynamics
from revmom.optimizers.slot import PARAMS
from revmom.optimizers.tangent import tangent
from revmom.steps.equations import value_after
from revmom.steps.leaf import scale_for, tangent_of
from revmom.training import run as runs
from revmom.training.problem import Data
from revmom.training.run import Inputs


def stack(own: Sequence[Any], along: Sequence[Any]) -> list[jax.Array]:
  """Arrays [2, ...] of a run and its tangent."""
  return [jnp.stack(pair) for pair in zip(own, along, strict=True)]


def rows(both: Sequence[Any]) -> tuple[list, list]:
  """Undoes `stack`."""
  return [a[0] for a in both], [a[1] for a in both]


def scales(
  dynamics: Dynamics, along: tuple, data: Data, packed: list, problem: Any
) -> list[dict[str, jax.Array]]:
  """Of each part, role -> power of two that makes the most of its integers.

  The run is made once, with its tangent in floats.
  """
  spills = dynamics.spills()
  probe = tangent(
    dynamics,
    along,
    [dict.fromkeys(own.names, jnp.ones(())) for own in dynamics.equations],
  )
  start, start_dot = rows(packed)
  leaves = dynamics.begin(start, spills, 0)
  words = [
    {r: min(1, n) for r, n in own.items()}
    for own in spills.rows(dynamics.steps)
  ]
  leaves = runs.with_rows(leaves, words)  # written, and never read
  dots = [
    {name: jnp.zeros_like(dot) for name in leaf.integers} | {PARAMS: dot}
    for leaf, dot in zip(leaves, start_dot, strict=True)
  ]
  inputs = Inputs(dynamics, spills, data)

  def step(carry, t):
    leaves, dots, peaks = carry
    after, dots = _float_step(problem, inputs, probe, leaves, dots, t)
    peaks = jax.tree.map(jnp.maximum, peaks, jax.tree.map(_peak, dots))
    return (after, dots, peaks), None

  carry = leaves, dots, jax.tree.map(_peak, dots)
  steps = runs.first_step(leaves) + jnp.arange(dynamics.steps, dtype=jnp.int32)
  if dynamics.steps:
    carry, _ = lax.scan(step, carry, steps)
  peaks = carry[2]
  found = []
  for number, equations in enumerate(dynamics.equations):
    own = [
      p for p, part in zip(peaks, dynamics.part, strict=True) if part == number
    ]
    found.append(
      {
        role.name: scale_for(
          role, jnp.max(jnp.stack([p[role.name] for p in own]))
        )
        if own
        else jnp.ones(())
        for role in equations.roles
      }
    )
  return found


def _peak(values: jax.Array) -> jax.Array:
  return jnp.max(jnp.abs(values), initial=0)


def _float_step(problem, inputs, probe, leaves, dots, t):
  """One step of a run, and of its tangent in floats."""
  dynamics, spills, data = inputs
  views = stack(dynamics.views(leaves), [dot[PARAMS] for dot in dots])
  _, gradients = problem.gradient(views, [], data.at(t), t)
  gradients = problem.consume(gradients, views, probe.thresholds(t), t)
  after = dynamics.forward(leaves, rows(gradients)[0], t, spills.schedules)
  moved = []
  for i, (leaf, gradient) in enumerate(zip(after, gradients, strict=True)):
    equations = probe.at(i, t)
    own, now = equations.own, dynamics.now(spills.schedules, i, t)
    values: dict[str, jax.Array] = {}
    new: dict[str, jax.Array] = {}
    for role in own.roles:
      name, along = role.name, tangent_of(role.name)
      given = gradient if role in own.early else None
      values[name] = value_after(own, role, leaf, now, gradient.dtype)
      forgotten = own.forgetting(t).get(name, 0)
      change = equations.increment(along, given, values, t)
      new[name] = values[along] = (1 - forgotten) * dots[i][name] + change
    moved.append(new)
  return after, moved
