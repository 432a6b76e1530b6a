"""Trials of an inverse on known numbers, while it is traced."""

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.extend.core import ClosedJaxpr

from revmom.jacobian.inverses.knowledge import NotInvertible
from revmom.jacobian.inverses.loops import program_of
from revmom.jacobian.inverses.propagation import solve
from revmom.jacobian.program.equations import inline, run
from revmom.jacobian.program.probes import probes


def preimage(closed: ClosedJaxpr, images: Sequence[Any]) -> list[Any]:
  """The inputs of a program from its outputs."""
  program = program_of(closed)
  try:
    inputs, _ = solve(program, [None] * len(program.inputs), images)
  except NotInvertible as error:
    raise NotInvertible(
      f"no inverse was found: {error}.  If you know the inverse of that part "
      "of f, declare it with `custom_inverse`."
    ) from None
  return [
    jnp.asarray(value, variable.dtype)
    for value, variable in zip(inputs, program.inputs, strict=True)
  ]


def round_trip(closed: ClosedJaxpr, like: Sequence[Any]) -> None:
  """Raises unless random numbers come back.

  Args:
    closed: the program of a function.  Where it has traced constants and is
      finite nowhere, only these could tell its domain: no trip is made.
    like: examples of its arguments, if there are any.
  """
  with jax.ensure_compile_time_eval():
    for x, constants in probes(closed.in_avals, closed.consts, like):
      trial = ClosedJaxpr(closed.jaxpr, constants)
      y = run(inline(trial), x)
      if _finite(y):
        _compare(trial, x, preimage(trial, y))
        return
  if any(isinstance(c, jax.core.Tracer) for c in closed.consts):
    return
  raise NotInvertible(
    "inverse: f was finite for none of the numbers that were tried, and can't "
    "be verified.  Give arguments of its domain: inverse(f, x)."
  )


def _finite(values: Sequence[Any]) -> bool:
  return all(
    np.isfinite(np.asarray(v, np.float64)).all()
    for v in values
    if jnp.issubdtype(jnp.result_type(v), jnp.floating)
  )


def _tolerance(closed: ClosedJaxpr) -> float:
  """What rounding may do, in the coarsest type of the program."""
  program = inline(closed)
  dtypes = {
    v.dtype
    for equation in program.equations
    for v in (*equation.variables, *equation.outputs)
    if jnp.issubdtype(v.dtype, jnp.inexact)
  }
  epsilons = [float(jnp.finfo(dtype).eps) for dtype in dtypes]
  return 100 * max(epsilons, default=0.0) ** 0.5


def _compare(closed: ClosedJaxpr, x: list[Any], back: list[Any]) -> None:
  tolerance = _tolerance(closed)
  for k, (expected, got) in enumerate(zip(x, back, strict=True)):
    expected, got = (np.asarray(a, np.float64) for a in (expected, got))
    scale = 1 + np.max(np.abs(expected), initial=0)
    error = np.max(np.abs(got - expected), initial=0) / scale
    if np.isnan(error):
      raise NotInvertible(
        "inverse: a round trip of random numbers gave NaN: f takes a value "
        "twice, or a matrix of it is singular."
      )
    if error > tolerance:
      raise NotInvertible(
        f"inverse: a round trip of random numbers through leaf {k} of f's "
        f"arguments is off by {error:.2g}: f is not one-to-one, or loses more "
        f"digits than {jnp.result_type(x[k])} has."
      )
