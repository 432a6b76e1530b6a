"""What log|A| does to a vector, without the matrix.

Each action maps (matvec, transpose, x, key) to log|A| x by increasingly good
approximations, to the dual vector A^-T x that derivatives need, since
d log|det A| = tr(A^-1 dA), and to what is known about its own error.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from revmom.jacobian.estimates.estimate import refuse_unless
from revmom.jacobian.estimates.lanczos import FlatMatvec, golub_kahan, lanczos


class Spectrum(NamedTuple):
  """What a Krylov space says about the spectrum."""

  lowest: jax.Array  # []: of the Ritz values, or singular values
  highest: jax.Array  # []
  complete: jax.Array  # bool []: the space holds all directions in its reach
  rounding: jax.Array  # []: bound on the error that float arithmetic makes
  asymmetry: jax.Array  # []: see `check_symmetry`
  square: jax.Array  # []: |log|A| x|^2
  fourth: jax.Array  # []: |log|A|^2 x|^2


class Action(NamedTuple):
  """log|A| x and what belongs to it."""

  images: jax.Array  # [levels, D], the best last
  dual: jax.Array  # [D]: A^-T x
  diagnostics: Any


LogAction = Callable[[FlatMatvec, FlatMatvec, jax.Array, jax.Array], Action]


def symmetric_log(num_steps: int) -> LogAction:
  """log|A| = V^T U log|theta| U^T V, by Lanczos, for a symmetric A."""

  def act(matvec, transpose, x, key) -> Action:
    space = lanczos(matvec, x, min(num_steps, x.size))
    values, vectors = jnp.linalg.eigh(_leading_blocks(space.matrix()))
    scales, start = jnp.abs(values), jnp.linalg.norm(x) * vectors[:, 0]
    images = jnp.einsum(
      "lkn,ln,kd->ld", vectors, jnp.log(scales) * start, space.basis
    )
    solution = vectors[-1] @ (_inverse(values[-1]) * start[-1])
    spectrum = Spectrum(
      lowest=jnp.min(values[-1]),
      highest=jnp.max(values[-1]),
      complete=_ended(space.off_diagonal, x),
      rounding=_rounding(start[-1], scales[-1]),
      asymmetry=space.asymmetry,
      square=jnp.sum((start[-1] * jnp.log(scales[-1])) ** 2),
      fourth=jnp.sum((start[-1] * jnp.log(scales[-1]) ** 2) ** 2),
    )
    return Action(images, solution @ space.basis, spectrum)

  return act


def product_log(num_steps: int) -> LogAction:
  """1/2 log(A^T A) = V^T W log(sigma) W^T V, by Golub-Kahan, for any A."""

  def act(matvec, transpose, x, key) -> Action:
    space = golub_kahan(matvec, transpose, x, min(num_steps, x.size))
    columns, sigma, rows = jnp.linalg.svd(_leading_blocks(space.matrix()))
    start = jnp.linalg.norm(x) * rows[:, :, 0]
    images = jnp.einsum(
      "ln,lnk,kd->ld", jnp.log(sigma) * start, rows, space.right
    )
    solution = columns[-1] @ (_inverse(sigma[-1]) * start[-1])
    spectrum = Spectrum(
      lowest=jnp.min(sigma[-1]),
      highest=jnp.max(sigma[-1]),
      complete=_ended(space.off_diagonal, x),
      rounding=_rounding(start[-1], sigma[-1]),
      asymmetry=jnp.zeros_like(sigma[0, 0]),
      square=jnp.sum((start[-1] * jnp.log(sigma[-1])) ** 2),
      fourth=jnp.sum((start[-1] * jnp.log(sigma[-1]) ** 2) ** 2),
    )
    return Action(images, solution @ space.left, spectrum)

  return act


def _leading_blocks(matrix: jax.Array) -> jax.Array:
  """What a quarter, half and all of the steps give, [3, m, m].

  Each has the full size, the rest being a multiple of the identity that
  nothing couples to: one batched decomposition is enough.  (Several in one
  program can wait for each other's threads forever, in jaxlib on CPU.)
  """
  size = len(matrix)
  half = max(1, size // 2)
  # The first ratio never exceeds the second: see _truncation.
  sizes = jnp.array([(half + 1) // 2, half, size])
  inside = jnp.arange(size) < sizes[:, None]
  blocks = jnp.where(inside[:, :, None] & inside[:, None, :], matrix, 0)
  rest = jnp.where(inside, 0, matrix[0, 0])
  return blocks + rest[:, None, :] * jnp.eye(size, dtype=matrix.dtype)


def _inverse(values: jax.Array) -> jax.Array:
  return 1 / jnp.where(values == 0, jnp.inf, values)


def _rounding(start: jax.Array, scales: jax.Array) -> jax.Array:
  """|d x^T log|A| x| for errors of 4 eps |A| in the eigenvalues."""
  error = 4 * jnp.finfo(scales.dtype).eps * jnp.max(scales)
  return jnp.sum(start**2 * error / scales)


def _ended(off_diagonal: jax.Array, x: jax.Array) -> jax.Array:
  """Whether a Krylov space holds all directions that it can reach."""
  return jnp.any(off_diagonal == 0) | (off_diagonal.size == x.size)


def check_symmetry(asymmetry: jax.Array, norm: jax.Array) -> jax.Array:
  """Whether a matrix is symmetric up to rounding.

  What the symmetric part leaves out enters log|det| by its square.

  Raises:
    ValueError: it is known not to be.
  """
  limit = 10 * float(jnp.finfo(norm.dtype).eps) ** 0.5
  return refuse_unless(
    ~(lax.stop_gradient(asymmetry) > limit * lax.stop_gradient(norm)),
    f"the matrix is not symmetric: y . A x and x . A y differ by {asymmetry}, "
    f"and its norm is {norm}; use golub_kahan_quadrature for log|det A|.",
  )
