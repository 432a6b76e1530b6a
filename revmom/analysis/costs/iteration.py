"""Loops on facts: run step by step, until every step is like the last.

The times of a step are maxima of sums of the times that it reads: convex along
a line.  If the times of all that it reads grow by the same increments from step
to step, then what it computes does so from one step to the next and on the last
step, it does so on every step between: a convex function that meets its chord
between the ends is the chord.  So three steps prove what all others give.
"""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np

from revmom.analysis.costs import compact
from revmom.analysis.costs.facts import CONSTANT, Fact, of_input, of_value
from revmom.jacobian.program.equations import Variable

# A longer loop forgets values that change from step to step, such as counters.
MOST_STEPS = 4096
# The loop is looked at after so many steps, and again after 8 times as many.
_FIRST_LOOK, _NEXT_LOOK, _LEAST_LEFT = 4, 8, 8

# From the carry and a row of inputs: the new carry and a row of outputs, and
# the connections in between.
Step = Callable[[list[Fact], list[Fact]], tuple[list[Fact], int]]


class Iterated(NamedTuple):
  """What is known of a loop's results."""

  carry: list[Fact]
  outputs: list[Fact]
  connections: int
  forgetful: bool  # values were forgotten


def iterate(
  step: Step,
  carry: list[Fact],
  inputs: list[Fact],
  length: int,
  outputs: Sequence[Variable],
  reverse: bool = False,
) -> Iterated:
  """Runs a loop.

  Args:
    step: its body.
    carry: before the first step.
    inputs: with an axis of steps in front.
    length: the number of steps.
    outputs: what the rows of outputs are stacked to.
    reverse: whether the last row comes first.
  """
  if reverse:
    inputs = [_flipped(fact) for fact in inputs]
  forgetful = length > MOST_STEPS and _has_values(inputs)
  if length > MOST_STEPS:
    inputs = [_forget(fact) for fact in inputs]
  connections, done, look = 0, 0, _FIRST_LOOK
  pieces: list[list[Fact]] = []  # of stacked rows
  while done < length:
    if done == look and length - done >= _LEAST_LEFT:
      look *= _NEXT_LOOK
      leap = _leap(step, carry, inputs, done, length)
      if leap is not None:
        carry = leap.carry
        pieces.append(leap.outputs)
        connections += leap.connections
        break
    before = carry
    results, more = step(carry, [_row(fact, done) for fact in inputs])
    carry, row = results[: len(carry)], results[len(carry) :]
    if length > MOST_STEPS:
      forgetful = forgetful or _changed(before, carry)
      carry = [
        new if _same_value(old, new) else new._replace(value=None)
        for old, new in zip(before, carry, strict=True)
      ]
    pieces.append([_lifted(fact) for fact in row])
    connections += more
    done += 1
  stacked = [
    _joined([piece[k] for piece in pieces], variable, reverse)
    for k, variable in enumerate(outputs)
  ]
  return Iterated(carry, stacked, connections, forgetful)


def _has_values(inputs: Sequence[Fact]) -> bool:
  return any(f.value is not None and f.value.shape[0] > 1 for f in inputs)


def _forget(fact: Fact) -> Fact:
  """The fact without a value, if that changes from step to step."""
  return fact._replace(value=None) if _has_values([fact]) else fact


def _same_value(old: Fact, new: Fact) -> bool:
  if old.value is None or new.value is None:
    return old.value is new.value
  return np.array_equal(old.value, new.value)


def _changed(old: Sequence[Fact], new: Sequence[Fact]) -> bool:
  return not all(map(_same_value, old, new))


def _flipped(fact: Fact) -> Fact:
  value = None if fact.value is None else np.flip(fact.value, 0)
  return fact._replace(ready=np.flip(fact.ready, 0), value=value)


def _row(fact: Fact, step: int) -> Fact:
  """One element along the first axis."""
  take = lambda array: array[step if array.shape[0] > 1 else 0]
  value = None if fact.value is None else take(fact.value)
  return Fact(take(fact.ready), fact.made_of, value)


def _lifted(fact: Fact) -> Fact:
  """A stack of one."""
  value = None if fact.value is None else fact.value[None]
  return fact._replace(ready=fact.ready[None], value=value)


def _joined(pieces: Sequence[Fact], variable: Variable, reverse: bool) -> Fact:
  """The fact of an array that a loop has stacked."""
  ndim = len(variable.shape)
  if not pieces:
    return of_input(ndim, CONSTANT)
  ready = np.concatenate(
    compact.broadcast([fact.ready for fact in pieces], but=0)
  )
  made_of = 0
  for fact in pieces:
    made_of |= fact.made_of
  values = [fact.value for fact in pieces if fact.value is not None]
  fact = Fact(compact.compact(ready, ndim), made_of)
  if len(values) == len(pieces):
    value = np.concatenate(compact.broadcast(values, but=0))
    fact = of_value(compact.compact(value, ndim))
  return _flipped(fact) if reverse else fact


def _leap(
  step: Step, carry: list[Fact], inputs: list[Fact], done: int, length: int
) -> Iterated | None:
  """All steps that are left, if they are alike; None if they are not."""
  left = length - done
  if not all(_steady(fact, done) for fact in inputs):
    return None
  row = lambda number: [_row(fact, done + number) for fact in inputs]
  first, connections = step(carry, row(0))
  size = len(carry)
  second, again = step(first[:size], row(1))
  if again != connections or not all(map(_alike, carry, first, second)):
    return None
  if not all(map(_alike, first[size:], second[size:])):
    return None
  last, again = step(_further(carry, first[:size], left - 1), row(left - 1))
  ends = [
    *_further(carry, first[:size], left),
    *_further(first[size:], second[size:], left - 1),
  ]
  if again != connections or not all(map(_equal, last, ends)):
    return None
  stacked = [
    _line(a, b, left) for a, b in zip(first[size:], second[size:], strict=True)
  ]
  return Iterated(ends[:size], stacked, left * connections, False)


def _steady(fact: Fact, done: int) -> bool:
  """Whether the rows that are left grow by equal increments, if at all."""
  if _has_values([fact]):
    return False
  if fact.ready.shape[0] == 1:
    return True
  rows = fact.ready[done:]
  steps = np.diff(rows, axis=0)
  known = np.minimum(rows, 0)
  return bool((steps == steps[:1]).all() and (known == known[:1]).all())


def _alike(first: Fact, second: Fact, third: Fact | None = None) -> bool:
  """Whether facts differ in their times alone, by equal increments."""
  facts = [fact for fact in (first, second, third) if fact is not None]
  if any(fact.made_of != first.made_of for fact in facts):
    return False
  if not all(_same_value(first, fact) for fact in facts):
    return False
  known = [np.minimum(fact.ready, 0) for fact in facts]
  if any((one != known[0]).any() for one in known):
    return False
  if third is None:
    return True
  steps = second.ready - first.ready, third.ready - second.ready
  return bool((steps[0] == steps[1]).all())


def _further(
  first: Sequence[Fact], second: Sequence[Fact], steps: int
) -> list[Fact]:
  """The facts that lie so many increments after the first."""
  return [
    a._replace(ready=a.ready + steps * (b.ready - a.ready))
    for a, b in zip(first, second, strict=True)
  ]


def _equal(first: Fact, second: Fact) -> bool:
  same = first.made_of == second.made_of and _same_value(first, second)
  return same and bool((first.ready == second.ready).all())


def _line(first: Fact, second: Fact, length: int) -> Fact:
  """Rows with equal increments, stacked."""
  step = second.ready - first.ready
  numbers = np.arange(length, dtype=np.int32)
  numbers = numbers.reshape(-1, *(1,) * step.ndim)
  ready = first.ready[None] + numbers * step[None]
  value = None if first.value is None else first.value[None]
  return first._replace(ready=ready.astype(np.int32), value=value)
