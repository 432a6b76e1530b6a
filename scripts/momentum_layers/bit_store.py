"""momentumnet's bit store, computed as it does, and gradients by hand.

A velocity is an integer of 64 bits with 52 after the point.  A factor n / d
moves its remainder by d to a store, one word for each number, divides,
multiplies by n, and takes a digit in base n out of the store.  Division is
towards zero, where remainders are those of division downwards, and nothing
asks whether the word is full (`momentumnet/exact_rep_pytorch.py`, version
0.10).  Positions are float32.
"""

from typing import Any, NamedTuple

import numpy as np

RADIX = 2.0**52


class Layers(NamedTuple):
  """tanh(x w) v of every layer."""

  w: Any  # [depth, width, hidden]
  v: Any  # [depth, hidden, width]


def residual(w: np.ndarray, v: np.ndarray, x: np.ndarray) -> np.ndarray:
  """f(x) of one layer."""
  return np.tanh(x @ w) @ v


def pull_back(
  w: np.ndarray, v: np.ndarray, x: np.ndarray, bar: np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
  """Cotangents of w, v and x of one layer."""
  hidden = np.tanh(x @ w)
  inner = (bar @ v.T) * (1 - hidden**2)
  return x.T @ inner, hidden.T @ bar, inner @ w.T


class Store:
  """Integers, and the word beside each."""

  def __init__(self, values: np.ndarray):
    """Of the shape of float values."""
    self.integers = (values.astype(np.float64) * RADIX).astype(np.int64)
    self.word = np.zeros_like(self.integers)

  def add(self, values: np.ndarray, sign: int) -> None:
    """Adds floats, or takes them away again."""
    change = (values.astype(np.float64) * RADIX).astype(np.int64)
    self.integers = self.integers + sign * change

  def multiply(self, numerator: int, denominator: int) -> None:
    """Multiplies by a ratio, which its inverse is meant to undo."""
    n, d = np.int64(numerator), np.int64(denominator)
    with np.errstate(over="ignore"):
      self.word = self.word * d + self.integers % d
      self.integers = _towards_zero(self.integers, d) * n + self.word % n
      self.word = _towards_zero(self.word, n)

  @property
  def values(self) -> np.ndarray:
    """float32, as all that reads it gets."""
    return (self.integers / RADIX).astype(np.float32)


def _towards_zero(a: np.ndarray, b: np.int64) -> np.ndarray:
  quotient = a // b
  return quotient + ((a % b != 0) & (a < 0))


def ratio(gamma: float) -> tuple[int, int]:
  """n and d of a factor, rounded up as there."""
  d = 2**16 // int(gamma + 1)
  return int(gamma * d + 1), d


def truncating_gradient(
  layers: Layers, x: np.ndarray, gamma: float
) -> tuple[np.ndarray, np.ndarray]:
  """Of mean(x^2) after all layers, activations being restored from the store.

  Returns:
    Gradients of w and v, float32.
  """
  n, d = ratio(gamma)
  rate = np.float32(1 - gamma)
  velocity = Store(np.zeros_like(x))
  for w, v in zip(*layers, strict=True):
    velocity.multiply(n, d)
    velocity.add(rate * residual(w, v, x), 1)
    x = x + velocity.values

  def undo(x, w, v):
    x = x - velocity.values
    velocity.add(rate * residual(w, v, x), -1)
    velocity.multiply(d, n)
    return x

  return _backward(layers, x, gamma, undo)


def float_gradient(
  layers: Layers, x: np.ndarray, gamma: float
) -> tuple[np.ndarray, np.ndarray]:
  """The same with the inverse formula in floats."""
  rate = np.float32(1 - gamma)
  velocity = np.zeros_like(x)
  for w, v in zip(*layers, strict=True):
    velocity = np.float32(gamma) * velocity + rate * residual(w, v, x)
    x = x + velocity

  def undo(x, w, v):
    nonlocal velocity
    x = x - velocity
    velocity = (velocity - rate * residual(w, v, x)) / np.float32(gamma)
    return x

  return _backward(layers, x, gamma, undo)


def kept_gradient(
  layers: Layers, x: np.ndarray, gamma: float
) -> tuple[np.ndarray, np.ndarray]:
  """The same with all activations kept, in the type of its arguments."""
  kept = []
  velocity = np.zeros_like(x)
  for w, v in zip(*layers, strict=True):
    kept.append(x)
    velocity = gamma * velocity + (1 - gamma) * residual(w, v, x)
    x = x + velocity
  return _backward(layers, x, gamma, lambda x, w, v: kept.pop())


def _backward(layers, x, gamma, undo):
  """The adjoint of all layers, from activations that `undo` gives."""
  x_bar = 2 * x / x.size
  velocity_bar = np.zeros_like(x)
  w_bars, v_bars = np.zeros_like(layers.w), np.zeros_like(layers.v)
  for i in reversed(range(len(layers.w))):
    w, v = layers.w[i], layers.v[i]
    x = undo(x, w, v)
    velocity_bar = velocity_bar + x_bar
    w_bars[i], v_bars[i], more = pull_back(w, v, x, (1 - gamma) * velocity_bar)
    x_bar = x_bar + more
    velocity_bar = gamma * velocity_bar
  return w_bars, v_bars
