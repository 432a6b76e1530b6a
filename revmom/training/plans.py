"""How a run is kept, so that it can be reversed within a memory budget.

A run of T steps is kept as S leading segments of equal length and a final one.
The final segment keeps the words that its buffers spilled.  A leading segment
either moves them to host memory, or keeps only the integers it started from
and is run again before it is reversed; each part may be split again.  A split
into segments that are run again costs one more forward pass, and

    bytes = S * state + bytes of the longest part.

At beta = 0.9 spilled words need 0.019 bytes a step and parameter: one buffer
is the fastest and, up to some 10^4 steps, also nearly the smallest.
"""

import math
from typing import Any, NamedTuple

import numpy as np

_DEEPEST = 3


class Costs(NamedTuple):
  """Bytes of a run."""

  state: int  # integers and numbers
  words_per_step: float  # spilled
  # On the device, whatever the plan: states of the model and residues.
  kept: int = 0


class Plan(NamedTuple):
  """A tree of segments; the leaves of the tree keep their words."""

  steps: int
  segments: int = 0  # leading ones; 0 keeps all words
  length: int = 0  # of a leading segment
  # Where leading segments put theirs: "device", "host", or "recompute", which
  # keeps the integers that they started from instead.
  words: str = "device"
  leading: Any = None  # the plan of each leading segment
  final: Any = None  # the plan of the final segment

  @property
  def final_start(self) -> int:
    """Steps before the final segment."""
    return self.segments * self.length

  @property
  def depth(self) -> int:
    """How many more forward passes the reversal takes, at most."""
    if not self.segments or self.words != "recompute":
      return 0
    return 1 + self.leading.depth

  def size(self, costs: Costs) -> int:
    """Bytes of integers, numbers and words on the device, at most."""
    return math.ceil(costs.state + costs.kept + self._extra(costs))

  def _extra(self, costs: Costs) -> float:
    if not self.segments:
      return self.steps * costs.words_per_step
    if self.words == "device":
      return self.final_start * costs.words_per_step + self.final._extra(costs)
    parts = max(self.leading._extra(costs), self.final._extra(costs))
    if self.words == "host":
      return parts
    return self.segments * costs.state + parts

  def describe(self) -> str:
    """One line that says what was chosen."""
    if not self.segments:
      return f"all words of {self.steps} steps kept"
    if self.words == "host":
      how = "words in host memory"
    elif self.words == "device":
      how = "all words kept"
    else:
      how = f"run again ({self.leading.describe()})"
    return (
      f"{self.segments} x {self.length} steps, {how}, then "
      f"{self.steps - self.final_start} steps ({self.final.describe()})"
    )

  def first(self, steps: int) -> "Plan":
    """The plan of the first steps of the run."""
    if not self.segments:
      return Plan(steps)
    if steps >= self.final_start:
      final = self.final.first(steps - self.final_start)
      return self._replace(steps=steps, final=final)
    whole, rest = divmod(steps, self.length)
    final = self.leading.first(rest)
    if not whole:
      return final
    return self._replace(steps=steps, segments=whole, final=final)

  def then(self, other: "Plan") -> "Plan":
    """The plan of a run that goes on by another one."""
    steps = self.steps + other.steps
    if self.segments:
      return self._replace(steps=steps, final=self.final.then(other))
    if not self.steps:
      return other
    if not other.segments:
      return Plan(steps)
    own = Plan(self.steps)
    return Plan(steps, 1, self.steps, "device", own, other)

  @property
  def last(self) -> int:
    """The steps of the final segment, whose words are in the leaves."""
    return self.final.last if self.segments else self.steps


class Policy(NamedTuple):
  """What a plan has to obey; see `keep`, `recompute` and `offload`."""

  words: str = "device"
  budget: int | None = None

  def make(self, steps: int, costs: Costs) -> Plan:
    """The fastest plan of a run of so many steps.

    Raises:
      ValueError: nothing fits into the budget.

    >>> recompute(400).make(100_000, Costs(12, 0.019)).describe()
    ... # doctest: +ELLIPSIS
    '5 x 16666 steps, run again (all words of 16666 steps kept), then ...'
    """
    plans = _candidates(steps, self.words, costs, self.budget)
    sizes = [plan.size(costs) for plan in plans]
    for plan, size in zip(plans, sizes, strict=True):
      if self.budget is None or size <= self.budget:
        return plan
    smallest = min(sizes)
    raise ValueError(
      f"budget={self.budget} bytes, but a run of {steps} steps needs at "
      f"least {smallest} ({plans[sizes.index(smallest)].describe()}); raise "
      "the budget, use revmom.plans.offload, or a momentum closer to 1."
    )


def keep() -> Policy:
  """All words stay on the device: the fastest plan."""
  return Policy()


def recompute(budget: int) -> Policy:
  """Checkpoints, from which segments of the run are run again.

  Args:
    budget: bytes on the device for integers, numbers and words; as few
      segments as fit are run again.

  Raises:
    ValueError: the budget is no positive number.
  """
  return Policy("recompute", _checked(budget))


def offload(budget: int | None = None) -> Policy:
  """Words are streamed to host memory.

  Args:
    budget: bytes on the device for integers, numbers and words; None moves
      words in blocks of the size of the state.

  Raises:
    ValueError: the budget is no positive number.
  """
  return Policy("host", None if budget is None else _checked(budget))


def _checked(budget: Any) -> int:
  if not isinstance(budget, int | np.integer) or budget <= 0:
    raise ValueError(f"budget={budget!r}; give a number of bytes.")
  return int(budget)


def _candidates(steps, words, costs, budget) -> list[Plan]:
  """Fastest first; among equally fast ones, fewest segments first."""
  if words == "device":
    return [Plan(steps)]
  counts = _segment_counts(steps)
  if words == "host":
    # A block should be small beside the state, and large beside a transfer.
    if budget is None:
      block = costs.state / max(costs.words_per_step, 1e-9)
      counts = [min(steps - 1, math.ceil(steps / max(block, 1)))]
    return [_split(steps, count, words, 1) for count in counts]
  return [Plan(steps)] + [
    _split(steps, count, words, depth)
    for depth in range(1, _DEEPEST + 1)
    for count in counts
  ]


def _segment_counts(steps: int) -> list[int]:
  counts, count = [], 1
  while count < min(steps, 10_000):
    counts.append(count)
    count = max(count + 1, int(count * 1.1))
  return counts


def _split(steps: int, segments: int, words: str, depth: int) -> Plan:
  segments = min(segments, steps - 1)
  if depth == 0 or segments <= 0:
    return Plan(steps)
  length = steps // (segments + 1)
  return Plan(
    steps,
    segments,
    length,
    words,
    _split(length, segments, words, depth - 1),
    _split(steps - segments * length, segments, words, depth - 1),
  )
