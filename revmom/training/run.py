"""A whole run forward; backward is in `revmom.training.reverse`.

All loops are scans over one step.  A step's gradient is computed from the
float view of integers and consumed as rounded increments.  It is isolated, so
that forward and reverse compile the same program for it, and steps are counted
from a zero that no compiler knows (docs/design.md).
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from revmom.exact.capacities import Schedule
from revmom.exact.fence import origin
from revmom.exact.residue import Residues
from revmom.optimizers.dynamics import Dynamics
from revmom.optimizers.slot import PARAMS
from revmom.optimizers.spills import Spills
from revmom.steps.checksum import checksum
from revmom.steps.leaf import Leaf
from revmom.training.model import Outputs
from revmom.training.plans import Plan
from revmom.training.problem import Data, Problem
from revmom.training.rounding import Keeping, Restoring, Rounding, nothing


class Inputs(NamedTuple):
  """The arrays a run depends on besides the parameters."""

  dynamics: Dynamics
  spills: Spills
  data: Data


class Log(NamedTuple):
  """What each step of a run leaves, [steps, ...]."""

  losses: jax.Array
  aux: list[jax.Array]
  checksums: jax.Array  # uint32 [steps, 2], of the integers after the step
  residues: list[Residues]  # of what a step consumed, if any are kept
  states: list[jax.Array]  # of the model, before the step


class Reference(NamedTuple):
  """What the reverse pass is told about the steps of the run."""

  losses_bar: jax.Array | None
  aux_bar: list[jax.Array | None]
  checksums: jax.Array
  residues: list[Residues]
  states: list[jax.Array]
  start: Any = 0  # the step that the first of these are of

  def at(self, step: jax.Array) -> tuple[Outputs, list[jax.Array]]:
    """The cotangents of a step's outputs, and the model's state before it."""
    row = step - self.start
    item = lambda array: None if array is None else array[row]
    bars = Outputs(item(self.losses_bar), [], [*map(item, self.aux_bar)])
    return bars, [state[row] for state in self.states]

  def checksum(self, step: jax.Array, every: int) -> jax.Array:
    """Of the integers before a step that is a multiple of `every`."""
    return self.checksums[step // every - self.start // every]


def first_step(leaves: list[Leaf]) -> jax.Array:
  """Zero, from which a run counts its steps: see `revmom.exact.fence`."""
  return origin([leaf.integers[PARAMS] for leaf in leaves])


def bare(leaves: list[Leaf]) -> list[Leaf]:
  """The leaves without words."""
  return [leaf.bare() for leaf in leaves]


def words_of(leaves: list[Leaf]) -> list[dict[str, jax.Array | None]]:
  """The words of all leaves."""
  return [leaf.words() for leaf in leaves]


def put_words(leaves: list[Leaf], words: list) -> list[Leaf]:
  """The leaves with other spilled words."""
  return [leaf.with_words(w) for leaf, w in zip(leaves, words, strict=True)]


def with_rows(leaves: list[Leaf], rows: list[dict[str, int]]) -> list[Leaf]:
  """The leaves with room for so many words, see `Spills.rows`."""
  return [leaf.with_rows(n) for leaf, n in zip(leaves, rows, strict=True)]


def rebased(schedules: list[dict[str, Schedule]], start: Any) -> list:
  """Schedules whose rows count from the first of a segment."""
  return [
    {
      role: schedule._replace(row=schedule.row - schedule.row[start])
      for role, schedule in part.items()
    }
    for part in schedules
  ]


class Moving(NamedTuple):
  """What a run changes from step to step."""

  leaves: list[Leaf]
  state: list[jax.Array]  # of the model


def _empty_log(problem: Problem, dynamics: Dynamics, now: Moving) -> Log:
  """That of no steps."""
  sizes = [leaf.integers[PARAMS].size for leaf in now.leaves]
  residues = nothing(dynamics, sizes, problem.residue_bits)
  out = problem.outputs
  log = Log(out.value, out.aux, jnp.zeros(2, jnp.uint32), residues, now.state)
  return jax.tree.map(lambda a: jnp.zeros((0, *a.shape), a.dtype), log)


def forward_steps(
  problem: Problem,
  inputs: Inputs,
  now: Moving,
  start: Any,
  length: int,
  reference: Reference | None,
) -> tuple[Moving, Log]:
  """Steps start, ..., start + length - 1; again, if there is a reference."""
  if not length:
    return now, _empty_log(problem, inputs.dynamics, now)
  dynamics, spills, data = inputs
  schedules = rebased(spills.schedules, start)

  def step(now, t):
    leaves, state = now
    views = dynamics.views(leaves)
    item = data.at(t - problem.start)
    out, gradients = problem.gradient(views, state, item, t)
    gradients = problem.consume(gradients, views, dynamics.thresholds(t), t)
    rounding: Rounding = Keeping(dynamics, *problem.rounding)
    if reference is not None:
      rounding = Restoring(
        dynamics, *problem.rounding, reference.residues, t, reference.start
      )
    gradients = rounding.gradients(gradients)
    leaves = dynamics.forward(
      leaves, gradients, t, schedules, rounding.increment
    )
    # Of the new integers, which nothing overwrites in this step: a compiler
    # would copy the old ones for it.
    checked = lax.cond(
      (t + 1) % problem.checksum_every == 0,
      lambda: checksum(leaves),
      lambda: jnp.zeros_like(jax.eval_shape(checksum, leaves)),
    )
    log = Log(out.value, out.aux, checked, rounding.kept, state)
    return Moving(leaves, out.state), log

  return lax.scan(step, now, start + jnp.arange(length, dtype=jnp.int32))


def forward(
  problem: Problem,
  inputs: Inputs,
  now: Moving,
  plan: Plan,
  start: Any,
  reference: Reference | None = None,
) -> tuple[Moving, list, list]:
  """A run or segment by its plan: what it changed, [Log], kept.

  A segment that is run again has a reference: what the run left.
  """
  if not plan.segments:
    leaves = with_rows(now.leaves, inputs.spills.rows(plan.steps))
    now = now._replace(leaves=leaves)
    now, logs = forward_steps(
      problem, inputs, now, start, plan.steps, reference
    )
    return now, [logs], []
  streams = plan.words == "host"

  def segment(now, first):
    before = leaves = now.leaves
    rows = inputs.spills.rows(plan.length)
    if not streams:  # one row for all, which nothing reads
      rows = [{role: min(1, n) for role, n in own.items()} for own in rows]
    now = now._replace(leaves=with_rows(leaves, rows))
    now, logs = forward_steps(
      problem, inputs, now, first, plan.length, reference
    )
    kept = before
    if streams:
      kept = jax.device_put(words_of(now.leaves), jax.memory.Space.Host)
    return now._replace(leaves=bare(now.leaves)), (logs, kept)

  firsts = start + plan.length * jnp.arange(plan.segments, dtype=jnp.int32)
  now = now._replace(leaves=bare(now.leaves))
  now, (logs, kept) = lax.scan(segment, now, firsts)
  logs = jax.tree.map(lambda a: a.reshape(-1, *a.shape[2:]), logs)
  now, final_logs, final_kept = forward(
    problem, inputs, now, plan.final, start + plan.final_start, reference
  )
  return now, [logs, *final_logs], [kept, *final_kept]
