"""What a network costs, counted from its program.

`cost` traces a function and reads the program: how much arithmetic there is,
how much of it must wait for other results, and what a gradient keeps in memory.
Loops count as often as they run; `jax.jit(f).lower(x).cost_analysis()` counts
their bodies once.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from revmom.analysis.costs.context import (
  MOST_POSITIONS,
  Window,
  positions,
  widest,
)
from revmom.analysis.costs.counting import Count, count
from revmom.analysis.costs.facts import DATA, PARAMETERS
from revmom.analysis.costs.reverse_pass import Derivative, derivative
from revmom.analysis.costs.rounds import Flow, dataflow, scheduled
from revmom.analysis.costs.trip_counts import NESTED, TripCounts
from revmom.jacobian.program.equations import (
  Program,
  inline,
  subprograms,
  trace,
)


class Work(NamedTuple):
  """What it takes to run a program.

  Attributes:
    multiply_adds: of products and convolutions, without those with padding.
    flops: two for each multiply-add, and other additions, multiplications,
      divisions and comparisons of floats.
    transcendentals: evaluations of exp, tanh, sqrt and so on.
    scheduled_rounds: products that run one after the other as the program is
      written, in which the steps of loops wait for one another.  A product with
      the inputs of all steps that a layer computes before its loop is a round.
    dataflow_rounds: products that wait for one another because the later needs
      the result of the earlier, whatever the order of loops.
    uncounted: primitives whose arithmetic is not known, and how often they run.
    inexact: primitives of which every output was taken to depend on every
      operand: there may be fewer dataflow_rounds, and a smaller context.
  """

  multiply_adds: int
  flops: int
  transcendentals: int
  scheduled_rounds: int
  dataflow_rounds: int
  uncounted: Mapping[str, int]
  inexact: tuple[str, ...]


class Cost(NamedTuple):
  """What a function costs; `str` makes a table of it.

  Attributes:
    parameters: the floats in them.
    connections: uses of parameters: products of a parameter, or of what is
      computed from parameters alone, with something else, neither of which is
      known to be zero.  Products whose results the program drops count as well:
      a grid that is computed as a wavefront, or pipelined, has more of them
      than one that is computed by rows, for cells beyond its edges.
    forward: one evaluation.
    backward: what the gradient with respect to the parameters takes besides.
      None if there is none.
    activation_bytes: what is kept from the forward pass to the backward pass,
      without arguments and constants.
    context: the most elements of the other arguments that one element of the
      outputs depends on; positions, with feature_axes.  None if there are more
      than 2048, or if it was not asked for.
    branches: how often the program chooses between branches, of which the
      dearest is counted.
  """

  parameters: int
  connections: int
  forward: Work
  backward: Work | None
  activation_bytes: int | None
  context: int | None
  branches: int

  def __str__(self) -> str:
    return table(self)


def cost(
  function: Callable[..., Any],
  *args: Any,
  argnums: int | Sequence[int] = 0,
  backward: bool = True,
  context: bool = True,
  feature_axes: int = 0,
  trip_counts: Mapping[str, int] | None = None,
) -> Cost:
  """Counts what a function costs, from its program and without running it.

  Args:
    function: any function of pytrees.  Arrays that it closes over are
      constants: their zeros, such as those of a mask, save connections.
    *args: its arguments, or their shapes and dtypes.
    argnums: which arguments are parameters; the others are data.
    backward: whether to differentiate with respect to them.
    context: whether to follow what depends on each position.
    feature_axes: how many of the last axes of data belong to one position of
      the context.
    trip_counts: how often while loops run, by the names of the functions that
      they repeat, where it cannot be told from constants.

  Raises:
    ValueError: nothing tells how often a while loop runs; or JAX cannot
      differentiate it.

  >>> layer = lambda w, h: (jnp.tanh(w @ h), None)
  >>> recurrent = lambda w, h: jax.lax.scan(
  ...   lambda h, _: layer(w, h), h, length=10
  ... )[0]
  >>> found = cost(recurrent, jnp.ones((64, 64)), jnp.ones(64))
  >>> found.parameters, found.connections, found.forward.flops
  (4096, 40960, 81920)
  >>> found.forward.dataflow_rounds
  10
  """
  args = jax.eval_shape(lambda *args: args, *args)
  owned = (argnums,) if isinstance(argnums, int) else tuple(argnums)
  counts = TripCounts(trip_counts or {})
  program, _ = trace(function, *args)
  made_of = [
    of
    for k, arg in enumerate(args)
    for of in [PARAMETERS if k in owned else DATA] * len(jax.tree.leaves(arg))
  ]
  flow = dataflow(program, made_of, counts)
  window = _context(program, made_of, feature_axes, counts) if context else None
  if window is not None:
    inexact = {*flow.inexact, *window.inexact}
    flow = flow._replace(inexact=tuple(sorted(inexact)))
  arithmetic = count(program, counts)
  forward = _work(arithmetic, scheduled(program, counts), flow)
  reverse = derivative(function, args, owned) if backward else None
  return Cost(
    parameters=_floats([args[k] for k in owned]),
    connections=flow.connections,
    forward=forward,
    backward=reverse and _backward(reverse, arithmetic, counts),
    activation_bytes=reverse and reverse.kept_bytes,
    context=window and window.positions,
    branches=_branches(program),
  )


def _work(arithmetic: Count, scheduled_rounds: int, flow: Flow) -> Work:
  return Work(
    arithmetic.multiply_adds,
    arithmetic.flops,
    arithmetic.transcendentals,
    scheduled_rounds,
    flow.rounds,
    arithmetic.uncounted,
    flow.inexact,
  )


def _backward(
  reverse: Derivative, forward: Count, trip_counts: TripCounts
) -> Work:
  """The reverse pass, and what the forward pass does for it besides."""
  program = reverse.backward
  arithmetic = count(reverse.forward, trip_counts).plus(
    count(program, trip_counts)
  )
  flow = dataflow(program, [DATA] * len(program.inputs), trip_counts)
  rounds = scheduled(program, trip_counts)
  return _work(arithmetic.plus(forward, -1), rounds, flow)


def _floats(args: Any) -> int:
  leaves = jax.tree.leaves(args)
  return sum(
    math.prod(leaf.shape)
    for leaf in leaves
    if jnp.issubdtype(leaf.dtype, jnp.inexact)
  )


def _context(
  program: Program,
  made_of: Sequence[int],
  feature_axes: int,
  trip_counts: TripCounts,
) -> Window | None:
  data = [of == DATA for of in made_of]
  if positions(program, data, feature_axes) > MOST_POSITIONS:
    return None
  return widest(program, data, feature_axes, trip_counts)


def _branches(program: Program) -> int:
  """The branches in a program, and in its loops."""
  found = 0
  for equation in program.equations:
    found += equation.name == "cond"
    if equation.name in NESTED:
      found += sum(_branches(inline(body)) for body in subprograms(equation))
  return found


def table(found: Cost) -> str:
  """All of it, for people."""
  forward, backward = found.forward, found.backward
  both = lambda name: [
    "" if work is None else f"{getattr(work, name):,}"
    for work in (forward, backward)
  ]
  lines = [
    f"{'parameters':24}{found.parameters:>16,}",
    f"{'connections':24}{found.connections:>16,}",
    f"{'':24}{'forward':>16}{'backward':>16}",
    *(
      f"{title:24}{first:>16}{second:>16}".rstrip()
      for title, (first, second) in (
        ("multiply-adds", both("multiply_adds")),
        ("FLOPs", both("flops")),
        ("transcendentals", both("transcendentals")),
        ("rounds as scheduled", both("scheduled_rounds")),
        ("rounds of the dataflow", both("dataflow_rounds")),
      )
    ),
  ]
  if found.activation_bytes is not None:
    kept = f"{found.activation_bytes:,}"
    lines.append(f"{'bytes kept for backward':24}{kept:>16}")
  if found.context is not None:
    lines.append(f"{'context window':24}{found.context:>16,}")
  return "\n".join([*lines, *_reservations(found)])


def _reservations(found: Cost) -> list[str]:
  """What the numbers leave out."""
  lines = []
  if found.branches:
    lines.append(f"of {found.branches} cond the dearest branch is counted")
  for title, work in (("forward", found.forward), ("backward", found.backward)):
    if work is not None and work.uncounted:
      names = ", ".join(f"{n} x {k}" for k, n in work.uncounted.items())
      lines.append(f"{title}: arithmetic of unknown cost is left out: {names}")
    if work is not None and work.inexact:
      names = ", ".join(work.inexact)
      lines.append(f"{title}: rounds and context are upper bounds, for {names}")
  return lines
