"""Three edits of a training that has been, without a checkpoint of it."""

import functools
import time
from typing import Any, NamedTuple

import jax
import numpy as np

import revmom
from editing.problem import Config, Problem


class Spike(NamedTuple):
  """A broken batch that was taken back."""

  step: int
  losses: np.ndarray  # until it is noticed
  edited: np.ndarray  # from the step on, without the batch
  same: bool  # the integers as those of a run that never saw it
  rewind_seconds: float
  forward_seconds: float  # for as many steps


class Unlearned(NamedTuple):
  """An example that was taken out of a run."""

  example: int
  first_seen: int
  uses: int
  losses: np.ndarray
  edited: np.ndarray
  same: bool
  moved: float  # largest change of a weight
  bits: float  # spilled and in the heads, a parameter and step


class Bisected(NamedTuple):
  """The step at which a metric broke."""

  broken_at: int  # the step from which labels were wrong
  bound: float  # the metric is broken below
  found: int
  probes: list[tuple[int, float]]  # steps that were looked at, the metric there
  metric: np.ndarray  # before each step, and at the end
  steps: int  # taken or undone to look


def _train(problem: Problem) -> Any:
  train = functools.partial(revmom.train, problem.loss_fn, problem.optimizer)
  return jax.jit(train)


def _rewind(problem: Problem, to: int) -> Any:
  return jax.jit(
    functools.partial(revmom.rewind, problem.loss_fn, problem.optimizer, to=to)
  )


def _cut(batches: Any, first: int, last: int | None = None) -> Any:
  return jax.tree.map(lambda array: array[first:last], batches)


def _same(one: Any, other: Any) -> bool:
  """Whether two runs left the same integers, to the last stored bit."""
  structures: list[Any] = [jax.tree.structure(one), jax.tree.structure(other)]
  if structures[0] != structures[1]:
    return False
  return all(jax.tree.leaves(jax.tree.map(np.array_equal, one, other)))


def _timed(function: Any, *args: Any) -> tuple[Any, float]:
  """A result, and the seconds of a second call."""
  jax.block_until_ready(function(*args))
  start = time.perf_counter()
  out = jax.block_until_ready(function(*args))
  return out, time.perf_counter() - start


def take_back_a_spike(problem: Problem, config: Config) -> Spike:
  """A batch is broken; it is noticed after `back` steps, and dropped."""
  step = config.steps - config.back
  batches, train = problem.spiked(step), _train(problem)
  run = train(problem.params, batches)
  back, rewind_seconds = _timed(_rewind(problem, step), run.state, batches)
  back.receipt.check(run.state.checksum_every, config.steps)
  after = _cut(batches, step + 1)
  on, forward_seconds = _timed(train, back.state, after)
  clean = jax.tree.map(
    lambda array: np.delete(array, step, axis=0), problem.batches
  )
  never = train(problem.params, clean)
  return Spike(
    step=step,
    losses=np.asarray(run.losses),
    edited=np.asarray(on.losses),
    same=_same(on.state, never.state),
    rewind_seconds=rewind_seconds,
    forward_seconds=forward_seconds,
  )


def unlearn(problem: Problem, config: Config) -> Unlearned:
  """An example leaves the run: back to before it was first seen, and on."""
  train = _train(problem)
  run = train(problem.params, problem.batches)
  examples, places = np.unique(problem.indices, return_index=True)
  firsts = places // config.batch_size
  # Of those that came late the one that was used most.
  uses = np.bincount(problem.indices.reshape(-1))[examples]
  place = int(np.argmax(np.where(firsts >= config.steps // 3, uses, 0)))
  example, first = int(examples[place]), int(firsts[place])
  without = problem.without(example)
  back = _rewind(problem, first)(run.state, problem.batches)
  back.receipt.check(run.state.checksum_every, config.steps)
  on = train(back.state, _cut(without, first))
  never = train(problem.params, without)
  moved = jax.tree.map(
    lambda a, b: float(np.max(np.abs(a - b))), run.params, on.params
  )
  words = sum(
    leaf.nbytes for leaf in jax.tree.leaves(run.state.leaves) if leaf.ndim > 1
  )
  size = sum(np.size(leaf) for leaf in jax.tree.leaves(problem.params))
  return Unlearned(
    example=example,
    first_seen=first,
    uses=int(np.sum(problem.indices == example)),
    losses=np.asarray(run.losses),
    edited=np.concatenate([run.losses[:first], on.losses]),
    same=_same(on.state, never.state),
    moved=max(jax.tree.leaves(moved)),
    bits=8 * words / size / config.steps,
  )


def bisect(problem: Problem, config: Config) -> Bisected:
  """Labels are wrong from some step on; when did the metric break?

  A `Stepper` walks back and forth through the run that is there; the metric is
  looked at where it stops.
  """
  broken_at = config.steps // 3
  batches = problem.renamed(broken_at)
  at = lambda step: jax.tree.map(lambda array: array[step], batches)
  stepper = revmom.Stepper(problem.loss_fn, problem.optimizer)
  state = stepper.init(problem.params, config.steps)
  measure = lambda state: float(problem.accuracy(stepper.params(state)))
  metric = [measure(state)]
  for step in range(config.steps):
    state, _ = stepper.forward(state, at(step))
    metric.append(measure(state))
  # It was whole where it was best, and is broken now.
  best = int(np.argmax(metric))
  bound = (metric[best] + metric[-1]) / 2
  whole, broken = best, config.steps
  here, probes, walked = config.steps, [(config.steps, metric[-1])], 0
  while broken - whole > 1:
    middle = (whole + broken) // 2
    walked += abs(here - middle)
    while here > middle:
      here -= 1
      state, _ = stepper.inverse(state, at(here))
    while here < middle:
      state, _ = stepper.forward(state, at(here))
      here += 1
    stepper.check(state)
    probes.append((here, measure(state)))
    if probes[-1][1] < bound:
      broken = middle
    else:
      whole = middle
  return Bisected(
    broken_at=broken_at,
    bound=bound,
    found=broken,
    probes=probes,
    metric=np.asarray(metric),
    steps=walked,
  )
