"""Affine maps between what is unknown and what is known, solved at once."""

from typing import TYPE_CHECKING

import jax
import jax.numpy as jnp
from jax.flatten_util import ravel_pytree

from revmom.jacobian.dependence import dependent
from revmom.jacobian.knowledge import Known
from revmom.jacobian.program import (
  Program,
  Variable,
  inline,
  run,
)

if TYPE_CHECKING:
  from revmom.jacobian.propagation import Search

# Unknown numbers, for a dense matrix.
LARGEST = 1000


def solve_affine(search: "Search") -> bool:
  """Learns all unknown inputs from the outputs that depend on them.

  (x + y, x - y), or x + W x: mixtures that no single equation undoes.
  """
  program = search.program
  inputs = [v for v in program.inputs if not search.get(v).complete]
  reached = dependent(program.equations, inputs)
  outputs = [
    v for v in program.outputs if isinstance(v, Variable) and v in reached
  ]
  sizes = [sum(v.size for v in vs) for vs in (inputs, outputs)]
  if sizes[0] != sizes[1] or not 0 < sizes[0] <= LARGEST:
    return False
  known = all(search.get(v).complete for v in outputs)
  real = all(jnp.issubdtype(v.dtype, jnp.floating) for v in inputs + outputs)
  if not known or not real or len({v.dtype for v in inputs + outputs}) > 1:
    return False
  return _solve(search, inputs, outputs)


def _solve(
  search: "Search", inputs: list[Variable], outputs: list[Variable]
) -> bool:
  part = Program(
    search.program.inputs, search.program.equations, tuple(outputs)
  )
  zeros = [jnp.zeros(v.shape, v.dtype) for v in inputs]
  flat, unravel = ravel_pytree(zeros)

  def image(x: jax.Array) -> jax.Array:
    found = dict(zip(inputs, unravel(x), strict=True))
    values = [
      found[v] if v in found else search.get(v).value for v in part.inputs
    ]
    return ravel_pytree(run(part, values))[0]

  tangent = lambda x, v: jax.jvp(image, (x,), (v,))[1]
  slope = inline(jax.make_jaxpr(tangent)(flat, flat))
  moving = dependent(slope.equations, slope.inputs[:1])
  if any(isinstance(v, Variable) and v in moving for v in slope.outputs):
    return False
  matrix = jax.jacfwd(image)(flat)
  if not isinstance(matrix, jax.core.Tracer) and _is_singular(matrix):
    return False
  y = ravel_pytree([search.get(v).value for v in outputs])[0]
  x = unravel(jnp.linalg.solve(matrix, y - image(flat)))
  for variable, value in zip(inputs, x, strict=True):
    search.learn(variable, Known(value))
  return True


def _is_singular(matrix: jax.Array) -> bool:
  return bool(jnp.linalg.slogdet(matrix)[0] == 0)
