"""Which positions of its inputs an output depends on."""

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np

from revmom.analysis.costs import facts
from revmom.analysis.costs.dataflow import Dataflow
from revmom.analysis.costs.facts import DATA, Fact
from revmom.analysis.costs.trip_counts import TripCounts
from revmom.jacobian.program.equations import Program, trace

# Positions that are followed through a program at once.
MOST_POSITIONS = 2048


class Window(NamedTuple):
  """A context window.

  Attributes:
    positions: in it.
    inexact: names of primitives of which every output was taken to depend on
      every operand, so that there may be fewer.
  """

  positions: int
  inexact: tuple[str, ...]


def context_window(
  function: Callable[..., Any],
  *args: Any,
  argnums: int | Sequence[int] | None = None,
  feature_axes: int = 0,
  trip_counts: Mapping[str, int] | None = None,
) -> int:
  """The most positions of inputs that one element of the outputs depends on.

  Dependence is that of the program, at every point: where the Jacobian may
  have an entry.  What is multiplied with a constant zero, such as that of a
  mask, is none, and loops are followed step by step.  Of a few primitives, for
  which there is no rule, all outputs are taken to depend on all operands.

  Args:
    function: of pytrees of arrays.
    *args: its arguments, or their shapes and dtypes.
    argnums: which arguments hold positions; None is all but the first.
    feature_axes: how many of the last axes of an input belong to one position.
    trip_counts: how often while loops run, as in `cost`.

  Raises:
    ValueError: there are more than 2048 positions.

  >>> import jax.numpy as jnp
  >>> smooth = lambda kernel, x: jnp.convolve(x, kernel, mode="same")
  >>> context_window(smooth, jnp.ones(5), jnp.ones(20))
  5
  """
  if argnums is None:
    argnums = range(1, len(args))
  elif isinstance(argnums, int):
    argnums = (argnums,)
  program, _ = trace(function, *args)
  data = [
    own
    for k, arg in enumerate(args)
    for own in [k in argnums] * len(jax.tree.leaves(arg))
  ]
  counts = TripCounts(trip_counts or {})
  return widest(program, data, feature_axes, counts).positions


def widest(
  program: Program,
  data: Sequence[bool],
  feature_axes: int,
  trip_counts: TripCounts,
) -> Window:
  """`context_window` of a program, some of whose inputs hold positions."""
  total = positions(program, data, feature_axes)
  if total > MOST_POSITIONS:
    raise ValueError(
      f"The inputs have {total} positions, more than {MOST_POSITIONS}: give "
      "smaller ones, or say with feature_axes which axes belong to one "
      "position."
    )
  run = Dataflow(np.zeros(1, np.int32), trip_counts)
  inputs, start = [], 0
  for variable, own in zip(program.inputs, data, strict=True):
    fact = facts.of_input(len(variable.shape), DATA)
    if own:
      shape = _places(variable.shape, feature_axes)
      fact, start = _numbered(fact, shape, start, total)
    inputs.append(fact)
  outputs = run.run(program, inputs)
  most = max((_most(out.ready) for out in outputs), default=0)
  return Window(most, tuple(sorted(run.inexact)))


def positions(program: Program, data: Sequence[bool], feature_axes: int) -> int:
  """The number of positions in some of the inputs."""
  return sum(
    math.prod(_places(v.shape, feature_axes))
    for v, own in zip(program.inputs, data, strict=True)
    if own
  )


def _places(shape: tuple[int, ...], feature_axes: int) -> tuple[int, ...]:
  return shape[: max(0, len(shape) - feature_axes)]


def _numbered(
  fact: Fact, shape: tuple[int, ...], start: int, total: int
) -> tuple[Fact, int]:
  """An input each of whose positions is late in a lane of its own."""
  number = math.prod(shape)
  lanes = np.zeros((number, total), np.int32)
  lanes[np.arange(number), start + np.arange(number)] = 1
  features = (1,) * (fact.ready.ndim - 1 - len(shape))
  lanes = lanes.reshape(*shape, *features, total)
  return fact._replace(ready=lanes), start + number


def _most(ready: np.ndarray) -> int:
  return int((ready > 0).sum(-1).max(initial=0))
