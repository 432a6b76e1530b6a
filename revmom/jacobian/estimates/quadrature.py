"""log|det A| of a matrix that is known by its products alone.

With random directions x, log|det A| = tr log|A| = E x^T log|A| x; each form is
a Gauss quadrature on a Krylov space (Golub & Meurant 2010; Ubaru, Chen & Saad
2017).  Its error bar has three parts: sampling (Student's t), the truncation
of the Krylov space, and rounding.
"""

from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from revmom.jacobian.estimates.estimate import (
  Deviation,
  Estimate,
  Matvec,
  Operator,
  flatten,
  make_estimate,
  refuse_unless,
  standard_error,
)
from revmom.jacobian.estimates.log_action import (
  Spectrum,
  check_symmetry,
  product_log,
  symmetric_log,
)
from revmom.jacobian.estimates.log_forms import Method, log_forms
from revmom.jacobian.estimates.trace import Estimator, leave_one_out


def lanczos_quadrature(
  num_steps: int,
  num_samples: int,
  *,
  leave_one_out: bool = False,
  batch_size: int | None = None,
) -> Estimator:
  r"""Estimates log|det A| of a symmetric matrix by Lanczos quadrature.

  .. math::
    \log|\det A| = \mathbb{E}\, x^\top \log|A|\, x, \qquad
    x^\top \log|A|\, x \approx |x|^2 \sum_{k=1}^m \tau_k \log|\theta_k|

  Ubaru, Chen & Saad (2017), equations (1) and (9), with orthogonal directions;
  or, leaving one out, XTrace (Epperly, Tropp & Webber 2024) of log|A|, which
  is far better where a few eigenvalues differ from the rest: with fewer such
  than samples, intervals of the plain form are also too short (0.85 instead
  of 0.95 for two of them and 10 samples).

  A may be indefinite, as an SGD step beyond the edge of stability is.  While a
  definite one is overestimated by too few steps, never underestimated, an
  indefinite one can err both ways, and needs many steps if its eigenvalues
  come close to zero on both sides.

  Args:
    num_steps: Krylov steps m, one product each.  At most D are taken; below 4
      there is no bound of the truncation.
    num_samples: directions S, two or more.  At most D are drawn; with D of
      them and D steps the value is exact.
    leave_one_out: XTrace, at twice the products.
    batch_size: directions handled at once, all by default.  Memory is that of
      batch_size * num_steps vectors.

  Returns:
    (key, matvec, like) -> `Estimate`, where `matvec` maps pytrees like `like`
    to pytrees of the same size.  It can be jitted and vmapped; the value
    differentiates any number of times with respect to what `matvec` closes
    over, without bias (derivatives are estimated, not those of the estimate).

  Raises:
    ValueError: (when called) sizes that differ, and, as far as is known
      outside of `jit`, a matrix that is singular or not symmetric.  Inside,
      the estimate is NaN and not `valid`.

  >>> matrix = jnp.array([[2.0, 1.0], [1.0, 3.0]])
  >>> estimate = lanczos_quadrature(num_steps=2, num_samples=2)(
  ...   jax.random.key(0), lambda x: matrix @ x, jnp.zeros(2)
  ... )
  >>> print(f"{jnp.exp(estimate.value):.4f} {estimate.stderr}")
  5.0000 0.0
  """
  method = Method(symmetric_log(num_steps), leave_one_out, batch_size)
  return _estimator(method, num_steps, num_samples, 1)


def golub_kahan_quadrature(
  num_steps: int,
  num_samples: int,
  *,
  leave_one_out: bool = False,
  batch_size: int | None = None,
) -> Estimator:
  r"""Estimates log|det A| of any matrix from its singular values.

  .. math::
    \log|\det A| = \mathbb{E}\, x^\top \tfrac12 \log(A^\top A)\, x, \qquad
    x^\top \tfrac12 \log(A^\top A)\, x
    \approx |x|^2 \sum_{k=1}^m \tau_k \log\sigma_k

  The singular values are those of the bidiagonal matrix of Golub & Kahan
  (1965), so that conditions are not squared; the transpose is derived from
  `matvec`.  Otherwise as `lanczos_quadrature`, but a step costs a product with
  A and one with its transpose, and too few of them always overestimate.

  >>> matrix = jnp.array([[2.0, 1.0], [0.0, 3.0]])
  >>> estimate = golub_kahan_quadrature(num_steps=2, num_samples=2)(
  ...   jax.random.key(0), lambda x: matrix @ x, jnp.zeros(2)
  ... )
  >>> print(f"{jnp.exp(estimate.value):.4f} {estimate.stderr}")
  6.0000 0.0
  """
  method = Method(product_log(num_steps), leave_one_out, batch_size)
  return _estimator(method, num_steps, num_samples, 2)


def _estimator(
  method: Method, num_steps: int, num_samples: int, products: int
) -> Estimator:
  if num_steps < 1:
    raise ValueError(f"num_steps={num_steps}; at least one step is needed.")

  def estimate(key: jax.Array, matvec: Matvec, like: Any) -> Estimate:
    operator = flatten(matvec, like)
    steps = min(num_steps, operator.dimension)
    return quadrature(method, operator, key, num_samples, products * steps)[0]

  return estimate


def quadrature(
  method: Method,
  operator: Operator,
  key: jax.Array,
  num_samples: int,
  cost: int,
) -> tuple[Estimate, Spectrum]:
  """The estimate and what it is based on; `cost` is products per direction."""
  probes_key, action_key = jax.random.split(key)
  draw = operator.independent if method.leave_one_out else operator.directions
  probes = draw(probes_key, num_samples)
  forms = log_forms(method, operator, probes, action_key)
  spectrum = lax.stop_gradient(forms.diagnostics)
  if method.leave_one_out:
    # Mapped, not looped over: see _leading_blocks in log_action.py.
    mapped = jax.vmap(leave_one_out, (0, None))
    means, errors = mapped(forms.values, forms.vectors)
    stderr = errors[-1]
  else:
    means = jnp.mean(forms.values, 1)
    stderr = standard_error(forms.values[-1], operator.dimension)
  gauss = not method.leave_one_out
  estimate = make_estimate(
    means[-1],
    stderr,
    _truncation(lax.stop_gradient(means), spectrum, gauss),
    len(probes),
    cost * len(forms.vectors),
    _check(means[-1], spectrum),
  )
  return estimate, spectrum


def effective_rank(spectrum: Spectrum) -> jax.Array:
  """(tr F^2)^2 / tr F^4 of F = log|A|: how many eigenvalues stand out."""
  return jnp.mean(spectrum.square) ** 2 / jnp.mean(spectrum.fourth)


def _truncation(means: jax.Array, spectrum: Spectrum, gauss: bool) -> Deviation:
  """How far off the means [levels] can be for want of Krylov steps.

  Three levels that double the steps twice, with differences d_1 and d_2, are
  extrapolated as a geometric series; twice what would still be missing,
  d_2 r / (1 - r) for r = d_2 / d_1, or d_2 if that is more, bounds the error.
  Nothing is bounded where r >= 1.  Gauss quadrature of a logarithm is never
  too small (Golub & Meurant 2010, Section 6.2): its even derivatives are
  negative.
  """
  first, last = jnp.abs(means[:-1] - means[1:])
  rounding = jnp.mean(spectrum.rounding)
  ratio = last / jnp.where(first > 0, first, jnp.nan)
  rest = jnp.where(ratio < 1, ratio / (1 - ratio), jnp.inf)
  missing = 2 * last * jnp.maximum(1, rest)
  settled = jnp.all(spectrum.complete) | (last <= rounding)
  missing = jnp.where(settled, 0, missing)
  definite = (jnp.min(spectrum.lowest) > 0) | (jnp.max(spectrum.highest) < 0)
  above = jnp.where(gauss & definite, 0, missing)
  return Deviation(missing + rounding, above + rounding)


def _check(value: jax.Array, spectrum: Spectrum) -> jax.Array:
  """Whether the estimate means anything.

  Raises:
    ValueError: it is known not to.
  """
  finite = refuse_unless(
    jnp.isfinite(lax.stop_gradient(value)),
    "the matrix is singular or has entries that are not finite, so that its "
    "log-determinant is not a finite number.",
  )
  norm = jnp.maximum(jnp.max(spectrum.highest), -jnp.min(spectrum.lowest))
  return finite & check_symmetry(jnp.max(spectrum.asymmetry), norm)
