"""Comparisons of a bijection with its references, point by point."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike, DTypeLike

from revmom.jacobian.conformance.flat import (
  Differentiate,
  FlatBijection,
  Local,
  local,
  slopes,
)


class Check(NamedTuple):
  """One comparison, at all points."""

  name: str
  status: str  # "passed", "failed" or "skipped"
  detail: str  # the worst point with got and expected, or the reason

  def __str__(self) -> str:
    return f"{self.status:8s}{self.name}: {self.detail}"


class Neighbourhood(NamedTuple):
  """Values at the points, and how far a rounding of x and y moves them."""

  x: np.ndarray  # [N, D]
  y: np.ndarray  # [N, D]
  at: Local  # each [N, ...]
  spread: Local  # each [N, ...]


def evaluator(flat: FlatBijection) -> Callable[[Any, Any], Local]:
  """`local`, compiled, over rows of x and y."""
  return jax.jit(
    lambda x, y: jax.lax.map(lambda point: local(flat, *point), (x, y))
  )


def neighbourhood(
  flat: FlatBijection,
  evaluate: Callable[[Any, Any], Local],
  x: np.ndarray,
  rounded_to: DTypeLike | None = None,
) -> Neighbourhood:
  """Evaluates at the points and two roundings to either side of them."""
  y = np.asarray(jax.jit(jax.vmap(flat.forward))(x))
  epsilon = 2 * jnp.finfo(rounded_to or x.dtype).eps
  rows = [
    np.concatenate([a, a * (1 - epsilon), a * (1 + epsilon)]).astype(x.dtype)
    for a in (x, y)
  ]
  values = jax.tree.map(
    lambda a: np.asarray(a).reshape(3, len(x), *a.shape[1:]), evaluate(*rows)
  )
  # Infinity minus itself is NaN: no comparison is made there.
  with np.errstate(invalid="ignore"):
    spread = jax.tree.map(lambda a: np.abs(a[1:] - a[0]).max(0), values)
  return Neighbourhood(x, y, jax.tree.map(lambda a: a[0], values), spread)


def compare(
  name: str,
  got: ArrayLike,
  expected: ArrayLike,
  slack: ArrayLike,
  tolerance: float,
) -> Check:
  """|got - expected| <= tolerance (1 + |expected|) + slack at every point.

  Where the reference itself is not finite, or moves without bound when x or y
  is rounded, there is nothing to compare with.
  """
  shape = np.shape(got)
  rows, expected, slack = (
    np.broadcast_to(a, shape).reshape(shape[0], -1)
    for a in (got, expected, slack)
  )
  judged = np.isfinite(expected) & np.isfinite(slack)
  if not judged.any():
    return Check(name, "failed", "the reference is not finite at any point.")
  scale = 1 + np.abs(np.where(judged, expected, 0)).max(1, keepdims=True)
  with np.errstate(invalid="ignore"):
    errors = np.abs(rows - expected) / (tolerance * scale + 2 * slack)
  errors = np.where(judged, np.where(np.isnan(errors), np.inf, errors), 0)
  worst = np.unravel_index(np.argmax(errors), errors.shape)
  detail = (
    f"got {rows[worst]:.10g}, expected {expected[worst]:.10g} at point "
    f"{worst[0]}"
  )
  if errors[worst] <= 1:
    return Check(name, "passed", f"{detail}, the worst of {len(rows)}.")
  return Check(name, "failed", f"{detail}.")


def finite(name: str, values: ArrayLike) -> Check:
  """Every number is finite."""
  values = np.asarray(values)
  bad = ~np.isfinite(values).reshape(len(values), -1).all(1)
  if bad.any():
    return Check(
      name, "failed", f"got {values[bad][0]} at point {np.argmax(bad)}."
    )
  return Check(name, "passed", f"at {len(values)} points.")


def values(near: Neighbourhood, tolerance: float) -> list[Check]:
  """Round trips, log-determinants both ways and the sign."""
  at, spread = near.at, near.spread
  log_det = compare(
    "log_det",
    at.claimed,
    at.dense,
    spread.dense + spread.dense_inverse,
    tolerance,
  )
  return [
    finite("f is finite", at.image),
    finite("f_inverse is finite", at.back),
    finite("log_det is finite", at.claimed),
    compare("f_inverse(f(x))", at.back, near.x, spread.back, tolerance),
    compare("f(f_inverse(y))", at.again, near.y, spread.image, tolerance),
    explained(log_det, at.claimed, at.dense, tolerance),
    compare(
      "Jacobian of f_inverse",
      at.dense_inverse,
      -at.dense,
      spread.dense + spread.dense_inverse,
      tolerance,
    ),
    _optional("sign", at.claimed_sign, at.dense_sign, 0, tolerance),
    _optional(
      "inverse_log_det",
      at.claimed_inverse,
      -at.dense,
      spread.dense + spread.dense_inverse,
      tolerance,
    ),
  ]


def _optional(
  name: str,
  got: ArrayLike,
  expected: ArrayLike,
  slack: ArrayLike,
  tolerance: float,
) -> Check:
  if np.isnan(got).all():
    return Check(name, "skipped", "not given.")
  return compare(name, got, expected, slack, tolerance)


def explained(
  check: Check, got: ArrayLike, expected: ArrayLike, tolerance: float
) -> Check:
  """Adds to a failed check what kind of mistake would give these numbers."""
  got, expected = np.asarray(got), np.asarray(expected)
  usable = np.isfinite(got) & np.isfinite(expected)
  if check.status != "failed" or not usable.any():
    return check
  got, expected = got[usable], expected[usable]
  offset = np.median(got - expected)
  factor = np.sum(got * expected) / max(np.sum(expected**2), 1e-300)
  if np.allclose(got, -expected, tolerance, tolerance):
    return _hint(check, "the sign is wrong: is it the inverse's?")
  if np.allclose(got, expected + offset, tolerance, tolerance):
    return _hint(check, f"it is off by {offset:.6g} at every point")
  if np.allclose(got, factor * expected, tolerance, tolerance):
    return _hint(check, f"it is {factor:.6g} times what it should be")
  return check


def _hint(check: Check, hint: str) -> Check:
  return check._replace(detail=f"{check.detail[:-1]}; {hint}.")


def derivatives(
  flat: FlatBijection, near: Neighbourhood, count: int, tolerance: float
) -> list[Check]:
  """Gradients against autodiff of slogdet, Jacobians against differences."""
  x, y = near.x[:count], near.y[:count]
  try:
    slope = jax.jit(
      lambda x: jax.lax.map(lambda point: slopes(flat, point), x)
    )(x)
  except Exception as error:
    return [Check("derivatives", "failed", first_line(error))]
  slope = jax.tree.map(np.asarray, slope)
  epsilon = float(jnp.finfo(x.dtype).eps)
  steps = epsilon ** (1 / 3) * np.where(x == 0, 1, np.abs(x))
  rounding = epsilon * np.abs(y)[:, :, None] / steps[:, None, :]
  condition = np.linalg.cond(slope.jacobian)[:, None, None]
  product = slope.inverse_jacobian @ slope.jacobian
  return [
    finite("gradient of log_det is finite", slope.gradient),
    compare(
      "gradient of log_det",
      slope.gradient,
      slope.dense_gradient,
      1e3 * epsilon * condition[..., 0],
      tolerance,
    ),
    _reverse_mode(
      "f", flat.differentiate, slope.reverse, slope.jacobian, tolerance
    ),
    _reverse_mode(
      "f_inverse",
      flat.differentiate_inverse,
      slope.inverse_reverse,
      slope.inverse_jacobian,
      tolerance,
    ),
    compare(
      "Jacobians' product",
      product,
      np.broadcast_to(np.eye(x.shape[1]), product.shape),
      1e3 * epsilon * condition,
      tolerance,
    ),
    compare(
      "central differences of f",
      slope.differences,
      slope.jacobian,
      10 * rounding,
      epsilon ** (1 / 3),
    ),
  ]


def _reverse_mode(
  function: str,
  differentiate: Differentiate,
  got: ArrayLike,
  expected: ArrayLike,
  tolerance: float,
) -> Check:
  name = f"reverse mode of {function}"
  if differentiate is jax.jacrev:
    return Check(name, "skipped", "there is no forward mode to compare with.")
  return compare(name, got, expected, 0, tolerance)


def first_line(error: Exception) -> str:
  """The exception's type and the beginning of its message."""
  return f"{type(error).__name__}: {str(error).splitlines()[0]}"
