"""A recurrent network, designed by hand, that adds binary numbers exactly.

It reads two numbers bit by bit, least significant first, x_t = (a_t, b_t), and
has three hidden units and one output, all of them hard thresholds:

    h_t = [x_t W_xh + h_{t-1} W_hh + b_h > 0],                          (1)
    y_t = [h_t W_hy + b_y > 0].                                         (2)

Every hidden unit counts s_t = a_t + b_t + carry, which is between 0 and 3, and
unit k fires if s_t >= k.  The carry is the second unit of the step before: a
sum of at least 2 carries.  The output is the parity of s_t, h1 - h2 + h3.

>>> add([1, 1, 0], [1, 0, 1]).tolist()  # 3 + 5 = 8
[0, 0, 0, 1]
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.typing import ArrayLike, DTypeLike

Bits = ArrayLike | Sequence[int]


class AdderWeights(NamedTuple):
  """Weights of equations (1) and (2)."""

  W_xh: np.ndarray  # [2, 3]
  W_hh: np.ndarray  # [3, 3]
  W_hy: np.ndarray  # [3]
  b_h: np.ndarray  # [3]
  b_y: np.ndarray  # []


# Sums of multiples of 1/2 between -3 and 3: exact in any float.
WEIGHTS = AdderWeights(
  # Both bits count in every unit,
  W_xh=np.array([[1, 1, 1], [1, 1, 1]]),
  # and so does the carry, unit 2 of the step before.
  W_hh=np.array([[0, 0, 0], [1, 1, 1], [0, 0, 0]]),
  # Unit k fires if the sum is at least k.
  b_h=np.array([-0.5, -1.5, -2.5]),
  # 0, 1, 1 - 1 and 1 - 1 + 1 for sums of 0 to 3.
  W_hy=np.array([1, -1, 1]),
  b_y=np.array(-0.5),
)


class Trace(NamedTuple):
  """What happens in every step; [..., T] and an axis of units."""

  inputs: jax.Array  # the two bits [..., T, 2]
  hidden: jax.Array  # whether the sum is at least 1, 2, 3 [..., T, 3]
  outputs: jax.Array  # bits of the sum [..., T]


def add(
  bits_a: Bits, bits_b: Bits, *, dtype: DTypeLike = jnp.float32
) -> jax.Array:
  """The sum of binary numbers.

  Args:
    bits_a, bits_b: 0 and 1 of any type, least significant first, [..., T];
      lengths may differ, and batches are broadcast.
    dtype: a float to compute in; the result does not depend on it.

  Returns:
    int32 [..., T + 1] for the longer T.

  Raises:
    ValueError: if something else than 0 or 1 goes in (unless it is traced), or
      the dtype is no float.
  """
  return explain(bits_a, bits_b, dtype=dtype).outputs


def explain(
  bits_a: Bits, bits_b: Bits, *, dtype: DTypeLike = jnp.float32
) -> Trace:
  """What the units do while two numbers are added; arguments as for `add`.

  >>> trace = explain([1, 1], [1, 1])  # 3 + 3 = 6
  >>> trace.hidden.tolist()  # sums of 2, 3 and 1
  [[1, 1, 0], [1, 1, 1], [1, 0, 0]]
  >>> trace.outputs.tolist()
  [0, 1, 1]
  """
  if not jnp.issubdtype(dtype, jnp.floating):
    raise ValueError(f"dtype is {jnp.dtype(dtype)}, but must be a float.")
  a, b = _checked("bits_a", bits_a), _checked("bits_b", bits_b)
  steps = 1 + max(a.shape[-1], b.shape[-1])
  bits = jnp.stack(jnp.broadcast_arrays(_padded(a, steps), _padded(b, steps)))
  weights = jax.tree.map(lambda array: jnp.asarray(array, dtype), WEIGHTS)

  def step(hidden: jax.Array, bits: jax.Array) -> tuple[jax.Array, tuple]:
    hidden, output = _step(weights, hidden, bits)
    return hidden, (hidden, output)

  xs = jnp.moveaxis(bits, (0, -1), (-1, 0))  # [T, ..., 2]
  start = jnp.zeros((*xs.shape[1:-1], 3), dtype)
  _, (hidden, outputs) = lax.scan(step, start, xs.astype(dtype))
  back = lambda array, time: jnp.moveaxis(array, 0, time).astype(jnp.int32)
  return Trace(jnp.moveaxis(bits, 0, -1), back(hidden, -2), back(outputs, -1))


def _step(
  weights: AdderWeights, hidden: jax.Array, bits: jax.Array
) -> tuple[jax.Array, jax.Array]:
  """Equations (1) and (2)."""
  threshold = lambda values: (values > 0).astype(values.dtype)
  hidden = threshold(bits @ weights.W_xh + hidden @ weights.W_hh + weights.b_h)
  return hidden, threshold(hidden @ weights.W_hy + weights.b_y)


def _checked(name: str, bits: Any) -> jax.Array:
  if not isinstance(bits, jax.core.Tracer):
    bits = np.asarray(bits)
    wrong = bits[(bits != 0) & (bits != 1)]
    if wrong.size:
      raise ValueError(f"{name} has {wrong[:5].tolist()}; bits are 0 or 1.")
  if bits.ndim == 0:
    raise ValueError(
      f"{name} is {bits}, but must be an array of bits [..., T]."
    )
  return jnp.asarray(bits).astype(jnp.int32)


def _padded(bits: jax.Array, steps: int) -> jax.Array:
  """With zeros where a number has no more bits."""
  missing = steps - bits.shape[-1]
  return jnp.pad(bits, [(0, 0)] * (bits.ndim - 1) + [(0, missing)])
