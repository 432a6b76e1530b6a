"""Volumes by Monte Carlo: a check of a log-determinant without derivatives."""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from revmom.jacobian.conformance.flat import FlatBijection

# Boxes in more dimensions have too little volume in their images' hulls.
LARGEST_BOX = 16
DRAWS = 4096
HALVINGS = 12


class Volume(NamedTuple):
  """The volume of a box, measured in its image, over the true one."""

  ratio: float  # 1, up to a few standard errors
  standard_error: float
  covered: float  # part of the proposals that fell into the image


def change_of_measure(
  flat: FlatBijection, x: np.ndarray, seed: int
) -> Volume | None:
  r"""Compares :math:`\int_{f(B)} |\det df^{-1}/dy|\, dy` with the volume of B.

  B is a box between two samples, halved until f is near enough to affine on
  it that a tenth of a parallelepiped around f(B) is filled.

  Args:
    flat: the bijection; log_det is what is put to the test.
    x: [N, D], samples of the domain; the first two span the box.
    seed: of the random numbers.

  Returns:
    The volume, or None where no box was small enough.
  """
  rng = np.random.default_rng(seed)
  corner, span = x[0], x[1] - x[0]
  # A side of no length has no volume.
  span = np.where(span == 0, 1e-3 * (1 + np.abs(corner)), span)
  forward = jax.jit(jax.vmap(flat.forward))
  weigh = jax.jit(jax.vmap(lambda y: _weigh(flat, y)))
  for halving in range(HALVINGS):
    side = span * 0.5**halving
    volume = _volume(forward, weigh, corner, side, rng)
    if volume is not None and volume.covered > 0.1:
      return volume
  return None


def _weigh(
  flat: FlatBijection, y: jax.Array
) -> tuple[jax.Array, jax.Array, jax.Array]:
  """x of y, |det dx/dy| in logs, and how far f(x) is from y."""
  x = flat.inverse(y)
  return x, -flat.log_det(x)[0], jnp.max(jnp.abs(flat.forward(x) - y))


def _volume(
  forward: Callable[[np.ndarray], jax.Array],
  weigh: Callable[[np.ndarray], tuple[jax.Array, jax.Array, jax.Array]],
  corner: np.ndarray,
  side: np.ndarray,
  rng: np.random.Generator,
) -> Volume | None:
  """One box: uniform proposals around its image, weighted by |dx/dy|."""
  units = rng.random((DRAWS, len(side)))
  image = np.asarray(forward((corner + units * side).astype(corner.dtype)))
  if not np.isfinite(image).all():
    return None
  matrix, centre, low, high = _hull(units, image)
  sign, log_scale = np.linalg.slogdet(matrix)
  if sign == 0:
    return None
  proposals = low + (high - low) * rng.random((DRAWS, len(side)))
  y = (centre + proposals @ matrix).astype(corner.dtype)
  x, log_weight, miss = (np.asarray(a) for a in weigh(y))
  # The side's sign falls out of (x - corner) / side.
  inside = np.all(np.abs((x - corner) / side - 0.5) <= 0.5, axis=1)
  inside &= miss <= 1e-3 * (1 + np.abs(y).max(1))
  log_hull = log_scale + np.log(high - low).sum() - np.log(np.abs(side)).sum()
  terms = np.where(
    inside, np.exp(np.where(inside, log_hull + log_weight, 0)), 0
  )
  error = terms.std(ddof=1) / np.sqrt(DRAWS)
  return Volume(float(terms.mean()), float(error), float(inside.mean()))


def _hull(
  units: np.ndarray, image: np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
  """The affine fit y = u A + b, and bounds of u that hold the whole image."""
  rows = np.concatenate([units, np.ones((len(units), 1))], axis=1)
  solution = np.linalg.lstsq(rows, image, rcond=None)[0]
  matrix, centre = solution[:-1], solution[-1]
  if np.linalg.slogdet(matrix)[0] == 0:
    return matrix, centre, units.min(0), units.max(0)
  fitted = np.linalg.solve(matrix.T, (image - centre).T).T
  margin = 0.05 * (fitted.max(0) - fitted.min(0))
  return matrix, centre, fitted.min(0) - margin, fitted.max(0) + margin
