"""Traces of matrices known by their products, with error bars."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from revmom.jacobian.estimates.estimate import (
  Deviation,
  Estimate,
  Matvec,
  flatten,
  make_estimate,
  standard_error,
)

Estimator = Callable[[jax.Array, Matvec, Any], Estimate]


def hutchinson(num_samples: int) -> Estimator:
  """Estimates tr A by the mean of x^T A x over random directions.

  Girard (1989), Hutchinson (1990), with orthogonal directions of length
  sqrt(D): the variance is at most 2 (|A|_F^2 - (tr A)^2 / D) / num_samples
  for a symmetric A, and nothing is left of it with D samples.

  Args:
    num_samples: two or more; more than D are not drawn.

  Returns:
    (key, matvec, like) -> `Estimate`, where `matvec` maps pytrees like `like`
    to pytrees of the same size.  It can be jitted, vmapped and differentiated.

  >>> estimate = hutchinson(num_samples=3)(
  ...   jax.random.key(0), lambda x: 2 * x, jnp.zeros(3)
  ... )
  >>> print(estimate.value.round(4), estimate.stderr)
  6.0 0.0
  """

  def estimate(key: jax.Array, matvec: Matvec, like: Any) -> Estimate:
    operator = flatten(matvec, like)
    probes = operator.directions(key, num_samples)
    forms = jax.vmap(lambda x: x @ operator.matvec(x))(probes)
    return make_estimate(
      jnp.mean(forms),
      standard_error(forms, operator.dimension),
      _exact(forms),
      len(forms),
      len(forms),
      jnp.ones((), bool),
    )

  return estimate


def xtrace(num_samples: int) -> Estimator:
  """Estimates tr A exactly on the range of A X, by samples X elsewhere.

  XTrace of Epperly, Tropp & Webber (2024), in its normalised form (Section
  2.3): each sample is left out of the basis on which it is not needed.  Its
  error falls with that of the best approximation of rank `num_samples`, so
  that it is better than `hutchinson` where few eigenvalues stand out.

  Args:
    num_samples: two or more, each of which costs two products; more than D are
      not drawn.

  Returns:
    As `hutchinson`.

  >>> matrix = jnp.diag(jnp.array([5.0, 3.0, 0.0, 0.0, 0.0]))
  >>> estimate = xtrace(num_samples=4)(
  ...   jax.random.key(0), lambda x: matrix @ x, jnp.zeros(5)
  ... )
  >>> print(f"{estimate.value:.4f}")
  8.0000
  """

  def estimate(key: jax.Array, matvec: Matvec, like: Any) -> Estimate:
    operator = flatten(matvec, like)
    probes = operator.independent(key, num_samples)
    images = jax.vmap(operator.matvec)(probes)
    basis = jnp.linalg.qr(lax.stop_gradient(images).T)[0].T
    vectors = jnp.concatenate([probes, basis])
    images = jnp.concatenate([images, jax.vmap(operator.matvec)(basis)])
    value, stderr = leave_one_out(vectors @ images.T, vectors)
    return make_estimate(
      value,
      stderr,
      _exact(value),
      len(probes),
      2 * len(probes),
      jnp.ones((), bool),
    )

  return estimate


def leave_one_out(
  gram: jax.Array, vectors: jax.Array
) -> tuple[jax.Array, jax.Array]:
  """XTrace and its standard error.

  The samples of XTrace are not independent: their own standard error, which
  the paper proposes, is up to three times too small where rank and number of
  samples are close.  This is the jackknife's, leaving out one more direction,
  which is never too small on average (Efron & Stein 1981).

  Args:
    gram: [2S, 2S] of y^T A x for all vectors y, x.
    vectors: [2S, D], first S independent normal ones, then an orthonormal
      basis of the span of their images, in the order of Gram and Schmidt.

  Returns:
    Mean and standard error.
  """
  size, dimension = len(vectors) // 2, vectors.shape[1]
  probes, basis = lax.stop_gradient((vectors[:size], vectors[size:]))
  owns = _own_directions(lax.stop_gradient(gram[size:, :size]))
  coordinates = probes @ basis.T  # [S, S]

  def left_out(i: jax.Array, others: jax.Array) -> jax.Array:
    """The sample of probe i, if some directions [k, S] leave the basis."""
    kept = coordinates[i] - (others @ coordinates[i]) @ others
    inner = gram[size:, size:]
    explained = jnp.trace(inner) - jnp.sum((others @ inner) * others)
    rest = jnp.concatenate([jnp.zeros(size, kept.dtype).at[i].set(1), -kept])
    missing = dimension - size + len(others)
    norm = jnp.sum(probes[i] ** 2) - jnp.sum(kept**2)
    form = rest @ gram @ rest
    return explained + missing * form / jnp.where(norm > 0, norm, jnp.inf)

  def without(j: jax.Array) -> jax.Array:
    """Mean of the samples if there had been no probe j."""
    pair = jax.vmap(
      lambda i: left_out(i, jnp.stack([owns[i], _orthogonal(owns[j], owns[i])]))
    )(jnp.arange(size))
    return jnp.sum(jnp.where(jnp.arange(size) == j, 0, pair)) / (size - 1)

  value = jnp.mean(
    jax.vmap(lambda i: left_out(i, owns[i][None]))(jnp.arange(size))
  )
  if size == dimension:
    return value, jnp.zeros_like(value)
  jackknife = lax.map(without, jnp.arange(size))
  spread = jnp.std(jackknife) * jnp.sqrt(size - 1.0).astype(value.dtype)
  return value, spread


def _own_directions(triangle: jax.Array) -> jax.Array:
  """Unit rows s_i, orthogonal to all columns of R but the i-th: of R^-T."""
  largest = jnp.max(jnp.abs(jnp.diagonal(triangle)))
  triangle = triangle / jnp.where(largest > 0, largest, 1)
  # Where the rank is lower, any directions of the basis do.
  floor = float(jnp.finfo(triangle.dtype).eps)
  ridge = jnp.where(jnp.abs(jnp.diagonal(triangle)) < floor, floor, 0)
  inverse = jax.scipy.linalg.solve_triangular(
    triangle + jnp.diag(ridge), jnp.eye(len(triangle), dtype=triangle.dtype)
  )
  return inverse / jnp.linalg.norm(inverse, axis=1, keepdims=True)


def _orthogonal(vector: jax.Array, unit: jax.Array) -> jax.Array:
  """The unit vector of what of a vector is orthogonal to a unit vector."""
  rest = vector - (vector @ unit) * unit
  norm = jnp.linalg.norm(rest)
  return rest / jnp.where(norm > 0, norm, 1)


def _exact(like: jax.Array) -> Deviation:
  """No error but that of sampling."""
  return Deviation(
    jnp.zeros_like(like, shape=()), jnp.zeros_like(like, shape=())
  )
