"""Estimates with error bars, and the random directions they are made of.

Linear maps are functions of pytrees.  Directions are drawn without
replacement: the columns of a random orthogonal matrix, scaled to the length
sqrt(D), so that a quadratic form averages to the trace, exactly so over a
complete set of D.  As in any sample from a finite population, the variance of
the mean of S of them is that of independent ones times (D - S) / D.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

Matvec = Callable[[Any], Any]  # pytree -> pytree, linear
CONFIDENCE = 0.95


class Estimate(NamedTuple):
  """A number that was estimated, and how far off it may be."""

  value: jax.Array  # []; NaN where refused
  stderr: jax.Array  # []: standard error of the mean over directions
  interval: jax.Array  # [2]: 95 %, by Student's t, widened by the bias
  bias_bound: jax.Array  # []: of what would remain of infinitely many samples
  num_matvecs: jax.Array  # int32 []: products with the matrix or its transpose
  num_samples: jax.Array  # int32 []
  valid: jax.Array  # bool []: False where refused


class Deviation(NamedTuple):
  """The truth without sampling error is in [value - below, value + above]."""

  below: jax.Array
  above: jax.Array


def t_quantile(num_samples: int) -> float:
  """Half a 95 % interval in standard errors, by Student's t.

  >>> round(t_quantile(5), 3)
  2.776
  """
  from scipy import special  # comes with jax; slow to import

  return float(special.stdtrit(num_samples - 1, (1 + CONFIDENCE) / 2))


def standard_error(samples: jax.Array, population: int | None) -> jax.Array:
  """The standard error of the mean of samples [S] from a population.

  They are drawn without replacement.  None stands for an infinite population,
  whose samples are independent.
  """
  size = samples.shape[0]
  if size == population:
    return jnp.zeros_like(samples, shape=())
  remaining = 1.0 if population is None else 1.0 - size / population
  return jnp.std(samples, ddof=1) * float(np.sqrt(remaining / size))


def make_estimate(
  value: jax.Array,
  stderr: jax.Array,
  deviation: Deviation,
  num_samples: int,
  num_matvecs: Any,
  valid: jax.Array,
) -> Estimate:
  """The estimate with its interval; all NaN where it is not valid."""
  stderr, deviation = jax.lax.stop_gradient((stderr, deviation))
  complete = num_samples < 2  # a single direction is all there are, or raises
  spread = 0.0 if complete else t_quantile(num_samples) * stderr
  center = jax.lax.stop_gradient(value)
  interval = jnp.stack(
    [center - deviation.below - spread, center + deviation.above + spread]
  )
  known = lambda number: jnp.where(valid, number, jnp.nan)
  return Estimate(
    value=known(value),
    stderr=known(stderr),
    interval=known(interval),
    bias_bound=known(jnp.maximum(deviation.below, deviation.above)),
    num_matvecs=jnp.asarray(num_matvecs, jnp.int32),
    num_samples=jnp.asarray(num_samples, jnp.int32),
    valid=valid,
  )


def refuse_unless(valid: jax.Array, message: str) -> jax.Array:
  """Raises ValueError where a refusal is known, else returns the flag."""
  try:
    known = bool(valid)
  except jax.errors.ConcretizationTypeError:
    return valid
  if not known:
    raise ValueError(message)
  return valid


class Operator(NamedTuple):
  """A linear map of pytrees, as one of vectors."""

  matvec: Callable[[jax.Array], jax.Array]  # [D] -> [D]
  dimension: int
  dtype: Any

  def directions(self, key: jax.Array, num_samples: int) -> jax.Array:
    """Random orthogonal vectors of length sqrt(D), [at most D, D].

    Columns of a matrix that is uniform on the orthogonal group (Mezzadri 2007,
    Section 5).
    """
    normal = self.independent(key, num_samples).T
    columns, triangle = jnp.linalg.qr(normal)
    signs = jnp.where(jnp.diagonal(triangle) < 0, -1.0, 1.0)
    scaled = columns * signs.astype(self.dtype)
    return scaled.T * float(np.sqrt(self.dimension))

  def independent(self, key: jax.Array, num_samples: int) -> jax.Array:
    """Independent normal vectors, [at most D, D].

    Raises:
      ValueError: fewer than two samples, which have no error bar.
    """
    if num_samples < 2:
      raise ValueError(
        f"num_samples={num_samples}; an error bar needs two samples or more."
      )
    size = min(num_samples, self.dimension)
    return jax.random.normal(key, (size, self.dimension), self.dtype)


def flatten(matvec: Matvec, like: Any) -> Operator:
  """A linear map of pytrees as one of vectors.

  Args:
    matvec: pytree -> pytree of as many numbers.
    like: a pytree with the shapes and dtypes of the argument.

  Raises:
    ValueError: an array is not of real floating point, or the result has
      another size than the argument.
  """
  leaves, structure = jax.tree.flatten(like)
  shapes: list[Any] = [
    jax.ShapeDtypeStruct(jnp.shape(leaf), jnp.result_type(leaf))
    for leaf in leaves
  ]
  for shape in shapes:
    if not jnp.issubdtype(shape.dtype, jnp.floating):
      raise ValueError(
        f"an array of `like` is {shape.dtype}; a matrix acts on arrays of "
        "real floating point: pass anything else as a constant of `matvec`."
      )
  result = jax.eval_shape(matvec, jax.tree.unflatten(structure, shapes))
  dimension = sum(shape.size for shape in shapes)
  got = sum(leaf.size for leaf in jax.tree.leaves(result))
  if got != dimension or not dimension:
    raise ValueError(
      f"`matvec` maps {dimension} numbers to {got}; a determinant or trace "
      "needs a square matrix of at least one row."
    )
  wide = any(shape.dtype == jnp.float64 for shape in shapes)
  dtype = jnp.dtype("float64" if wide else "float32")
  bounds = np.cumsum([shape.size for shape in shapes])[:-1].tolist()

  def flat_matvec(vector: jax.Array) -> jax.Array:
    pieces = [
      piece.reshape(shape.shape).astype(shape.dtype)
      for piece, shape in zip(jnp.split(vector, bounds), shapes, strict=True)
    ]
    image = jax.tree.leaves(matvec(jax.tree.unflatten(structure, pieces)))
    return jnp.concatenate([jnp.ravel(leaf).astype(dtype) for leaf in image])

  return Operator(flat_matvec, dimension, dtype)
