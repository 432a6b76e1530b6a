"""Eigenvalues of symmetric matrices known by their products."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from revmom.jacobian.estimates.estimate import Matvec, flatten
from revmom.jacobian.estimates.lanczos import lanczos
from revmom.jacobian.estimates.log_action import check_symmetry


class SpectralDensity(NamedTuple):
  """Point masses in place of the density of eigenvalues."""

  nodes: jax.Array  # [S, m]
  weights: jax.Array  # [S, m]: each row sums to one


class Eigenvalues(NamedTuple):
  """Approximate eigenvalues, the largest first."""

  values: jax.Array  # [count]; NaN past those that a start can see
  errors: jax.Array  # [count]: an eigenvalue lies within this distance


def spectral_density(
  num_steps: int, num_samples: int
) -> Callable[[jax.Array, Matvec, Any], SpectralDensity]:
  r"""Estimates the density of a symmetric matrix's eigenvalues.

  .. math::
    \frac{1}{D} \sum_i \delta(\lambda - \lambda_i) \approx \frac{1}{S}
    \sum_{s,k} \tau_{sk}\, \delta(\lambda - \theta_{sk})

  Lin, Saad & Yang (2016), Section 3.2; Ghorbani, Krishnan & Xiao (2019),
  Algorithm 1.  Each row integrates polynomials of degree 2 m - 1 exactly in
  the density that its direction sees.

  Args:
    num_steps: m, at most D, each one product.
    num_samples: S, two or more; more than D are not drawn.

  Returns:
    (key, matvec, like) -> `SpectralDensity`.

  Raises:
    ValueError: (when called, outside of `jit`) the matrix is not symmetric;
      inside, the nodes are NaN.

  >>> density = spectral_density(num_steps=3, num_samples=3)(
  ...   jax.random.key(0), lambda x: jnp.arange(1.0, 4.0) * x, jnp.zeros(3)
  ... )
  >>> print(jnp.mean(jnp.sum(density.nodes * density.weights, 1)).round(4))
  2.0
  """

  def estimate(key: jax.Array, matvec: Matvec, like: Any) -> SpectralDensity:
    operator = flatten(matvec, like)
    steps = min(num_steps, operator.dimension)

    def of_direction(start: jax.Array) -> tuple:
      space = lanczos(operator.matvec, start, steps)
      nodes, vectors = jnp.linalg.eigh(space.matrix())
      scale = jnp.max(jnp.abs(nodes))
      return nodes, vectors[0] ** 2, space.asymmetry, scale

    probes = operator.directions(key, num_samples)
    nodes, weights, asymmetry, scale = jax.vmap(of_direction)(probes)
    valid = check_symmetry(jnp.max(asymmetry), jnp.max(scale))
    return SpectralDensity(jnp.where(valid, nodes, jnp.nan), weights)

  return estimate


def top_eigenvalues(
  num_steps: int, count: int
) -> Callable[[jax.Array, Matvec, Any], Eigenvalues]:
  """Finds the largest eigenvalues of a symmetric matrix; -A has the smallest.

  Ritz values theta_k of one Krylov space, each with the norm of its residual,
  |beta_m U_mk|, within which there is an eigenvalue (Parlett 1998, Theorem
  4.5.1).  A multiple eigenvalue is seen once.

  Args:
    num_steps: m, at most D and not below `count`; each one product.
    count: how many.

  Returns:
    (key, matvec, like) -> `Eigenvalues`.

  Raises:
    ValueError: `count` exceeds the steps; (when called, outside of `jit`) the
      matrix is not symmetric; inside, the values are NaN.

  >>> top = top_eigenvalues(num_steps=3, count=2)(
  ...   jax.random.key(0), lambda x: jnp.arange(1.0, 4.0) * x, jnp.zeros(3)
  ... )
  >>> print(top.values.round(4))
  [3. 2.]
  """
  if not 1 <= count <= num_steps:
    raise ValueError(
      f"count={count} with num_steps={num_steps}; a Krylov space of so many "
      "steps has between 1 and num_steps eigenvalues."
    )

  def find(key: jax.Array, matvec: Matvec, like: Any) -> Eigenvalues:
    operator = flatten(matvec, like)
    steps = min(num_steps, operator.dimension)
    start = jax.random.normal(key, (operator.dimension,), operator.dtype)
    space = lanczos(operator.matvec, start, steps)
    values, vectors = jnp.linalg.eigh(space.matrix())
    scale = jnp.max(jnp.abs(values))
    valid = check_symmetry(space.asymmetry, scale)
    inside = jnp.any(space.basis != 0, axis=1).astype(values.dtype)
    found = valid & (inside @ vectors**2 > 0.5)
    residuals = jnp.abs(space.off_diagonal[-1] * vectors[-1])
    errors = residuals + 4 * jnp.finfo(values.dtype).eps * scale
    order = jnp.argsort(jnp.where(found, -values, jnp.inf))[:count]
    known = lambda numbers: jnp.where(found, numbers, jnp.nan)[order]
    return Eigenvalues(known(values), known(errors))

  return find
