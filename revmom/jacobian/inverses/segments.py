"""Scalar functions inside of a program that use their variable repeatedly.

Where propagation comes to a halt, a known value may still be an elementwise
function of one unknown variable: x + tanh(x), or a function in pieces.
"""

import itertools
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from revmom.jacobian.inverses import monotone
from revmom.jacobian.inverses.knowledge import (
  Known,
  NotInvertible,
  blank,
  located,
)
from revmom.jacobian.inverses.loops import branch
from revmom.jacobian.inverses.rules import is_elementwise
from revmom.jacobian.program.control_flow import branches_of
from revmom.jacobian.program.equations import (
  Equation,
  Operand,
  Program,
  Variable,
  needed,
  run,
)

if TYPE_CHECKING:
  from revmom.jacobian.inverses.propagation import Search

# What may occur in a segment besides what has an inverse.
MORE = {
  "abs", "and", "cos", "cosh", "eq", "ge", "gt", "le", "lt",
  "max", "min", "ne", "not", "or", "select_n", "sign", "sin", "square", "xor",
}  # fmt: skip
LARGEST_PIECES = 16


class Segment(NamedTuple):
  """y as an elementwise function of x and of known values."""

  x: Variable
  y: Variable
  equations: tuple[Equation, ...]

  @property
  def others(self) -> list[Variable]:
    """The known variables that it reads."""
    made = {self.x, *(v for e in self.equations for v in e.outputs)}
    read = [v for e in self.equations for v in e.variables if v not in made]
    return list(dict.fromkeys(read))

  @property
  def program(self) -> Program:
    equations = needed(self.equations, [self.y])
    return Program((self.x, *self.others), tuple(equations), (self.y,))


def solve_segment(search: "Search") -> bool:
  """Learns one variable from a segment; whether there was one."""
  if _guess_branch(search):
    return True
  makers = {
    v: k for k, e in enumerate(search.program.equations) for v in e.outputs
  }
  for k in reversed(range(len(search.program.equations))):
    for segment in _segments(search, makers, k):
      try:
        x = _solve(search, segment)
      except NotInvertible as error:
        # A primitive without an inverse has given the better reason itself.
        if "both unknown" in search.reasons.get(k, "both unknown"):
          equation = search.program.equations[k]
          search.reasons[k] = located(str(error), equation)
        continue
      search.learn(segment.x, Known(x))
      return True
  return False


def _guess_branch(search: "Search") -> bool:
  """Learns the operands of a cond from the branch that would be taken.

  Each branch is undone; the right one is that whose result leads to its index.
  """
  for k, equation in enumerate(search.program.equations):
    known = [search.get(v) for v in (*equation.operands, *equation.outputs)]
    if equation.name != "cond" or known[0].complete:
      continue
    values = [a.value if a.complete else None for a in known]
    count = len(equation.operands)
    given, images = values[:count], values[count:]
    if any(value is None for value in images):
      continue
    try:
      found = _consistent(search, equation, given, images)
    except NotInvertible as error:
      search.reasons[k] = located(str(error), equation)
      continue
    for variable, value in zip(equation.operands[1:], found, strict=True):
      if isinstance(variable, Variable):
        search.learn(variable, Known(value))
    return True
  return False


def _consistent(
  search: "Search", equation: Equation, given: list[Any], images: list[Any]
) -> list[Any]:
  """The operands of a cond after its index; NaN if no one branch leads here."""
  branches = range(len(branches_of(equation)))
  undo = lambda index: branch(equation, index, given, images, search.solve)[0][
    1:
  ]
  agrees = []
  for index in branches:
    trial = search.copy()
    for variable, value in zip(equation.operands[1:], undo(index), strict=True):
      if isinstance(variable, Variable):
        trial.learn(variable, Known(lax.stop_gradient(value)))
    while trial.step():
      pass
    agrees.append(jnp.asarray(trial.value(equation.operands[0]) == index))
  agree = jnp.stack(agrees)
  nan = jnp.where(jnp.sum(agree) == 1, 0.0, jnp.nan)
  return [
    value + nan.astype(value.dtype) if _is_float(value) else value
    for value in map(jnp.asarray, undo(jnp.argmax(agree)))
  ]


def _is_float(value: jax.Array) -> bool:
  return jnp.issubdtype(value.dtype, jnp.inexact)


def _is_scalar_function(equation: Equation) -> bool:
  return is_elementwise(equation.name) or equation.name in MORE


def _segments(
  search: "Search", makers: dict[Variable, int], k: int
) -> Iterator[Segment]:
  """Segments that end in an equation, the shortest first."""
  equations = search.program.equations
  y = equations[k].outputs[0]
  if search.get(y).value is None or not search.get(y).complete:
    return
  unknown = lambda e: {v for v in e.variables if not search.get(v).complete}
  inside, frontier = {k}, unknown(equations[k])
  if not frontier or not _is_scalar_function(equations[k]):
    return
  while frontier and all(v.shape == y.shape for v in frontier):
    if len(frontier) == 1:
      (x,) = frontier
      if jnp.issubdtype(x.dtype, jnp.floating):
        yield Segment(x, y, tuple(equations[j] for j in sorted(inside)))
    last = max(makers.get(v, -1) for v in frontier)
    if last < 0 or not _is_scalar_function(equations[last]):
      return
    inside.add(last)
    frontier -= set(equations[last].outputs)
    frontier |= unknown(equations[last])


def _solve(search: "Search", segment: Segment) -> jax.Array:
  y = search.get(segment.y).value
  others = [search.get(v) for v in segment.others]
  pieces = _pieces(segment)
  if not pieces:
    fixed = [a.value if a.constant else None for a in others]
    return _root(segment.program, fixed, [a.value for a in others], y)
  values = [a.value for a in others]
  return _by_pieces(search, segment, pieces, values, y)


def _root(
  program: Program, fixed: Sequence[Any], values: Sequence[Any], y: jax.Array
) -> jax.Array:
  """The one argument of a strictly monotone function."""
  turn = monotone.direction(program, fixed)
  names = dict.fromkeys(f"`{e.name}`" for e in program.equations)
  if not turn:
    raise NotInvertible(
      f"{', '.join(names)} use one unknown variable repeatedly, and together "
      "are not known to be strictly monotone in it"
    )
  return monotone.root(lambda x: run(program, [x, *values])[0], y, turn > 0)


Piece = dict[Variable, Operand]  # what each select_n gives, by its output


def _pieces(segment: Segment) -> list[tuple[Piece, dict[Variable, Any]]]:
  """The choices of all select_n, and the predicates that they assume."""
  made = {v: e for e in segment.equations for v in e.outputs}
  selects = [
    e
    for e in segment.equations
    if e.name == "select_n"
    and isinstance(e.operands[0], Variable)
    and e.operands[0] in made
  ]
  groups: dict[Any, list[Equation]] = {}
  for select in selects:
    maker = made[select.operands[0]]
    # Equal comparisons are one predicate.
    operands = tuple(
      v if isinstance(v, Variable) else np.asarray(v).tobytes()
      for v in maker.operands
    )
    groups.setdefault((maker.name, operands), []).append(select)
  sizes = [len(group[0].operands) - 1 for group in groups.values()]
  if not groups:
    return []
  if np.prod(sizes) > LARGEST_PIECES:
    raise NotInvertible(f"`select_n` makes more than {LARGEST_PIECES} pieces")
  found = []
  for choice in itertools.product(*map(range, sizes)):
    piece: Piece = {}
    assumed: dict[Variable, Any] = {}
    for taken, group in zip(choice, groups.values(), strict=True):
      for select in group:
        piece[select.outputs[0]] = select.operands[1 + taken]
        assumed[select.operands[0]] = taken
    found.append((piece, assumed))
  return found


def _by_pieces(
  search: "Search",
  segment: Segment,
  pieces: list[tuple[Piece, dict[Variable, Any]]],
  values: list[Any],
  y: jax.Array,
) -> jax.Array:
  """The argument from that piece whose predicates it fulfils.

  Every preimage lies in one piece, where it is the only one; so exactly one
  piece has it, unless the whole function takes a value twice or never.
  """
  programs = [_straight(segment, piece) for piece, _ in pieces]
  solve = lambda program, y: search.solve(program, [None, *values], [y])[0][0]
  candidates = lax.stop_gradient(jnp.stack([solve(p, y) for p in programs]))
  fits = jnp.stack(
    [
      _fulfils(segment, assumed, x, values)
      for (_, assumed), x in zip(pieces, candidates, strict=True)
    ]
  )
  # At a joint rounding may push a candidate over to the neighbour.
  images = jnp.stack(
    [run(segment.program, [x, *values])[0] for x in candidates]
  )
  epsilon = jnp.finfo(y.dtype).eps
  close = jnp.abs(images - y) <= 8 * epsilon * (1 + jnp.abs(y))
  fits = jnp.where(fits.any(0), fits, close)
  chosen = jnp.argmax(fits, axis=0)
  best = jnp.take_along_axis(candidates, chosen[None], axis=0)
  apart = jnp.abs(candidates - best) > 64 * epsilon * (1 + jnp.abs(best))
  unique = fits.any(0) & ~(fits & apart).any(0)
  x = jnp.full_like(y, jnp.nan)
  for k, program in enumerate(programs):
    mine = unique & (chosen == k)
    # The other pieces are left alone, lest their NaN reach the gradient.
    x = jnp.where(mine, solve(program, jnp.where(mine, y, blank(y.dtype))), x)
  return x


def _straight(segment: Segment, piece: Piece) -> Program:
  """The program of one piece, without its select_n."""

  def follow(operand: Operand) -> Operand:
    while isinstance(operand, Variable) and operand in piece:
      operand = piece[operand]
    return operand

  equations = [
    e._replace(operands=tuple(follow(v) for v in e.operands))
    for e in segment.equations
    if e.outputs[0] not in piece
  ]
  outputs = (follow(segment.y),)
  return Program(
    (segment.x, *segment.others), tuple(needed(equations, outputs)), outputs
  )


def _fulfils(
  segment: Segment,
  assumed: dict[Variable, Any],
  x: jax.Array,
  values: list[Any],
) -> jax.Array:
  """Where the predicates at x are those that led to x."""
  predicates = tuple(assumed)
  program = Program(
    (segment.x, *segment.others),
    tuple(needed(segment.equations, predicates)),
    predicates,
  )
  fulfilled = ~jnp.isnan(x)
  for got, taken in zip(
    run(program, [x, *values]), assumed.values(), strict=True
  ):
    fulfilled &= got == jnp.asarray(taken, got.dtype)
  return fulfilled
