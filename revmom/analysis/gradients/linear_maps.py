"""Jacobians of functions of pytrees, as matrices or by their products."""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from revmom.analysis.gradients.spectrum import (
  Spectrum,
  dense_spectrum,
  krylov_matrices,
  krylov_spectrum,
)
from revmom.numerics import accumulator

DENSE = 512  # sizes up to which all singular values are computed


class LinearMap(NamedTuple):
  """A Jacobian [M, N] of real numbers; every other number is constant."""

  matvec: Callable[[jax.Array], jax.Array]  # [N] -> [M]
  transpose: Callable[[jax.Array], jax.Array]  # [M] -> [N]
  rows: int
  columns: int
  dtype: Any

  @property
  def is_small(self) -> bool:
    """Whether all singular values are to be computed."""
    return max(self.rows, self.columns) <= DENSE

  def matrix(self) -> jax.Array:
    """Itself [M, N], row by row."""
    return jax.vmap(self.transpose)(jnp.eye(self.rows, dtype=self.dtype))


class Measured(NamedTuple):
  """Several maps of the same size: matrices, or what Krylov spaces say."""

  matrices: jax.Array  # [n, M, N], or [n, S, m, m]
  columns: int  # N


def is_float(leaf: Any) -> bool:
  """Whether a leaf is an array, or a tracer, of floats."""
  return isinstance(leaf, jax.Array | np.ndarray) and jnp.issubdtype(
    leaf.dtype, jnp.floating
  )


def linear_map(f: Callable[[Any], Any], x: Any) -> tuple[Any, LinearMap]:
  """f(x) and its Jacobian: of all floats in the result by all floats in x.

  It is made of the reverse pass, which may be one that the user has written,
  and of that pass transposed.

  Raises:
    ValueError: there are none in x, or none in the result.
  """
  structure: Any
  leaves, structure = jax.tree.flatten(x)
  floats = [leaf for leaf in leaves if is_float(leaf)]
  if not floats:
    raise ValueError(
      "the input has no floats to differentiate with respect to; of what "
      "begins with an embedding, take the spectra of what follows it."
    )
  widest = max((jnp.dtype(leaf.dtype) for leaf in floats), key=_width)
  dtype = accumulator(widest)
  bounds = np.cumsum([leaf.size for leaf in floats])[:-1].tolist()

  def flat_f(flat: jax.Array) -> tuple[jax.Array, Any]:
    pieces = iter(
      piece.reshape(leaf.shape).astype(leaf.dtype)
      for piece, leaf in zip(jnp.split(flat, bounds), floats, strict=True)
    )
    y = f(
      structure.unflatten(
        [next(pieces) if is_float(leaf) else leaf for leaf in leaves]
      )
    )
    return _flat(y, dtype), y

  flat_y, pull, y = jax.vjp(flat_f, _flat(floats, dtype), has_aux=True)
  if not flat_y.size:
    raise ValueError("the result has no floats to differentiate.")
  push = jax.linear_transpose(pull, flat_y)
  size = sum(leaf.size for leaf in floats)
  return y, LinearMap(
    lambda v: push((v,))[0], lambda u: pull(u)[0], flat_y.size, size, dtype
  )


def _width(dtype: Any) -> int:
  return dtype.itemsize


def _flat(tree: Any, dtype: Any) -> jax.Array:
  floats = [leaf for leaf in jax.tree.leaves(tree) if is_float(leaf)]
  parts = [jnp.ravel(leaf).astype(dtype) for leaf in floats]
  return jnp.concatenate([jnp.zeros(0, dtype), *parts])


def measured(linear: LinearMap, key: jax.Array) -> Measured:
  """One map: its matrix, or what Krylov spaces say if that is too large."""
  if linear.is_small:
    return Measured(linear.matrix()[None], linear.columns)
  matrices = krylov_matrices(
    linear.matvec,
    linear.transpose,
    (linear.rows, linear.columns),
    linear.dtype,
    key,
  )
  return Measured(matrices[None], linear.columns)


def spectra(maps: Sequence[Measured]) -> Spectrum:
  """The spectra of all of them, in their order, along a leading axis."""
  small = [i for i, m in enumerate(maps) if m.matrices.ndim == 3]
  large = [i for i, m in enumerate(maps) if m.matrices.ndim == 4]
  parts, tree = [], tuple(maps)
  for indices, spectrum in ((small, dense_spectrum), (large, krylov_spectrum)):
    if indices:
      chosen = [tree[i] for i in indices]
      columns = np.repeat(
        [m.columns for m in chosen], [len(m.matrices) for m in chosen]
      )
      parts.append(spectrum(_padded([m.matrices for m in chosen]), columns))
      # One decomposition after the other: see dense_spectrum.
      arrays = lax.optimization_barrier(
        ([m.matrices for m in tree], parts[-1].log_values)
      )[0]
      tree = tuple(
        m._replace(matrices=a) for m, a in zip(tree, arrays, strict=True)
      )
  width = max(part.log_values.shape[-1] for part in parts)
  joined = jax.tree.map(
    lambda *leaves: jnp.concatenate(leaves), *(_wide(p, width) for p in parts)
  )
  lengths = [len(m.matrices) for m in maps]
  starts = np.cumsum([0, *lengths])
  rows = [np.arange(starts[i], starts[i] + lengths[i]) for i in small + large]
  order = np.argsort(np.concatenate(rows))
  return jax.tree.map(lambda leaf: leaf[order], joined)


def _padded(groups: Sequence[jax.Array]) -> jax.Array:
  """Matrices of different sizes, padded to square ones of the largest.

  A bidiagonal matrix is continued by its first entry, coupled to nothing, so
  that it keeps its extreme singular values.
  """
  size = max(max(group.shape[-2:]) for group in groups)

  def pad(group: jax.Array) -> jax.Array:
    rows, columns = group.shape[-2:]
    widths = [(0, 0)] * (group.ndim - 2)
    full = jnp.pad(group, [*widths, (0, size - rows), (0, size - columns)])
    if group.ndim == 3:
      return full
    rest = (jnp.arange(size) >= columns).astype(group.dtype)
    return full + group[..., :1, :1] * jnp.diag(rest)

  return jnp.concatenate([pad(group) for group in groups])


def _wide(spectrum: Spectrum, width: int) -> Spectrum:
  """The spectrum, padded with singular values of no weight."""
  more = [(0, 0), (0, width - spectrum.log_values.shape[-1])]
  return spectrum._replace(
    log_values=jnp.pad(
      spectrum.log_values, more, constant_values=-float("inf")
    ),
    weights=jnp.pad(spectrum.weights, more),
  )
