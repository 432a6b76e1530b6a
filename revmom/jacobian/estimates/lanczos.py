"""Krylov spaces: Lanczos for symmetric matrices, Golub-Kahan for others.

After m steps from a start x, a symmetric matrix acts on the space of x, A x,
..., A^(m-1) x as a tridiagonal T, and f(A) x is nearly |x| V^T f(T) e_1
(Lanczos 1950); a general one acts as an upper bidiagonal B, with
A^T A ~ B^T B (Golub & Kahan 1965).  The leading k rows and columns are what k
steps give, so the convergence of one run can be watched in its own leading
blocks.  Every vector is orthogonalised against all earlier ones, twice.
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

FlatMatvec = Callable[[jax.Array], jax.Array]  # [D] -> [D]


class Tridiagonal(NamedTuple):
  """V A V^T for an orthonormal basis V of a Krylov space."""

  basis: jax.Array  # [m, D]; rows of zeros past the end of the space
  diagonal: jax.Array  # [m]
  off_diagonal: jax.Array  # [m]: the last couples to the vector left out
  asymmetry: jax.Array  # []: largest entry that symmetry forbids

  def matrix(self) -> jax.Array:
    """T, [m, m]."""
    off = self.off_diagonal[:-1]
    return jnp.diag(self.diagonal) + jnp.diag(off, 1) + jnp.diag(off, -1)


class Bidiagonal(NamedTuple):
  """U A V^T for orthonormal bases U and V of Krylov spaces."""

  left: jax.Array  # [m, D]
  right: jax.Array  # [m, D]
  diagonal: jax.Array  # [m]
  off_diagonal: jax.Array  # [m]: the last couples to the vector left out

  def matrix(self) -> jax.Array:
    """B, [m, m]."""
    return jnp.diag(self.diagonal) + jnp.diag(self.off_diagonal[:-1], 1)


def lanczos(
  matvec: FlatMatvec, start: jax.Array, num_steps: int
) -> Tridiagonal:
  """Tridiagonalises a symmetric matrix from a start [D].

  Golub & Van Loan (2013), Algorithm 10.1.1, with full reorthogonalisation.
  Where the space ends early, the rest of T is a multiple of the identity that
  nothing couples to.

  >>> matrix = jnp.diag(jnp.array([1.0, 2.0, 3.0]))
  >>> space = lanczos(lambda x: matrix @ x, jnp.ones(3), 3)
  >>> print(jnp.linalg.eigvalsh(space.matrix()).round(4))
  [1. 2. 3.]
  """
  first, _ = _normalise(start, jnp.zeros_like(start, shape=()))
  basis = jnp.zeros_like(start, shape=(num_steps, start.size))
  zero = jnp.zeros_like(start, shape=())

  def step(carry, j):
    basis, vector, coupling, asymmetry = carry
    basis = basis.at[j].set(vector)
    image = matvec(vector)
    rest, entries = _orthogonalise(image, basis)
    before = jnp.where(jnp.arange(num_steps) < j, entries, 0)
    before = before.at[j - 1].add(jnp.where(j > 0, -coupling, 0))
    asymmetry = jnp.maximum(asymmetry, jnp.max(jnp.abs(before)))
    following, beta = _normalise(rest, jnp.linalg.norm(image))
    alive = jnp.any(vector != 0)
    return (basis, following, beta, asymmetry), (entries[j], beta, alive)

  (basis, _, _, asymmetry), (diagonal, off_diagonal, alive) = lax.scan(
    step, (basis, first, zero, zero), jnp.arange(num_steps)
  )
  diagonal = jnp.where(alive, diagonal, diagonal[0])
  return Tridiagonal(basis, diagonal, off_diagonal, asymmetry)


def golub_kahan(
  matvec: FlatMatvec,
  transpose: FlatMatvec,
  start: jax.Array,
  num_steps: int,
) -> Bidiagonal:
  """Bidiagonalises a matrix from a start [D] on its right.

  Golub & Van Loan (2013), Algorithm 10.4.1, with full reorthogonalisation.

  >>> matrix = jnp.array([[1.0, 2.0], [0.0, 1.0]])
  >>> space = golub_kahan(
  ...   lambda x: matrix @ x, lambda x: matrix.T @ x, jnp.ones(2), 2
  ... )
  >>> print(jnp.sum(space.matrix() ** 2).round(4))
  6.0
  """
  zero = jnp.zeros_like(start, shape=())
  first, _ = _normalise(start, zero)
  empty = jnp.zeros_like(start, shape=(num_steps, start.size))

  def step(carry, j):
    left, right, vector = carry
    right = right.at[j].set(vector)
    image = matvec(vector)
    u, alpha = _normalise(_orthogonalise(image, left)[0], zero)
    left = left.at[j].set(u)
    image = transpose(u)
    rest, _ = _orthogonalise(image, right)
    following, beta = _normalise(rest, jnp.linalg.norm(image))
    alive = jnp.any(vector != 0)
    return (left, right, following), (alpha, beta, alive)

  (left, right, _), (diagonal, off_diagonal, alive) = lax.scan(
    step, (empty, empty, first), jnp.arange(num_steps)
  )
  diagonal = jnp.where(alive, diagonal, diagonal[0])
  return Bidiagonal(left, right, diagonal, off_diagonal)


def _orthogonalise(
  vector: jax.Array, basis: jax.Array
) -> tuple[jax.Array, jax.Array]:
  """A vector less its projection on the rows of a basis, and that [m]."""
  entries = basis @ vector
  vector = vector - entries @ basis
  correction = basis @ vector
  return vector - correction @ basis, entries + correction


def _normalise(
  vector: jax.Array, scale: jax.Array
) -> tuple[jax.Array, jax.Array]:
  """A unit vector and its length; zeros if it is rounding error of `scale`."""
  length = jnp.linalg.norm(vector)
  alive = length > jnp.finfo(vector.dtype).eps * scale
  unit = vector / jnp.where(alive, length, 1)
  return jnp.where(alive, unit, 0), jnp.where(alive, length, 0)
