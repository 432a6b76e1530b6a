"""Sequential rounds: how many products must wait for one another.

A product with a matrix or a convolution is one round, whatever its size, and
everything else is none: a layer is a round, as is a step of a recurrence.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from revmom.analysis.costs import facts
from revmom.analysis.costs.dataflow import Dataflow
from revmom.analysis.costs.trip_counts import NESTED, TripCounts, parts
from revmom.jacobian.program.constants import Constants
from revmom.jacobian.program.equations import Equation, Program, Variable

PRODUCTS = frozenset(["dot_general", "conv_general_dilated"])


def scheduled(
  program: Program, trip_counts: TripCounts, constants: Constants | None = None
) -> int:
  """Rounds of the program as it is written.

  A loop begins when everything that it reads is there, runs its steps one after
  the other, and ends as a whole.

  Args:
    program: of `revmom.jacobian.program`.
    trip_counts: how often while loops run.
    constants: what is known of its values, if it is a part of another.
  """
  constants = constants or Constants(program.equations)
  ready: dict[Variable, int] = {}
  for equation in program.equations:
    start = max((ready.get(v, 0) for v in equation.variables), default=0)
    end = start + _rounds(equation, trip_counts, constants)
    ready.update(dict.fromkeys(equation.outputs, end))
  return max(ready.values(), default=0)


def _rounds(
  equation: Equation, trip_counts: TripCounts, constants: Constants
) -> int:
  if equation.name not in NESTED:
    return int(equation.name in PRODUCTS)
  inside = [
    part.times * scheduled(part.program, trip_counts, part.constants)
    for part in parts(equation, trip_counts, constants)
  ]
  return max(inside) if equation.name == "cond" else sum(inside)


class Flow(NamedTuple):
  """What the data dependences of a program say.

  Attributes:
    rounds: on the longest chain of products that wait for one another.
    connections: products of parameters with what is not known to be zero.
    inexact: names of primitives of which every output was taken to wait for
      every operand, so that there may be fewer rounds.
  """

  rounds: int
  connections: int
  inexact: tuple[str, ...]


def dataflow(
  program: Program, made_of: Sequence[int], trip_counts: TripCounts
) -> Flow:
  """Rounds of the program with as many processors as it can use.

  Args:
    program: of `revmom.jacobian.program`.
    made_of: for each input, `facts.PARAMETERS` or `facts.DATA`.
    trip_counts: how often while loops run.
  """
  run = Dataflow(np.ones(1, np.int32), trip_counts)
  inputs = [
    facts.of_input(len(v.shape), of)
    for v, of in zip(program.inputs, made_of, strict=True)
  ]
  outputs = run.run(program, inputs)
  rounds = max((int(out.ready.max(initial=0)) for out in outputs), default=0)
  return Flow(rounds, run.connections, tuple(sorted(run.inexact)))
