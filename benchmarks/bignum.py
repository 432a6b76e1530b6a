"""Reversible momentum with bits kept in Python integers of any length.

Maclaurin, Duvenaud & Adams (2015), Algorithm 3, as its authors kept the
information buffer: one big integer for every parameter, in an object array.
Written anew from the paper, to be timed beside `revmom`.
"""

import sys
import time
from typing import NamedTuple

import numpy as np

RADIX = 2**52
DENOMINATOR = 2**16


class Velocity:
  """Integers that can be multiplied by n/d and lose nothing."""

  def __init__(self, size: int):
    self.integers = np.zeros(size, np.int64)
    self.store = np.zeros(size, object)

  def multiply(self, numerator: int, denominator: int) -> None:
    """v <- v n / d; the inverse is `multiply(d, n)`."""
    self._push(self.integers % denominator, denominator)
    self.integers = self.integers // denominator * numerator
    self.integers += self._pop(numerator)

  def _push(self, digits: np.ndarray, base: int) -> None:
    self.store = self.store * base + digits.astype(object)

  def _pop(self, base: int) -> np.ndarray:
    digits = (self.store % base).astype(np.int64)
    self.store = self.store // base
    return digits


class Result(NamedTuple):
  """Cost of the arithmetic of a run and its reversal, for each parameter."""

  forward_ns: float  # a step
  reverse_ns: float  # a step
  buffer_bytes: float  # at the end of the run, with Python's own overhead
  exact: bool


def measure(
  size: int, steps: int, learning_rate: float, momentum: float
) -> Result:
  """Minimises half the sum of squares, then undoes it.

  The gradient is the parameter itself, so that only arithmetic is timed.
  """
  numerator = round(momentum * DENOMINATOR)
  start = np.random.default_rng(0).normal(size=size)
  params = _fix(start)
  velocity = Velocity(size)

  def increment():
    return _fix(-learning_rate * (params / RADIX))

  begin = time.perf_counter()
  for _ in range(steps):
    velocity.multiply(numerator, DENOMINATOR)
    velocity.integers += increment()
    params = params + velocity.integers
  middle = time.perf_counter()
  held = size * velocity.store.itemsize
  held += sum(sys.getsizeof(number) for number in velocity.store)
  again = time.perf_counter()
  for _ in range(steps):
    params = params - velocity.integers
    velocity.integers -= increment()
    velocity.multiply(DENOMINATOR, numerator)
  end = time.perf_counter()
  exact = np.array_equal(params, _fix(start))
  exact &= not velocity.integers.any() and not velocity.store.any()
  scale = 1e9 / (size * steps)
  return Result(
    (middle - begin) * scale, (end - again) * scale, held / size, bool(exact)
  )


def _fix(values: np.ndarray) -> np.ndarray:
  return np.rint(values * RADIX).astype(np.int64)
