"""A whole run forward, backward, and backward with its adjoint.

All loops are scans over one step.  A step's gradient is computed from the
float view of integers and consumed as rounded increments.  It is isolated, so
that forward and reverse compile the same program for it, and steps are counted
from a zero that no compiler knows (docs/design.md).
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from revmom.exact import residue
from revmom.exact.bit_buffer import Schedule
from revmom.exact.fence import keep_alive, origin
from revmom.exact.residue import Residues
from revmom.optimizers.dynamics import Bars, Dynamics
from revmom.optimizers.slot import PARAMS
from revmom.optimizers.spills import Spills
from revmom.steps.checksum import checksum
from revmom.steps.leaf import Leaf
from revmom.training.model import Outputs
from revmom.training.plans import Plan
from revmom.training.problem import Data, Problem
from revmom.training.rounding import restored, rounded


class Adjoint(NamedTuple):
  """The cotangents of everything, between two steps of the reverse pass."""

  leaves: list[Bars]
  state: list[Any]  # of the model; None for what is no float
  hyperparameters: tuple[dict[str, tuple], ...]
  data: Data  # None for what is not differentiated


class Backward(NamedTuple):
  """The state of the reverse pass."""

  leaves: list[Leaf]
  adjoint: Adjoint | None
  diverged_at: jax.Array  # int32 []


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
  residues: list[Residues]  # of the gradients of leaves, if any are kept
  states: list[jax.Array]  # of the model, before the step


class Reference(NamedTuple):
  """What the reverse pass is told about the steps of the run."""

  losses_bar: jax.Array | None
  aux_bar: list[jax.Array | None]
  checksums: jax.Array
  residues: list[Residues]
  states: list[jax.Array]

  def at(self, step: jax.Array) -> tuple[Outputs, list[jax.Array]]:
    """The cotangents of a step's outputs, and the model's state before it."""
    item = lambda array: None if array is None else array[step]
    bars = Outputs(item(self.losses_bar), [], [*map(item, self.aux_bar)])
    return bars, [state[step] for state in self.states]


def first_step(leaves: list[Leaf]) -> jax.Array:
  """Zero, from which a run counts its steps: see `revmom.exact.fence`."""
  return origin([leaf.integers[PARAMS] for leaf in leaves])


def _bare(leaves: list[Leaf]) -> list[Leaf]:
  return [leaf.bare() for leaf in leaves]


def _words(leaves: list[Leaf]) -> list[dict[str, jax.Array | None]]:
  return [leaf.words() for leaf in leaves]


def put_words(leaves: list[Leaf], words: list) -> list[Leaf]:
  """The leaves with other spilled words."""
  return [leaf.with_words(w) for leaf, w in zip(leaves, words, strict=True)]


def with_rows(leaves: list[Leaf], rows: list[dict[str, int]]) -> list[Leaf]:
  """The leaves with room for so many words, see `Spills.rows`."""
  return [leaf.with_rows(n) for leaf, n in zip(leaves, rows, strict=True)]


def _rebased(schedules: list[dict[str, Schedule]], start: Any) -> list:
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


def _empty_log(problem: Problem, now: Moving) -> Log:
  """That of no steps."""
  residues = []
  if problem.residue_bits:
    residues = [
      residue.nothing(leaf.integers[PARAMS].size, problem.residue_bits)
      for leaf in now.leaves
    ]
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
    return now, _empty_log(problem, now)
  dynamics, spills, data = inputs
  schedules = _rebased(spills.schedules, start)

  def step(now, t):
    leaves, state = now
    views = dynamics.views(leaves)
    out, gradients = problem.gradient(views, state, data.at(t), t)
    gradients = problem.consume(gradients, views, dynamics.thresholds(t), t)
    if reference is None:
      gradients, residues = rounded(problem, gradients)
    else:
      residues = []
      gradients = restored(problem, gradients, reference.residues, t)
    leaves = dynamics.forward(leaves, gradients, t, schedules)
    # Of the new integers, which nothing overwrites in this step: a compiler
    # would copy the old ones for it.
    checked = lax.cond(
      (t + 1) % problem.checksum_every == 0,
      lambda: checksum(leaves),
      lambda: jnp.zeros(2, jnp.uint32),
    )
    log = Log(out.value, out.aux, checked, residues, state)
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
      kept = jax.device_put(_words(now.leaves), jax.memory.Space.Host)
    return now._replace(leaves=_bare(now.leaves)), (logs, kept)

  firsts = start + plan.length * jnp.arange(plan.segments, dtype=jnp.int32)
  now = now._replace(leaves=_bare(now.leaves))
  now, (logs, kept) = lax.scan(segment, now, firsts)
  logs = jax.tree.map(lambda a: a.reshape(-1, *a.shape[2:]), logs)
  now, final_logs, final_kept = forward(
    problem, inputs, now, plan.final, start + plan.final_start, reference
  )
  return now, [logs, *final_logs], [kept, *final_kept]


def backward(
  problem: Problem,
  inputs: Inputs,
  state: Backward,
  plan: Plan,
  kept: list,
  start: Any,
  reference: Reference,
) -> Backward:
  """Undoes `forward`; `reference` is what the run left.

  `state.leaves` have the words of the plan's last segment.
  """
  if not plan.segments:
    return backward_steps(problem, inputs, state, start, plan.steps, reference)
  state = backward(
    problem,
    inputs,
    state,
    plan.final,
    kept[1:],
    start + plan.final_start,
    reference,
  )

  def segment(state, xs):
    first, own = xs
    leaves = state.leaves
    inner: list = []
    if plan.words == "host":
      own = jax.device_put(own, jax.memory.Space.Device)
      leaves = put_words(leaves, own)
    else:
      before = Moving(own, reference.at(first)[1])
      again, _, inner = forward(
        problem, inputs, before, plan.leading, first, reference
      )
      # Only words are taken from the second pass: integers must agree anyway.
      leaves = put_words(leaves, _words(again.leaves))
    state = backward(
      problem,
      inputs,
      state._replace(leaves=leaves),
      plan.leading,
      inner,
      first,
      reference,
    )
    return state._replace(leaves=_bare(state.leaves)), None

  firsts = start + plan.length * jnp.arange(plan.segments, dtype=jnp.int32)
  state = state._replace(leaves=_bare(state.leaves))
  return lax.scan(segment, state, (firsts, kept[0]), reverse=True)[0]


def backward_steps(
  problem: Problem,
  inputs: Inputs,
  state: Backward,
  start: Any,
  length: int,
  reference: Reference,
) -> Backward:
  """Undoes steps start + length - 1, ..., start, words being in the leaves."""
  if not length:
    return state
  words = _words(state.leaves)
  schedules = _rebased(inputs.spills.schedules, start)

  def step(carry, _):
    state, t = carry
    state = state._replace(leaves=put_words(state.leaves, words))
    state = _undo(problem, inputs, state, t, schedules, reference)
    return (state._replace(leaves=_bare(state.leaves)), t - 1), None

  state = state._replace(leaves=_bare(state.leaves))
  last = jnp.asarray(start + length - 1, jnp.int32)
  return lax.scan(step, (state, last), length=length)[0][0]


def _undo(
  problem: Problem,
  inputs: Inputs,
  state: Backward,
  t: jax.Array,
  schedules: list,
  reference: Reference,
) -> Backward:
  """One step back, with the adjoint if there is one.

  Integers are restored in two halves, `after` -> `between` -> `before`, with
  the gradient, which the parameters in `between` give, in the middle.
  """
  dynamics, _, data = inputs
  after = state.leaves
  between = dynamics.undo_update(after, t, schedules)
  views, item = dynamics.views(between), data.at(t)
  thresholds = dynamics.thresholds(t)
  bars, model_state = reference.at(t)
  out, raw = problem.gradient(views, model_state, item, t)
  gradients = problem.consume(raw, views, thresholds, t)
  gradients = restored(problem, gradients, reference.residues, t)
  t = keep_alive(t, out.witness)
  before = dynamics.undo_increments(between, gradients, t, schedules)
  adjoint = state.adjoint
  if adjoint is not None:
    own, totals = adjoint.leaves, adjoint.hyperparameters
    nothing = [None] * len(after)
    own, _, totals = dynamics.pull_back(
      after, between, nothing, own, totals, t, schedules
    )
    own, gradients_bar, totals = dynamics.pull_back(
      between, before, gradients, own, totals, t, schedules
    )
    _, pull_back = jax.vjp(
      lambda raw, views, thresholds: problem.consume(raw, views, thresholds, t),
      raw,
      views,
      thresholds,
    )
    raw_bar, views_bar, thresholds_bar = pull_back(gradients_bar)
    more_bar, state_bar, item_bar = problem.pull_back(
      views,
      model_state,
      item,
      t,
      raw_bar,
      bars._replace(state=adjoint.state),
      adjoint.data,
    )
    adjoint = Adjoint(
      leaves=[
        _plus(leaf, dynamics.bars_of(a + b))
        for leaf, a, b in zip(own, views_bar, more_bar, strict=True)
      ],
      state=state_bar,
      hyperparameters=dynamics.add_thresholds_bar(totals, thresholds_bar, t),
      data=adjoint.data.plus(item_bar, t),
    )
  every = problem.checksum_every
  diverged = lax.cond(
    t % every == 0,
    lambda: jnp.any(checksum(before) != reference.checksums[t // every]),
    lambda: jnp.zeros((), bool),
  )
  diverged_at = jnp.where(
    diverged & (state.diverged_at < 0), t, state.diverged_at
  )
  return Backward(before, adjoint, diverged_at)


def _plus(bars: Bars, more: Bars) -> Bars:
  return bars | {name: bars[name] + bar for name, bar in more.items()}
