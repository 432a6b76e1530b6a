"""Norms of activations and of their gradients, wherever they occur.

A `tap` is an identity whose adjoint measures: the gradient of its token holds
sums over the values that passed and over the adjoints that came back.  Sums add
up, so a tap may stand within a scan, a checkpoint or a vmap, where nothing else
would get out, and one gradient serves all taps.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax


class Norms(NamedTuple):
  """Figures of some arrays; all have the same shape."""

  # Euclidean; NaN if an element is not finite, infinite beyond the range.
  norm: jax.Array
  rms: jax.Array  # root of the mean square; 0 of nothing
  zeros: jax.Array  # the fraction of elements that are zero
  not_finite: jax.Array  # how many are infinite or NaN
  elements: jax.Array  # how many there are; a float, to count beyond int32


# What is summed over elements; squares by magnitude, so that none of them
# leaves the range of its type (Blue 1978, "A portable Fortran program to find
# the Euclidean norm of a vector").
SMALL, MEDIUM, BIG, NONZERO, NOT_FINITE, COUNT = range(6)
SUMS = 6


class _Range(NamedTuple):
  """Where squares are safe, and factors for what is not."""

  least: float
  most: float
  up: float
  down: float


def _range(dtype: Any) -> _Range:
  if jnp.finfo(dtype).maxexp >= 1024:
    return _Range(2.0**-400, 2.0**400, 2.0**600, 2.0**-600)
  return _Range(2.0**-48, 2.0**48, 2.0**64, 2.0**-80)


def _floats(tree: Any) -> list[jax.Array]:
  """The leaves that have adjoints."""
  return [
    jnp.asarray(leaf)
    for leaf in jax.tree.leaves(tree)
    if jnp.issubdtype(jnp.result_type(leaf), jnp.floating)
  ]


def sums(tree: Any, leading: int = 0) -> jax.Array:
  """Sums over all floats of a tree, [..., 6]; `leading` axes are kept."""
  shape = next((leaf.shape[:leading] for leaf in _floats(tree)), ())
  zero = jnp.zeros((*shape, SUMS))
  return sum((_sums(leaf, leading) for leaf in _floats(tree)), zero)


def _sums(values: jax.Array, leading: int) -> jax.Array:
  """One plain sum of squares where that is safe, and Blue's three where not."""
  wide = jnp.zeros(()).dtype  # float32, or float64 where that is on
  axes = tuple(range(leading, values.ndim))
  plain = jnp.sum(values.astype(wide) ** 2, axes)
  nonzero = _count(values != 0, axes, wide)
  # Squares beyond these bounds may have left the range of their type.
  safe, none = _range(wide), jnp.zeros_like(plain)
  seen = (plain > safe.least) & (plain < safe.most)
  squares, not_finite = jax.lax.cond(
    jnp.all(seen | (nonzero == 0)),
    lambda values: ((none, plain, none), none),
    lambda values: _careful_sums(values, axes, wide),
    values,
  )
  count = np.prod(values.shape[leading:])
  return jnp.stack(
    [*squares, nonzero, not_finite, jnp.full_like(nonzero, count)], -1
  )


def _careful_sums(
  values: jax.Array, axes: tuple[int, ...], wide: Any
) -> tuple[tuple[jax.Array, jax.Array, jax.Array], jax.Array]:
  """Squares by magnitude, and how many values are not finite."""
  safe = _range(wide)
  finite = jnp.isfinite(values)
  sizes = jnp.where(finite, jnp.abs(values).astype(wide), 0)
  small, big = sizes < safe.least, sizes > safe.most
  square = lambda where, factor: jnp.sum(
    jnp.where(where, sizes * factor, 0) ** 2, axes, dtype=wide
  )
  squares = (
    square(small, safe.up),
    square(~small & ~big, 1.0),
    square(big, safe.down),
  )
  return squares, _count(~finite, axes, wide)


def _count(where: jax.Array, axes: tuple[int, ...], wide: Any) -> jax.Array:
  """How many are true; integers are added faster, floats go on beyond them."""
  if not axes:
    return where.astype(wide)
  *others, last = axes
  rows = jnp.sum(where, last, dtype=jnp.int32)
  return jnp.sum(rows, tuple(others), dtype=wide)


def norms(totals: jax.Array) -> Norms:
  """`Norms` from the result of `sums`."""
  safe = _range(totals.dtype)
  small, medium, big = (totals[..., k] for k in (SMALL, MEDIUM, BIG))
  count = totals[..., COUNT]
  some = jnp.maximum(count, 1)

  def root(divisor: jax.Array) -> jax.Array:
    # Factors are powers of two: a division by the largest part would be a
    # product with its reciprocal, which may be too small to exist.
    one = lambda part: jnp.sqrt(part / divisor)
    rest = (jnp.sqrt(small) * (1 / safe.up)) ** 2
    return jnp.where(
      big > 0,
      one(big + (jnp.sqrt(medium) * safe.down) ** 2) * (1 / safe.down),
      jnp.where(medium > 0, one(medium + rest), one(small) * (1 / safe.up)),
    )

  finite = totals[..., NOT_FINITE] == 0
  return Norms(
    jnp.where(finite, root(jnp.ones_like(some)), jnp.nan),
    jnp.where(finite, root(some), jnp.nan),
    jnp.where(count > 0, 1 - totals[..., NONZERO] / some, 0),
    totals[..., NOT_FINITE],
    count,
  )


def scaled(values: jax.Array, axis: int = -1) -> tuple[jax.Array, jax.Array]:
  """Values whose squares keep within range, and the power of two they lack."""
  largest = lax.stop_gradient(jnp.abs(values).max(axis, keepdims=True))
  most = jnp.finfo(values.dtype).maxexp - 28
  some = (largest > 0) & jnp.isfinite(largest)
  _, exponent = jnp.frexp(jnp.where(some, largest, 1))
  exponent = jnp.clip(exponent, -most, most)
  factor = lambda n: jnp.ldexp(jnp.ones((), values.dtype), n)
  return values * factor(-exponent), factor(exponent)


@jax.custom_vjp
def _tap(values: jax.Array, token: jax.Array) -> jax.Array:
  del token
  return values


def _tap_forward(
  values: jax.Array, token: jax.Array
) -> tuple[jax.Array, jax.Array]:
  del token
  return values, sums(values)


def _tap_backward(
  passed: jax.Array, bars: jax.Array
) -> tuple[jax.Array, jax.Array]:
  return bars, jnp.stack([passed, sums(bars)])


_tap.defvjp(_tap_forward, _tap_backward)


def tokens(count: int) -> jax.Array:
  """One for each tap [count, 2, 6]."""
  return jnp.zeros((count, 2, SUMS))


def tap(tree: Any, token: jax.Array) -> Any:
  """The tree; the gradient of a token is `sums` of it and of its adjoint.

  >>> token = tokens(1)[0]
  >>> bar = jax.grad(lambda t: jnp.sum(2 * tap(jnp.array([3.0, 4.0]), t)))(
  ...   token
  ... )
  >>> print(norms(bar).norm.round(4))
  [5.     2.8284]
  """

  def one(leaf: Any) -> Any:
    floating = jnp.issubdtype(jnp.result_type(leaf), jnp.floating)
    return _tap(leaf, token) if floating else leaf

  return jax.tree.map(one, tree)
