"""Affine maps between what is unknown and what is known, solved at once.

(x + y, x - y), or x + W x: mixtures that no single equation undoes.  Between
them lie only primitives that are known to be affine: a function whose
derivative is the same everywhere, such as x + round(x), need not be.
"""

from typing import TYPE_CHECKING

import jax
import jax.numpy as jnp
from jax.flatten_util import ravel_pytree

from revmom.jacobian.inverses.knowledge import Known
from revmom.jacobian.inverses.movement import DIRECTED, MOVES
from revmom.jacobian.log_determinants.determinant import pivot_errors
from revmom.jacobian.program.control_flow import CHECKPOINT, called
from revmom.jacobian.program.equations import (
  Equation,
  Operand,
  Program,
  Variable,
  inline,
  run,
)

if TYPE_CHECKING:
  from revmom.jacobian.inverses.propagation import Search

# Unknown numbers, for a dense matrix.
LARGEST = 1000
# Linear in all operands together.
LINEAR = {
  *MOVES, "add", "add_any", "complex", "conj", "convert_element_type",
  "cumsum", "fft", "imag", "neg", "real", "reduce_sum", "sub",
}  # fmt: skip
# Linear in each operand, the others being known.
BILINEAR = {"conv_general_dilated", "dot_general", "mul"}
# Linear in the first operands, however many; the others must be known.
FIRST = {**DIRECTED, "div": 1}
# Linear in all but one operand.
ALL_BUT = {"scatter": 1, "scatter-add": 1, "scatter-sub": 1, "select_n": 0}


def _is_affine(equation: Equation, unknown: list[int]) -> bool:
  """Whether the outputs are affine in the operands at these places."""
  ends = (*(equation.operands[k] for k in unknown), *equation.outputs)
  if not all(jnp.issubdtype(v.dtype, jnp.inexact) for v in ends):
    return False
  name = equation.name
  if name == CHECKPOINT:
    return _is_affine_inside(equation, unknown)
  if name in BILINEAR:
    return len(unknown) == 1
  if name in FIRST:
    return all(k < FIRST[name] for k in unknown)
  if name in ALL_BUT:
    return ALL_BUT[name] not in unknown
  return name in LINEAR


def _is_affine_inside(equation: Equation, unknown: list[int]) -> bool:
  """Whether all that a call computes from these operands is affine in them."""
  program = inline(called(equation))
  varying = {program.inputs[k] for k in unknown}
  for inner in program.equations:
    places = [
      k
      for k, v in enumerate(inner.operands)
      if isinstance(v, Variable) and v in varying
    ]
    if places and not _is_affine(inner, places):
      return False
    if places:
      varying.update(inner.outputs)
  return True


def solve_affine(search: "Search") -> bool:
  """Learns what is unknown before affine equations from what is known after."""
  affine: dict[Variable, Equation] = {}
  for equation in search.program.equations:
    places = [
      k for k, v in enumerate(equation.operands) if not _is_known(search, v)
    ]
    if places and _is_affine(equation, places):
      affine.update((v, equation) for v in equation.outputs)
  outputs = [v for v in affine if _is_known(search, v)]
  inputs: list[Variable] = []
  found = set(outputs)
  waiting = list(outputs)
  while waiting:
    variable = waiting.pop()
    if variable not in affine:
      inputs.append(variable)
      continue
    for v in affine[variable].variables:
      if v not in found and not _is_known(search, v):
        found.add(v)
        waiting.append(v)
  sizes = [sum(v.size for v in vs) for vs in (inputs, outputs)]
  if sizes[0] != sizes[1] or not 0 < sizes[0] <= LARGEST:
    return False
  real = all(jnp.issubdtype(v.dtype, jnp.floating) for v in inputs + outputs)
  if not real or len({v.dtype for v in inputs + outputs}) > 1:
    return False
  between = tuple(
    e
    for e in search.program.equations
    if any(v in found and v in affine for v in e.outputs)
  )
  return _solve(search, inputs, between, outputs)


def _is_known(search: "Search", operand: Operand) -> bool:
  return search.get(operand).complete


def _solve(
  search: "Search",
  inputs: list[Variable],
  between: tuple[Equation, ...],
  outputs: list[Variable],
) -> bool:
  made = {v for e in between for v in e.outputs}
  others = {v for e in between for v in e.variables} - made - {*inputs}
  values = {v: search.get(v).value for v in others}
  part = Program((*inputs, *values), between, tuple(outputs))
  flat, unravel = ravel_pytree([jnp.zeros(v.shape, v.dtype) for v in inputs])

  def image(x: jax.Array) -> jax.Array:
    return ravel_pytree(run(part, [*unravel(x), *values.values()]))[0]

  matrix = jax.jacfwd(image)(flat)
  errors = pivot_errors(matrix)
  singular = ~jnp.all(errors < 1)
  if not isinstance(singular, jax.core.Tracer) and singular:
    return False
  y = ravel_pytree([search.get(v).value for v in outputs])[0]
  x = jnp.linalg.solve(matrix, y - image(flat))
  for variable, value in zip(
    inputs, unravel(jnp.where(singular, jnp.nan, x)), strict=True
  ):
    search.learn(variable, Known(value))
  return True
