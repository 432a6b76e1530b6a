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
from revmom.training.rounding import Restoring
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
      leaves = runs.put_words(leaves, own)
    else:
      before = runs.Moving(own, reference.at(first)[1])
      again, _, inner = runs.forward(
        problem, inputs, before, plan.leading, first, reference
      )
      # Only words are taken from the second pass: integers must agree anyway.
      leaves = runs.put_words(leaves, runs.words_of(again.leaves))
    state = backward(
      problem,
      inputs,
      state._replace(leaves=leaves),
      plan.leading,
      inner,
      first,
      reference,
    )
    return state._replace(leaves=runs.bare(state.leaves)), None

  firsts = start + plan.length * jnp.arange(plan.segments, dtype=jnp.int32)
  state = state._replace(leaves=runs.bare(state.leaves))
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
  words = runs.words_of(state.leaves)
  schedules = runs.rebased(inputs.spills.schedules, start)

  def step(carry, _):
    state, t = carry
    state = state._replace(leaves=runs.put_words(state.leaves, words))
    state = _undo(problem, inputs, state, t, schedules, reference)
    return (state._replace(leaves=runs.bare(state.leaves)), t - 1), None

  state = state._replace(leaves=runs.bare(state.leaves))
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
  rounding = Restoring(problem, dynamics, reference.residues, t)
  settle = rounding.increment
  between = dynamics.undo_update(after, t, schedules, settle)
  views, item = dynamics.views(between), data.at(t)
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
  margin = state.margin
  if margin is not None and rounding.margin is not None:
    # Once the way is lost, nothing is near to what was kept of it.
    seen = margin.nearer(rounding.margin)
    margin = jax.tree.map(
      lambda a, b: jnp.where(state.diverged_at < 0, a, b), seen, margin
    )
  return Backward(before, adjoint, diverged_at, margin)


def _plus(bars: Bars, more: Bars) -> Bars:
  return bars | {name: bars[name] + bar for name, bar in more.items()}
