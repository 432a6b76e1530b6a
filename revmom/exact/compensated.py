"""Sums of floats that do not drift: pairs of floats (Dekker 1971).

A float32 that adds up 10^5 equal terms is off by some 8e-4 of the sum.  Here
what an addition rounds away (Knuth 1998, Section 4.2.2, Theorem B) is kept in a
second float, which gives float32 some 48 bits.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import DTypeLike


class Sum(NamedTuple):
  """A sum of floats and what rounding has taken from it."""

  value: jax.Array
  compensation: jax.Array

  def plus(self, term: Any) -> "Sum":
    """The sum with another, or with a number: see `of`."""
    term = term if isinstance(term, Sum) else of(term, self.value.dtype)
    total = self.value + term.value
    part = total - self.value
    lost = (self.value - (total - part)) + (term.value - part)
    kept = lost + (self.compensation + term.compensation)
    return Sum(total, kept)._renormalised()

  def _renormalised(self) -> "Sum":
    """The same sum with a compensation below the last bit of its value.

    One that grew would drift by rounding itself.
    """
    total = self.value + self.compensation
    return Sum(total, self.compensation - (total - self.value))

  def times(self, count: Any) -> "Sum":
    """The sum of so many equal ones: a Python int or an array, 0 or more."""
    count = np.int64(count) if isinstance(count, int) else count
    places = np.arange(8 * count.dtype.itemsize - 1)
    digits = (count >> places.astype(count.dtype)) & np.ones((), count.dtype)
    # Powers of two multiply without rounding.
    powers = np.ldexp(1.0, places).astype(self.value.dtype)
    scale = jnp.where(jnp.asarray(digits, bool), powers, 0)
    return total_of(Sum(self.value * scale, self.compensation * scale))

  def astype(self, dtype: DTypeLike) -> "Sum":
    """The same sum, of another type of floats."""
    return Sum(self.value.astype(dtype), self.compensation.astype(dtype))

  @property
  def total(self) -> jax.Array:
    """The sum, rounded once."""
    return self.value + self.compensation

  def double(self) -> np.ndarray:
    """The sum in double precision, where it is known."""
    high, low = (np.asarray(part, np.float64) for part in self)
    return high + low


def zero(dtype: DTypeLike) -> Sum:
  """The empty sum."""
  return Sum(jnp.zeros((), dtype), jnp.zeros((), dtype))


def of(numbers: Any, dtype: DTypeLike) -> Sum:
  """A sum of one term; Python's and NumPy's floats keep double precision."""
  if isinstance(numbers, (float, np.ndarray)):
    rest = numbers - np.asarray(numbers, dtype).astype(np.float64)
    return Sum(jnp.asarray(numbers, dtype), jnp.asarray(rest, dtype))
  value = jnp.asarray(numbers).astype(dtype)
  return Sum(value, jnp.zeros_like(value))


def total_of(terms: Sum) -> Sum:
  """The sum of [N] terms, in a tree of additions.

  >>> tenths = of(np.full(100_000, 0.1), jnp.float32)
  >>> print(f"{total_of(tenths).double():.6f}")
  10000.000000
  """
  while terms.value.shape[0] > 1:
    odd = terms.value.shape[0] % 2
    even = jax.tree.map(lambda a, odd=odd: jnp.pad(a, (0, odd)), terms)
    first, second = (
      jax.tree.map(lambda a, start=start: a[start::2], even) for start in (0, 1)
    )
    terms = first.plus(second)
  if not terms.value.shape[0]:
    return zero(terms.value.dtype)
  return jax.tree.map(lambda a: a[0], terms)
