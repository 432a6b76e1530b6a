"""A whole run forward, backward, and backward with its adjoint.

All loops are scans over one step.  A step's gradient is computed from the
float view of integers and consumed as rounded increments.  It is isolated, so
that forward and reverse compile the same program for it, and steps are counted
from a zero that no compiler knows (docs/design.md).
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from revmom.exact import residue
from revmom.exact.bit_buffer import Schedule
from revmom.exact.fence import keep_alive, origin
from revmom.exact.residue import Residues
from revmom.optimizers.dynamics import Dynamics, Spills
from revmom.optimizers.leaf import Leaf, with_words
from revmom.training import receipt
from revmom.training.adjoint import (
  Adjoint,
  pull_back_increments,
  pull_back_update,
  tree_sum,
)
from revmom.training.plan import Plan


class Backward(NamedTuple):
  """The state of the reverse pass."""

  leaves: list[Leaf]
  adjoint: Adjoint | None
  diverged_at: jax.Array  # int32 []


class Problem(NamedTuple):
  """The static side of a run: what is computed, and how it is kept."""

  # (views, others, step) -> (loss, gradients), of packed arrays; isolated
  gradient: Callable[[list, Any, jax.Array], tuple[jax.Array, list]]
  # (gradients, views, thresholds, step) -> what a step consumes; isolated
  consume: Callable[[list, list, list, jax.Array], list] | None
  # (others of the differentiated ones, views, those ones, step, cotangents of
  # the gradients, of the loss) -> cotangents of views and of those ones
  pull_back: Callable[..., tuple[list, Any]]
  select: Callable[[Any], Any]  # others -> the differentiated ones
  merge: Callable[[Any, Any], Any]  # (others, differentiated ones) -> others
  dtypes: tuple  # of the floats of leaves
  digits: tuple  # that gradients of leaves are rounded to, see `residue`
  checksum_every: int
  residue_bits: int = 0  # kept of each rounded gradient; 0: of none


class Inputs(NamedTuple):
  """The arrays a run depends on besides the parameters."""

  dynamics: Dynamics
  spills: Spills
  shared: list[jax.Array]
  stacked: list[jax.Array]  # [steps, ...]


class Log(NamedTuple):
  """What each step of a run leaves, [steps, ...]."""

  losses: jax.Array
  checksums: jax.Array  # uint32 [steps, 2], of the integers after the step
  residues: list[Residues]  # of the gradients of leaves, if any are kept


def _round(problem: Problem, gradients: list) -> tuple[list, list[Residues]]:
  """Gradients that another computation restores, if residues are kept."""
  if not problem.residue_bits:
    return gradients, []
  pairs = [
    residue.keep(gradient, problem.residue_bits, digits)
    for gradient, digits in zip(gradients, problem.digits, strict=True)
  ]
  return [rounded for rounded, _ in pairs], [kept for _, kept in pairs]


def _restore(problem: Problem, gradients: list, residues: list, t: Any) -> list:
  """What `_round` gave at a step, from gradients that are close to it."""
  if not problem.residue_bits:
    return gradients
  return [
    residue.restore(
      gradient,
      jax.tree.map(lambda a: a[t], kept),
      problem.residue_bits,
      digits,
    )
    for gradient, kept, digits in zip(
      gradients, residues, problem.digits, strict=True
    )
  ]


def first_step(leaves: list[Leaf]) -> jax.Array:
  """Zero, from which a run counts its steps: see `revmom.exact.fence`."""
  return origin([leaf.params for leaf in leaves])


def _item(stacked: list[jax.Array], step: jax.Array) -> list[jax.Array]:
  pick = lambda a: lax.dynamic_index_in_dim(a, step, keepdims=False)
  return [pick(array) for array in stacked]


def _bare(leaves: list[Leaf]) -> list[Leaf]:
  """The leaves without words."""
  return [
    leaf._replace(
      buffers={
        role: buffer._replace(words=None)
        for role, buffer in leaf.buffers.items()
      }
    )
    for leaf in leaves
  ]


def _words(leaves: list[Leaf]) -> list[dict[str, jax.Array | None]]:
  return [{r: b.words for r, b in leaf.buffers.items()} for leaf in leaves]


def _put_words(leaves: list[Leaf], words: list) -> list[Leaf]:
  return [
    leaf._replace(
      buffers={
        role: buffer._replace(words=own[role])
        for role, buffer in leaf.buffers.items()
      }
    )
    for leaf, own in zip(leaves, words, strict=True)
  ]


def _rebased(schedules: list[dict[str, Schedule]], start: Any) -> list:
  """Schedules whose rows count from the first of a segment."""
  return [
    {
      role: schedule._replace(row=schedule.row - schedule.row[start])
      for role, schedule in part.items()
    }
    for part in schedules
  ]


def forward_steps(
  problem: Problem, inputs: Inputs, leaves: list, start: Any, length: int
) -> tuple[list[Leaf], Log]:
  """Steps start, ..., start + length - 1."""
  if not length:
    residues = []
    if problem.residue_bits:
      empty = lambda a: jnp.zeros((0, *a.shape), a.dtype)
      residues = [
        jax.tree.map(
          empty, residue.nothing(leaf.params.size, problem.residue_bits)
        )
        for leaf in leaves
      ]
    return leaves, Log(jnp.zeros(0), jnp.zeros((0, 2), jnp.uint32), residues)
  dynamics, spills, shared, stacked = inputs
  schedules = _rebased(spills.schedules, start)

  def step(leaves, t):
    views = dynamics.views(leaves, problem.dtypes)
    others = shared, _item(stacked, t)
    value, gradients = problem.gradient(views, others, t)
    if problem.consume is not None:
      thresholds = dynamics.thresholds(t)
      gradients = problem.consume(gradients, views, thresholds, t)
    gradients, residues = _round(problem, gradients)
    leaves = dynamics.forward(leaves, gradients, t, schedules)
    # Of the new integers, which nothing overwrites in this step: a compiler
    # would copy the old ones for it.
    checked = lax.cond(
      (t + 1) % problem.checksum_every == 0,
      lambda: receipt.checksum(leaves),
      lambda: jnp.zeros(2, jnp.uint32),
    )
    return leaves, Log(value, checked, residues)

  return lax.scan(step, leaves, start + jnp.arange(length, dtype=jnp.int32))


def forward(
  problem: Problem, inputs: Inputs, leaves: list, plan: Plan, start: Any
) -> tuple[list[Leaf], list, list]:
  """A run or segment by its plan: leaves, [Log], kept."""
  if not plan.segments:
    leaves = with_words(leaves, inputs.spills.rows(plan.steps))
    leaves, logs = forward_steps(problem, inputs, leaves, start, plan.steps)
    return leaves, [logs], []
  streams = plan.words == "host"

  def segment(leaves, first):
    before = leaves
    rows = inputs.spills.rows(plan.length)
    if not streams:  # one row for all, which nothing reads
      rows = [{role: min(1, n) for role, n in own.items()} for own in rows]
    leaves = with_words(leaves, rows)
    leaves, logs = forward_steps(problem, inputs, leaves, first, plan.length)
    kept = before
    if streams:
      kept = jax.device_put(_words(leaves), jax.memory.Space.Host)
    return _bare(leaves), (logs, kept)

  firsts = start + plan.length * jnp.arange(plan.segments, dtype=jnp.int32)
  leaves, (logs, kept) = lax.scan(segment, _bare(leaves), firsts)
  logs = jax.tree.map(lambda a: a.reshape(-1, *a.shape[2:]), logs)
  leaves, final_logs, final_kept = forward(
    problem, inputs, leaves, plan.final, start + plan.final_start
  )
  return leaves, [logs, *final_logs], [kept, *final_kept]


def backward(
  problem: Problem,
  inputs: Inputs,
  state: Backward,
  plan: Plan,
  kept: list,
  start: Any,
  reference: tuple,
) -> Backward:
  """Undoes `forward`; `reference`: loss cotangents, checksums and residues.

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
      leaves = _put_words(leaves, own)
    else:
      again, _, inner = forward(problem, inputs, own, plan.leading, first)
      # Only words are taken from the second pass: integers must agree anyway.
      leaves = _put_words(leaves, _words(again))
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
  reference: tuple,
) -> Backward:
  """Undoes steps start + length - 1, ..., start, words being in the leaves."""
  if not length:
    return state
  words = _words(state.leaves)
  schedules = _rebased(inputs.spills.schedules, start)

  def step(carry, _):
    state, t = carry
    state = state._replace(leaves=_put_words(state.leaves, words))
    state = _undo(problem, inputs, state, t, schedules, reference)
    return (state._replace(leaves=_bare(state.leaves)), t - 1), None

  state = state._replace(leaves=_bare(state.leaves))
  last = jnp.asarray(start + length - 1, jnp.int32)
  return lax.scan(step, (state, last), length=length)[0][0]


def _undo(problem, inputs, state, t, schedules, reference) -> Backward:
  """One step back, with the adjoint if there is one.

  Integers are restored in two halves, `after` -> `between` -> `before`, with
  the gradient, which the parameters in `between` give, in the middle.
  """
  dynamics, _, shared, stacked = inputs
  losses_bar, checksums, residues = reference
  after, adjoint = state.leaves, state.adjoint
  now = [dynamics.now(schedules, i, t) for i in range(len(after))]
  between = [
    dynamics.undo_update(i, leaf, t, now[i], dtype)
    for i, (leaf, dtype) in enumerate(zip(after, problem.dtypes, strict=True))
  ]
  views = dynamics.views(between, problem.dtypes)
  others = (shared, _item(stacked, t))
  thresholds = dynamics.thresholds(t)
  value, raw = problem.gradient(views, others, t)
  gradients = raw
  if problem.consume is not None:
    gradients = problem.consume(raw, views, thresholds, t)
  gradients = _restore(problem, gradients, residues, t)
  t = keep_alive(t, jnp.sum(value))
  before = [
    dynamics.undo_increments(i, leaf, gradient, t, now[i])
    for i, (leaf, gradient) in enumerate(zip(between, gradients, strict=True))
  ]
  if adjoint is not None:
    adjoint = pull_back_update(dynamics, after, between, now, adjoint, t)
    adjoint, gradients_bar = pull_back_increments(
      dynamics, between, before, now, gradients, adjoint, t
    )
    raw_bar, views_bar, thresholds_bar = gradients_bar, None, []
    if problem.consume is not None:
      _, pull_back = jax.vjp(problem.consume, raw, views, thresholds, t)
      raw_bar, views_bar, thresholds_bar, _ = pull_back(gradients_bar)
    value_bar = None if losses_bar is None else losses_bar[t]
    others_of = lambda chosen: problem.merge(others, chosen)
    params_bar, chosen_bar = problem.pull_back(
      others_of, views, problem.select(others), t, raw_bar, value_bar
    )
    adjoint = adjoint._replace(
      hyperparameters=dynamics.add_thresholds_bar(
        adjoint.hyperparameters, thresholds_bar, t
      ),
      params=tree_sum(adjoint.params, tree_sum(views_bar, params_bar)),
      shared=tree_sum(adjoint.shared, chosen_bar[0]),
      stacked=[
        total.at[t].set(bar)
        for total, bar in zip(adjoint.stacked, chosen_bar[1], strict=True)
      ],
    )
  every = problem.checksum_every
  diverged = lax.cond(
    t % every == 0,
    lambda: jnp.any(receipt.checksum(before) != checksums[t // every]),
    lambda: jnp.zeros((), bool),
  )
  diverged_at = jnp.where(
    diverged & (state.diverged_at < 0), t, state.diverged_at
  )
  return Backward(before, adjoint, diverged_at)
