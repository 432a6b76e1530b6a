"""A conformance kit for bijections: anybody's, not only this library's."""

import contextlib
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.flatten_util import ravel_pytree
from jax.typing import DTypeLike

from revmom.jacobian.conformance.change_of_measure import (
  LARGEST_BOX,
  change_of_measure,
)
from revmom.jacobian.conformance.comparisons import (
  Check,
  Neighbourhood,
  compare,
  derivatives,
  evaluator,
  neighbourhood,
  values,
)
from revmom.jacobian.conformance.drift import drift, in_single
from revmom.jacobian.conformance.flat import (
  FlatBijection,
  Functions,
  cast,
  flat_bijection,
  rows,
  value_and_sign,
)
from revmom.jacobian.conformance.transforms import (
  evaluations,
  same_size,
  same_structure,
)

LARGEST_DENSE = 1000
# Relative errors that rounding and a numerical inverse may reach.
TOLERANCE = {"float64": 1e-9, "float32": 1e-4}
# Samples whose Jacobians are also taken by other means.
DERIVED = 4


class BijectionReport(NamedTuple):
  """What `check_bijection` compared, and how it came out."""

  size: int  # D
  points: int
  dtype: str
  checks: tuple[Check, ...]

  @property
  def failed(self) -> tuple[Check, ...]:
    """The checks that failed."""
    return tuple(check for check in self.checks if check.status == "failed")

  def __str__(self) -> str:
    title = f"a map of {self.size} numbers, {self.points} points, {self.dtype}"
    return "\n".join([title, *(f"  {check}" for check in self.checks)])


class BijectionError(AssertionError):
  """A bijection that is not what it says; `report` has all comparisons."""

  def __init__(self, report: BijectionReport):
    lines = [f"{check.name}: {check.detail}" for check in report.failed]
    super().__init__(
      f"{len(lines)} of {len(report.checks)} checks of the bijection failed.\n"
      + "\n".join(lines)
    )
    self.report = report


def check_bijection(
  f: Callable[[Any], Any],
  f_inverse: Callable[[Any], Any],
  log_det: Callable[[Any], Any],
  sampler: Callable[[jax.Array], Any],
  *,
  inverse_log_det: Callable[[Any], Any] | None = None,
  edges: Sequence[Any] = (),
  volume_preserving: bool = False,
  dtype: DTypeLike | None = None,
  tolerance: float | None = None,
  num_points: int = 32,
  seed: int = 0,
) -> BijectionReport:
  r"""Compares a bijection with what it must be, and raises where it is not.

  .. math::
    f^{-1}(f(x)) = x, \quad f(f^{-1}(y)) = y, \quad
    \text{log_det}(x) = \log\left|\det \tfrac{\partial f}{\partial x}\right|,
    \quad \int_{f(B)} \left|\det\tfrac{\partial f^{-1}}{\partial y}\right| dy
      = \int_B dx

  The references are independent of the functions' own claims: slogdet of
  `jax.jacfwd` of f and of f_inverse (`jax.jacrev` where they have custom
  reverse derivatives), central differences, and Monte Carlo.
  Eager, jitted and mapped evaluation must agree, gradients must be right, and
  float32 must agree with float64.  Everything runs in float64, whether or not
  x64 is on, unless `dtype` says otherwise.  Tolerances grow with what a
  rounding of x or y alone would do.

  Args:
    f: from a pytree of floats to one of the same total size, unbatched.
    f_inverse: from f(x) to x.
    log_det: from x to the scalar log|det df/dx|, or to a result with `value`
      and `sign`, such as that of `revmom.jacobian.log_det`.
    sampler: from a key to a random x of the domain, with values as various as
      those that will be met.
    inverse_log_det: from y to log|det df_inverse/dy|, if there is one.
    edges: points x at the domain's edges, where values and log-determinants
      must be finite, and right as far as float64 tells.
    volume_preserving: log|det df/dx| is 0 everywhere.  Otherwise it must not
      be 0 at all samples, where no wrong sign or factor could be seen.
    dtype: float64 for functions that make sense in float64 only, float32 for
      those that can't compute in it.  By default float64, and float32 is
      compared with it.
    tolerance: relative; 1e-9 in float64, 1e-4 in float32 by default.
    num_points: samples, each with a dense Jacobian.
    seed: of the samples.

  Returns:
    A report of all checks, none of which failed; some may be skipped, with
    the reason.

  Raises:
    BijectionError: an AssertionError, with the report.
    ValueError: what was passed can't be checked: D above 1000, leaves that
      are no floats, samples that are all alike or all of zero log-determinant.

  >>> log_det = lambda x: jnp.log(jnp.cosh(x))
  >>> report = check_bijection(
  ...   jnp.sinh, jnp.arcsinh, log_det, jax.random.normal
  ... )
  >>> report.failed
  ()
  """
  functions = (f, f_inverse, log_det, inverse_log_det)
  both = dtype is None
  dtype = jnp.dtype(jnp.float64 if dtype is None else dtype)
  if dtype.name not in TOLERANCE:
    raise ValueError(f"dtype={dtype.name}; choose float64 or float32.")
  tolerance = TOLERANCE[dtype.name] if tolerance is None else tolerance
  with _precision(dtype):
    points = _points(sampler, edges, num_points, seed, dtype)
    checks = _transforms(functions, points[:2], tolerance)
  if _all_passed(checks):
    single = in_single(functions, points) if both else None
    with _precision(dtype):
      flat = flat_bijection(*functions, points[0])
      evaluate = evaluator(flat)
      near = neighbourhood(flat, evaluate, rows(points))
      checks += [_volume_preserving(near, num_points, volume_preserving)]
      checks += values(near, tolerance)
      checks += derivatives(flat, near, DERIVED, tolerance)
      checks += [_measure(flat, near.x, seed)]
      if single is not None:
        checks += drift(
          flat, evaluate, single, num_points, TOLERANCE["float32"]
        )
  size = sum(np.size(leaf) for leaf in jax.tree.leaves(points[0]))
  report = BijectionReport(size, len(points), dtype.name, tuple(checks))
  if report.failed:
    raise BijectionError(report)
  return report


def _all_passed(checks: list[Check]) -> bool:
  return all(check.status != "failed" for check in checks)


@contextlib.contextmanager
def _precision(dtype: DTypeLike) -> Iterator[None]:
  """64-bit types; constants in 32 bits that f closes over are promoted."""
  if dtype == jnp.float32:
    yield
    return
  with jax.enable_x64(True), jax.numpy_dtype_promotion("standard"):
    yield


def _points(
  sampler: Callable[[jax.Array], Any],
  edges: Sequence[Any],
  num_points: int,
  seed: int,
  dtype: DTypeLike,
) -> list[Any]:
  """Samples, then edges."""
  keys = jax.random.split(jax.random.key(seed), num_points)
  samples = [sampler(key) for key in keys]
  leaves = jax.tree.leaves(samples[0])
  for leaf in leaves:
    if not jnp.issubdtype(jnp.result_type(leaf), jnp.floating):
      raise ValueError(
        f"sampler gave a leaf of {jnp.result_type(leaf)}, expected floats: "
        "close over what is no real variable of the bijection."
      )
  size = sum(np.size(leaf) for leaf in leaves)
  if size > LARGEST_DENSE:
    raise ValueError(
      f"the bijection has {size} variables, and dense references reach to "
      f"{LARGEST_DENSE}: check a smaller instance of it."
    )
  first, second = (ravel_pytree(sample)[0] for sample in samples[:2])
  if (first == second).all():
    raise ValueError(
      f"sampler gave {first} twice: draw from the key that it is given."
    )
  return [cast(point, dtype) for point in (*samples, *edges)]


def _transforms(
  functions: Functions, points: list[Any], tolerance: float
) -> list[Check]:
  """Sizes, types and structures, and evaluation under jit and vmap."""
  f, f_inverse, log_det, inverse_log_det = functions
  checks = [evaluations("f", f, points, tolerance)]
  if not _all_passed(checks):
    return checks
  images = [f(x) for x in points]
  named = [
    ("f_inverse", f_inverse, images),
    ("log_det", lambda x: value_and_sign(log_det(x)), points),
  ]
  if inverse_log_det is not None:
    value = lambda y: value_and_sign(inverse_log_det(y))
    named.append(("inverse_log_det", value, images))
  checks += [
    evaluations(name, function, where, tolerance)
    for name, function, where in named
  ]
  checks.append(same_size("size", images[0], points[0]))
  if _all_passed(checks):
    back = f_inverse(images[0])
    checks.append(same_structure("structure", back, points[0]))
  return checks


def _volume_preserving(
  near: Neighbourhood, num_points: int, promised: bool
) -> Check:
  """The promise holds; without it, samples must be able to show a mistake."""
  dense = near.at.dense[:num_points]
  zero = np.zeros_like(dense)
  if promised:
    return compare("volume preserving", dense, zero, 0, 1e-6)
  if np.all(np.abs(dense) < 1e-6):
    raise ValueError(
      f"the true log-determinant is 0 at all {num_points} samples, where no "
      "wrong sign or factor can be seen: sample from elsewhere, or pass "
      "volume_preserving=True if f preserves volume everywhere."
    )
  return Check("volume preserving", "skipped", "not promised.")


def _measure(flat: FlatBijection, x: np.ndarray, seed: int) -> Check:
  """Change of measure within five standard errors and a hundredth."""
  name = "change of measure"
  if x.shape[1] > LARGEST_BOX:
    return Check(name, "skipped", f"more than {LARGEST_BOX} variables.")
  volume = change_of_measure(flat, x, seed)
  if volume is None:
    return Check(name, "failed", "no box between samples has a proper image.")
  error = volume.standard_error
  detail = f"got {volume.ratio:.4f} +- {error:.4f} of the volume, expected 1."
  right = abs(volume.ratio - 1) <= 5 * error + 0.01
  return Check(name, "passed" if right else "failed", detail)
