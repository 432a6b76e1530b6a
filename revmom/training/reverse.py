"""A whole run backward, with its adjoint if there is one."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from revmom.exact.fence import keep_alive
from revmom.exact.residue import Margin
from revmom.optimizers.dynamics import Bars
from revmom.steps.checksum import checksum
from revmom.steps.leaf import Leaf
from revmom.training import run as runs
from revmom.training.plans import Plan
from revmom.training.problem import Data, Problem
from revmom.training.rounding import Restoring, narrowest
from revmom.training.run import Inputs, Reference


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
  margin: Margin | None  # the narrowest so far, of residues if there are any


def backward(
  problem: Problem,
  inputs: Inputs,
  state: Backward,
  plan: Plan,
  kept: list,
  start: Any,
  reference: Reference,
  to: int = 0,
) -> tuple[Backward, list]:
  """Undoes `forward` down to a step; `reference` is what the run left.

  Args:
    problem: of the run, as are `inputs`, `plan` and `kept`.
    state: its leaves have the words of the plan's last segment.
    start: the first step of the run.
    reference: what the run left.
    to: how many steps stay as they are.

  Returns:
    The state there, and what is kept for the rest, `plan.first(to)`.
  """
  if not plan.segments:
    return backward_steps(
      problem, inputs, state, start, plan.steps, reference, to
    ), []
  down = lambda state, plan, kept, first, to: backward(
    problem, inputs, state, plan, kept, first, reference, to
  )
  if to >= plan.final_start:
    state, rest_kept = down(
      state,
      plan.final,
      kept[1:],
      start + plan.final_start,
      to - plan.final_start,
    )
    return state, [kept[0], *rest_kept]
  state, _ = down(state, plan.final, kept[1:], start + plan.final_start, 0)

  def begin(state, first, own):
    """The state before a leading segment is undone, and what is kept of it."""
    if plan.words == "recompute":
      before = runs.Moving(own, reference.at(first)[1])
      again, _, inner = runs.forward(
        problem, inputs, before, plan.leading, first, reference
      )
      # Only words are taken from the second pass: integers must agree anyway.
      own = runs.words_of(again.leaves)
    else:
      inner = []
      if plan.words == "host":
        own = jax.device_put(own, jax.memory.Space.Device)
    return state._replace(leaves=runs.put_words(state.leaves, own)), inner

  def segment(state, xs):
    first, own = xs
    state, inner = begin(state, first, own)
    state, _ = down(state, plan.leading, inner, first, 0)
    return state._replace(leaves=runs.bare(state.leaves)), None

  whole, rest = divmod(to, plan.length)
  above = whole + bool(rest)
  numbers = jnp.arange(above, plan.segments, dtype=jnp.int32)
  state = state._replace(leaves=runs.bare(state.leaves))
  own = kept[0] if not above else jax.tree.map(lambda a: a[above:], kept[0])
  xs = start + plan.length * numbers, own
  state = lax.scan(segment, state, xs, reverse=True)[0]
  left: list = []
  if rest:
    first = start + plan.length * whole
    own = jax.tree.map(lambda a: a[whole], kept[0])
    state, inner = begin(state, first, own)
    state, left = down(state, plan.leading, inner, first, rest)
  if whole:
    left = [jax.tree.map(lambda a: a[:whole], kept[0]), *left]
  return state, left


def backward_steps(
  problem: Problem,
  inputs: Inputs,
  state: Backward,
  start: Any,
  length: int,
  reference: Reference,
  to: int = 0,
) -> Backward:
  """Undoes steps start + length - 1, ..., start + to.

  The words of all since `start` are in the leaves, and those of the steps that
  are left stay there.
  """
  if length == to:
    return state
  words = runs.words_of(state.leaves)
  schedules = runs.rebased(inputs.spills.schedules, start)

  def step(carry, _):
    state, t = carry
    state = state._replace(leaves=runs.put_words(state.leaves, words))
    state = undo(problem, inputs, state, t, schedules, reference)
    return (state._replace(leaves=runs.bare(state.leaves)), t - 1), None

  state = state._replace(leaves=runs.bare(state.leaves))
  last = jnp.asarray(start + length - 1, jnp.int32)
  state = lax.scan(step, (state, last), length=length - to)[0][0]
  if not to:
    return state
  return state._replace(leaves=runs.put_words(state.leaves, words))


def undo(
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
  rounding = Restoring(
    dynamics, *problem.rounding, reference.residues, t, reference.start
  )
  settle = rounding.increment
  between = dynamics.undo_update(after, t, schedules, settle)
  views, item = dynamics.views(between), data.at(t - problem.start)
  thresholds = dynamics.thresholds(t)
  bars, model_state = reference.at(t)
  out, raw = problem.gradient(views, model_state, item, t)
  gradients = problem.consume(raw, views, thresholds, t)
  gradients = rounding.gradients(gradients)
  t = keep_alive(t, out.witness)
  before = dynamics.undo_increments(between, gradients, t, schedules, settle)
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
      data=adjoint.data.plus(item_bar, t - problem.start),
    )
  every = problem.checksum_every
  diverged = lax.cond(
    t % every == 0,
    lambda: jnp.any(checksum(before) != reference.checksum(t, every)),
    lambda: jnp.zeros_like(state.diverged_at, bool),
  )
  diverged_at = jnp.where(
    diverged & (state.diverged_at < 0), t, state.diverged_at
  )
  margin = narrowest(state.margin, rounding.margin, state.diverged_at)
  return Backward(before, adjoint, diverged_at, margin)


def _plus(bars: Bars, more: Bars) -> Bars:
  return bars | {name: bars[name] + bar for name, bar in more.items()}
