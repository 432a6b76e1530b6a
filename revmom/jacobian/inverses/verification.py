"""Trials of an inverse on known numbers, while it is traced."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.extend.core import ClosedJaxpr, jaxpr_as_fun
from jax.flatten_util import ravel_pytree

from revmom.jacobian.inverses.knowledge import NotInvertible
from revmom.jacobian.inverses.propagation import solve
from revmom.jacobian.log_determinants.log_det import log_det
from revmom.jacobian.program.declarations import program_of
from revmom.jacobian.program.equations import inline, run
from revmom.jacobian.program.probes import probes

# Log-determinants of up to so many numbers are verified by a dense Jacobian.
LARGEST_DENSE = 64


def preimage(closed: ClosedJaxpr, images: Sequence[Any]) -> list[Any]:
  """The inputs of a program from its outputs."""
  program = program_of(closed)
  try:
    inputs, _ = solve(program, [None] * len(program.inputs), images)
  except NotInvertible as error:
    raise NotInvertible(
      f"no inverse was found: {error}.  If you know the inverse of a part of "
      "f, give it with `custom_inverse`."
    ) from None
  return [
    jnp.asarray(value, variable.dtype)
    for value, variable in zip(inputs, program.inputs, strict=True)
  ]


class Trip(NamedTuple):
  """A round trip of known numbers."""

  closed: ClosedJaxpr
  x: list[Any]
  y: list[Any]


def round_trip(closed: ClosedJaxpr, like: Sequence[Any]) -> Trip | None:
  """Raises unless random numbers come back.

  Args:
    closed: the program of a function.
    like: examples of its arguments, if there are any.

  Returns:
    The trip, or None if only traced constants could tell the domain.
  """
  with jax.ensure_compile_time_eval():
    for x, constants in probes(closed.in_avals, closed.consts, like):
      trial = ClosedJaxpr(closed.jaxpr, constants)
      y = run(inline(trial), x)
      if _finite(y):
        _compare(trial, x, preimage(trial, y))
        return Trip(trial, x, y)
  if any(isinstance(c, jax.core.Tracer) for c in closed.consts):
    return None
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


def verify_log_det(trip: Trip) -> None:
  """Raises unless log_det agrees with a dense Jacobian of the inverse."""
  real = [k for k, leaf in enumerate(trip.y) if _is_real(leaf)]
  with jax.ensure_compile_time_eval():
    flat, unravel = ravel_pytree([trip.y[k] for k in real])
    if flat.size > LARGEST_DENSE:
      return

    def back(flat: jax.Array) -> jax.Array:
      y = list(trip.y)
      for k, leaf in zip(real, unravel(flat), strict=True):
        y[k] = leaf
      leaves = preimage(trip.closed, y)
      return ravel_pytree([leaf for leaf in leaves if _is_real(leaf)])[0]

    expected = float(jnp.linalg.slogdet(jax.jacfwd(back)(flat))[1])
    value = jax.jit(lambda x: log_det(jaxpr_as_fun(trip.closed))(*x).value)
    got = -float(value(trip.x))
  tolerance = _tolerance(trip.closed) * (1 + abs(expected))
  if not abs(got - expected) <= tolerance:
    raise NotInvertible(
      f"inverse_and_log_det: log_det gives {got:.6g} for the inverse at random "
      f"numbers, and a dense Jacobian of the inverse {expected:.6g}."
    )


def _is_real(value: Any) -> bool:
  return jnp.issubdtype(jnp.result_type(value), jnp.floating)
