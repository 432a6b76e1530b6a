"""Singular values of a linear map: all of them, or estimates with error bars.

All are natural logarithms, so that those of deep products stay in range, and
all count directions of the input: a Jacobian [M, N] has the N square roots of
the eigenvalues of J^T J, of which N - M are zero if M < N.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from revmom.jacobian.estimates.estimate import standard_error, t_quantile
from revmom.jacobian.estimates.lanczos import golub_kahan

RISK = 1e-6  # that the largest singular value is above its interval
SAMPLES = 8  # random directions
STEPS = 24  # of each Krylov space: two products a step


class Figure(NamedTuple):
  """A number and the interval that it is in."""

  value: jax.Array
  interval: jax.Array  # [..., 2]


class Spectrum(NamedTuple):
  """Singular values s of one map, or of several along leading axes.

  Intervals are those of rounding where all singular values were computed.
  Where they were estimated: for `log_mean_square` and `spread` 95 %, from
  random directions; for `log_largest` from the largest that was found to what
  it exceeds with a probability of 1e-6; and the smallest is somewhere below
  the smallest that was found.
  """

  log_values: jax.Array  # [..., K]: log s, the largest first
  weights: jax.Array  # [..., K]: the share of all N directions
  log_largest: Figure
  log_smallest: Figure
  log_mean_square: Figure  # of |J|_F^2 / N, which is chi_1 of a layer
  spread: Figure  # mean s^4 / (mean s^2)^2 - 1: zero of an isometry
  log_resolution: jax.Array  # what is below this may be rounding error

  def times(self, log_factors: jax.Array) -> "Spectrum":
    """The spectra of the maps multiplied by exp(log_factors [...])."""
    shift = lambda log: log + log_factors[..., None]
    move = lambda figure, power=1: Figure(
      figure.value + power * log_factors,
      figure.interval + power * log_factors[..., None],
    )
    return Spectrum(
      shift(self.log_values),
      self.weights,
      move(self.log_largest),
      move(self.log_smallest),
      move(self.log_mean_square, 2),
      self.spread,
      self.log_resolution + log_factors,
    )


def dense_spectrum(jacobians: jax.Array, columns: np.ndarray) -> Spectrum:
  """All singular values of square matrices [L, D, D], or padded with zeros.

  `columns` [L] are the numbers N of columns before padding.  This is one
  batched decomposition, for several in a program can wait for each other's
  threads forever, in jaxlib on CPU.

  >>> spectrum = dense_spectrum(
  ...   jnp.array([[[3.0, 0], [0, 4.0]]]), np.array([2])
  ... )
  >>> print(jnp.exp(spectrum.log_values).round(4))
  [[4. 3.]]
  >>> print(jnp.exp(spectrum.log_mean_square.value).round(4))
  [12.5]
  """
  size = jacobians.shape[-1]
  finite = jnp.all(jnp.isfinite(jacobians), (-2, -1), keepdims=True)
  values = jnp.linalg.svd(jnp.where(finite, jacobians, 0), compute_uv=False)
  values = jnp.where(finite[..., 0], values, jnp.nan)
  relative = size * float(jnp.finfo(values.dtype).eps)
  inside = np.arange(size) < columns[:, None]
  weights = jnp.asarray(inside / columns[:, None], values.dtype)
  largest = values[:, 0]
  smallest = values[np.arange(len(columns)), columns - 1]
  resolution = relative * largest
  log_mean, spread = _moments(values, weights)
  return Spectrum(
    jnp.where(inside, _log(values), -jnp.inf),
    weights,
    Figure(_log(largest), _log(_around(largest, resolution))),
    Figure(_log(smallest), _log(_around(smallest, resolution))),
    Figure(log_mean, _around(log_mean, jnp.full_like(log_mean, 2 * relative))),
    Figure(spread, _around(spread, 8 * relative * (1 + spread))),
    _log(resolution),
  )


def krylov_matrices(
  matvec: Callable[[jax.Array], jax.Array],
  transpose: Callable[[jax.Array], jax.Array],
  shape: tuple[int, int],
  dtype: Any,
  key: jax.Array,
) -> jax.Array:
  """Bidiagonal matrices [S, m, m] of a map [M, N] from random starts."""
  rows, columns = shape
  size = max(shape)
  pad = lambda vector: jnp.pad(vector, (0, size - vector.size))
  starts = jax.random.normal(key, (SAMPLES, columns), dtype)

  def of_start(start: jax.Array) -> jax.Array:
    return golub_kahan(
      lambda v: pad(matvec(v[:columns])),
      lambda u: pad(transpose(u[:rows])),
      pad(start),
      min(STEPS, columns),
    ).matrix()

  return jax.vmap(of_start)(starts)


def krylov_spectrum(matrices: jax.Array, columns: np.ndarray) -> Spectrum:
  """What results of `krylov_matrices` [L, S, m, m] say of N columns [L].

  The nodes and weights are those of Gauss quadrature (Golub & Meurant 2010).
  With theta the largest node after m steps from a uniformly random direction,
  P(s_max^2 (1 - e) > theta^2) <= 1.648 sqrt(N) exp(-sqrt(e) (2 m - 1)), for
  each start (Kuczynski & Wozniakowski 1992, Theorem 4.2).
  """
  finite = jnp.all(jnp.isfinite(matrices), (1, 2, 3), keepdims=True)
  _, values, right = jnp.linalg.svd(jnp.where(finite, matrices, 0))
  values = jnp.where(finite[..., 0], values, jnp.nan)  # [L, S, m]
  weights = right[..., 0] ** 2
  largest = jnp.max(values, (1, 2))
  # Rounding puts nodes of no weight behind the end of a space.
  seen = weights > 8 * float(jnp.finfo(values.dtype).eps)
  smallest = jnp.min(jnp.where(seen, values, largest[:, None, None]), (1, 2))
  rounding = 4 * float(jnp.finfo(values.dtype).eps) * largest
  steps = np.minimum(matrices.shape[-1], columns)
  excess = jnp.asarray(_log_excess(columns, steps), values.dtype)
  least = jnp.where(steps == columns, smallest - rounding, 0)
  log_mean, spread = _sampled_moments(values, weights, columns)
  values = values.reshape(len(columns), -1)
  order = jnp.argsort(-values, -1)
  sort = lambda x: jnp.take_along_axis(x.reshape(values.shape), order, -1)
  between = lambda low, high: jnp.stack([low, high], -1)
  return Spectrum(
    _log(sort(values)),
    sort(weights) / matrices.shape[1],
    Figure(
      _log(largest),
      between(_log(largest - rounding), _log(largest + rounding) + excess),
    ),
    Figure(_log(smallest), between(_log(least), _log(smallest + rounding))),
    log_mean,
    spread,
    _log(rounding),
  )


def _log_excess(columns: np.ndarray, steps: np.ndarray) -> np.ndarray:
  """How far log s_max can be above the largest node of any start [L]."""
  risk = RISK ** (1 / SAMPLES)  # of each start, which all must fail
  root = np.log(1.648 * np.sqrt(columns) / risk) / (2 * steps - 1)
  known = -0.5 * np.log1p(-(np.minimum(root, 0.999) ** 2))
  return np.where(steps == columns, 0, np.where(root < 0.999, known, np.inf))


def _log(values: jax.Array) -> jax.Array:
  """log; of what rounding made negative, as of zero."""
  return jnp.log(jnp.where(values < 0, 0, values))


def _around(value: jax.Array, error: jax.Array) -> jax.Array:
  return jnp.stack([value - error, value + error], -1)


def _moments(
  values: jax.Array, weights: jax.Array
) -> tuple[jax.Array, jax.Array]:
  """log mean s^2, and mean s^4 over the square of it, less one."""
  largest = values[..., :1]
  unit = values / jnp.where(largest > 0, largest, 1)
  square = jnp.sum(weights * unit**2, -1)
  fourth = jnp.sum(weights * unit**4, -1)
  ratio = fourth / jnp.where(square > 0, square, 1) ** 2
  spread = jnp.where(square > 0, jnp.maximum(ratio - 1, 0), 0)
  return _log(square) + 2 * _log(largest[..., 0]), spread


def _sampled_moments(
  values: jax.Array, weights: jax.Array, columns: np.ndarray
) -> tuple[Figure, Figure]:
  """The moments of nodes [L, S, m], with intervals over S directions.

  Student's interval of the mean is too short (0.86 instead of 0.95) where one
  singular value stands out, as samples are then nearly those of chi^2 with one
  degree of freedom.  On the other hand the spread tells their variance,
  2 spread / (N + 2) times the mean's square, and so the degrees of freedom of
  Satterthwaite's chi^2, which are too many where it is underestimated.  The
  interval is the hull of both: it covers in 0.96 to 0.99 of 1000 trials each
  on flat, ill-conditioned and nearly singular spectra.
  """
  largest = jnp.max(values, (1, 2), keepdims=True)
  unit = values / jnp.where(largest > 0, largest, 1)
  squares = jnp.sum(weights * unit**2, -1)  # [L, S]
  fourths = jnp.sum(weights * unit**4, -1)
  square, fourth = (jnp.mean(x, -1) for x in (squares, fourths))
  safe = jnp.where(square > 0, square, 1)
  most = jnp.asarray(columns - 1, values.dtype)
  spread = jnp.clip(fourth / safe**2 - 1, 0, most)
  # Linearised, the error of the ratio is that of the mean of this.
  influence = (
    fourths / safe[:, None] ** 2 - 2 * squares * (fourth / safe**3)[:, None]
  )
  errors = jax.vmap(lambda samples: standard_error(samples, None))
  half = lambda samples: t_quantile(SAMPLES) * errors(samples)
  student = _around(square, half(squares))
  low, high = (
    square / _chi_square(sign, spread / (most + 3)) for sign in (1, -1)
  )
  hull = jnp.stack(
    [jnp.minimum(low, student[:, 0]), jnp.maximum(high, student[:, 1])], -1
  )
  log_scale = 2 * _log(largest[:, 0, 0])
  return (
    Figure(_log(square) + log_scale, _log(hull) + log_scale[:, None]),
    Figure(spread, _around(spread, half(influence))),
  )


def _chi_square(sign: int, relative: jax.Array) -> jax.Array:
  """A 95 % limit of chi^2 over its degrees of freedom, SAMPLES / relative.

  By Wilson & Hilferty (1931): its cube root is nearly normal.
  """
  variance = 2 * relative / (9 * SAMPLES)
  return (1 - variance + sign * 1.96 * jnp.sqrt(variance)) ** 3
