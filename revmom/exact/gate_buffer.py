"""Multiplication by a gate of each element's own that loses nothing.

Forget gates depend on data, so that nobody knows ahead how many bits an
element has forgotten.  They are rounded to n / 1024 here, as MacKay, Vicol, Ba
& Grosse (2018, section 4) do, and what a multiplication takes from an integer h
goes to a number S of the element's own, in mixed radix (Maclaurin, Duvenaud &
Adams 2015, Algorithm 3): a digit in base n comes out of S, the low digit of the
product, in base 1024, goes in,

    S = B n + d,    h' = floor((h n + d) / 1024),
    S' = 1024 B + (h n + d) mod 1024.                                   (1)

The integer is the product, rounded: the ten bits behind its point are the low
digit of S, where MacKay et al. have d / 1024 of noise in an integer's own low
digits.  It is undone by the two divisions of h' 1024 + S' mod 1024 by n and of
S' by 1024.

S grows by log2(1024 / n) bits a step, and what does not fit is moved to a
stack, a byte at a time.  As in entropy coders whose lanes share a stream
(Giesen 2014, "Interleaved entropy coders"), all elements have one stack: the
bytes of a step lie in the order of the elements, and going back, each element
sees by its own number that it is due a byte.  For that the digits above the low
one, C = S / 1024, stay in [2^14, 2^22) between steps; a byte goes before the
step when and only when C would otherwise leave that interval, which is at
C >= n 2^12; and an element from which a byte was moved is below 2^14 then,
where no other one is.
Shapes are static: only the number of bytes depends on data.
"""

import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike, DTypeLike

from revmom.exact import fixed_point

GATE_BITS = 10
ONE = 2**GATE_BITS
_LEAST = 14  # C is at least 2^14 between steps, and at most 2^22
_WORD = 8
MOST_BITS = _WORD  # that a step may forget: a byte makes room for one step


class GateBuffer(NamedTuple):
  """What multiplications by gates took out of an array of integers."""

  number: jax.Array  # S, uint32, like the integers
  words: jax.Array | None  # the stack, uint8 [room]; None where it is elsewhere
  used: jax.Array  # int32 [], bytes of it; more than there are if it is full


def init(integers: jax.Array, room: int) -> GateBuffer:
  """An empty buffer for an array of integers, with room for so many bytes."""
  number = jnp.zeros_like(integers, jnp.uint32) + jnp.uint32(
    2 ** (_LEAST + GATE_BITS)
  )
  # Not constants: under `vmap` they belong to each integer of the batch.
  used = jnp.sum(jnp.zeros_like(number, jnp.int32), dtype=jnp.int32)
  words = jnp.broadcast_to(used.astype(jnp.uint8), room)
  return GateBuffer(number, words, used)


def is_empty(buffer: GateBuffer) -> jax.Array:
  """Whether nothing is left in a buffer, as before a run."""
  start = 2 ** (_LEAST + GATE_BITS)
  return jnp.all(buffer.number == start) & (buffer.used == 0)


def is_full(buffer: GateBuffer) -> jax.Array:
  """Whether bytes were lost because the stack had no room for them."""
  assert buffer.words is not None
  return buffer.used > buffer.words.size


def bits_in(buffer: GateBuffer) -> jax.Array:
  """What was forgotten so far, the sum of log2(1024 / n), as a float32 [].

  NaN where what is no gate has left a number that no gates leave.

  >>> buffer = init(jnp.zeros(4, jnp.int32), 100)
  >>> gates = jnp.full(4, 512)
  >>> for _ in range(30):
  ...   _, buffer = multiply_add(jnp.zeros(4, jnp.int32), buffer, gates, 0)
  >>> print(f"{bits_in(buffer):.1f}")
  120.0
  """
  heads = jnp.log2(buffer.number.astype(jnp.float32)) - (_LEAST + GATE_BITS)
  heads = jnp.where(heads < 0, jnp.nan, heads)
  return jnp.float32(_WORD) * buffer.used.astype(jnp.float32) + jnp.sum(heads)


def least_gate(bits: float) -> int:
  """The smallest n of a gate that forgets no more than so many bits.

  >>> least_gate(3), least_gate(0.5)
  (128, 724)
  """
  return round(ONE * 2.0**-bits)


def room_needed(elements: int, steps: int, bits: float) -> int:
  """Bytes that suffice where gates forget so many bits a step, on average.

  >>> round(room_needed(100, 1000, 3) / (100 * 1000 * 3 / 8), 5)
  1.00013
  """
  # Beside 1 / gate, a step grows C by 1 / C of it at most, and one from which
  # a byte was moved before by 1 / (16 n).
  least = least_gate(min(bits, MOST_BITS))
  bits = max(bits, math.log2(ONE / least)) + 2.0**-_LEAST * 1.5
  word = _WORD - 1.5 * 2.0 ** (GATE_BITS - _LEAST) / least
  return math.ceil(elements * steps * bits / word)


def to_gates(values: jax.Array, least: int) -> jax.Array:
  """Rounds gates to n / 1024: int32, of the same shape.

  0, which is no gate, stands for what is not a number, above one or below
  `least`.

  >>> to_gates(jnp.array([0.25, 1.0, 1.1, 0.1, jnp.nan]), 128)
  Array([ 256, 1024,    0,    0,    0], dtype=int32)
  """
  scaled = jnp.round(values * jnp.asarray(float(ONE), values.dtype))
  inside = (scaled >= least) & (scaled <= ONE)
  return jnp.where(inside, scaled, 0).astype(jnp.int32)


def from_gates(gates: jax.Array, dtype: DTypeLike) -> jax.Array:
  """n / 1024; NaN for what is no gate.

  >>> from_gates(jnp.array([256, 0]), jnp.float32)
  Array([0.25,  nan], dtype=float32)
  """
  return jnp.where(gates > 0, gates.astype(dtype) / ONE, jnp.nan)


def multiply_add(
  integers: jax.Array,
  buffer: GateBuffer,
  gates: jax.Array,
  increments: ArrayLike,
) -> tuple[jax.Array, GateBuffer]:
  """i <- floor(i n / 1024) + j by equation (1), each element with its own n.

  Args:
    integers: any shape, int32 or int64; `overflow` stays what it is.
    buffer: of the same shape; what its stack has no room for is lost, and then
      `is_full` says so for good.
    gates: n, int32 of the same shape, from `to_gates`; where it is 0 the
      result is `overflow`.
    increments: j, of the shape and type of the integers.
  """
  number, words, used = buffer
  assert words is not None
  n = jnp.maximum(gates, 1).astype(jnp.uint32)
  high, low = number >> GATE_BITS, number & (ONE - 1)
  spill = high >= n << (_LEAST + _WORD - GATE_BITS)
  places, count = _places(spill)
  # Beyond the end there is no place, and nothing is written.
  places = jnp.where(spill, used + places, words.size)
  words = words.at[places].set(high.astype(words.dtype), mode="drop")
  used = jnp.minimum(used + count, words.size + 1)
  high = jnp.where(spill, high >> _WORD, high)
  number = (high << GATE_BITS) | low
  rest = number // n
  digit = (number - rest * n).astype(integers.dtype)
  factor = n.astype(integers.dtype)
  product = (integers & (ONE - 1)) * factor + digit
  number = (rest << GATE_BITS) | (product & (ONE - 1)).astype(jnp.uint32)
  product = (integers >> GATE_BITS) * factor + (product >> GATE_BITS)
  total = fixed_point.add(product, jnp.asarray(increments, integers.dtype))
  lost = fixed_point.has_overflowed(integers) | (gates < 1)
  beyond = jnp.asarray(fixed_point.overflow(integers.dtype), integers.dtype)
  return jnp.where(lost, beyond, total), GateBuffer(number, words, used)


def subtract_divide(
  integers: jax.Array,
  buffer: GateBuffer,
  gates: jax.Array,
  increments: ArrayLike,
) -> tuple[jax.Array, GateBuffer]:
  """Undoes `multiply_add`; of the stack it only reads.

  `overflow` stays what it is.
  """
  number, words, used = buffer
  assert words is not None
  n = jnp.maximum(gates, 1)
  factor = n.astype(integers.dtype)
  increments = jnp.asarray(increments, integers.dtype)
  product = fixed_point.subtract(integers, increments)
  quotient = product // factor
  low = ((product - quotient * factor) << GATE_BITS).astype(jnp.int32)
  low = low | (number & (ONE - 1)).astype(jnp.int32)
  part = low // n
  restored = (quotient << GATE_BITS) + part.astype(integers.dtype)
  digit = (low - part * n).astype(jnp.uint32)
  number = (number >> GATE_BITS) * n.astype(jnp.uint32) + digit
  high, low = number >> GATE_BITS, number & (ONE - 1)
  spilled = high < 2**_LEAST
  places, count = _places(spilled)
  used = used - count
  word = words.at[used + places].get(mode="clip").astype(jnp.uint32)
  high = jnp.where(spilled, (high << _WORD) | word, high)
  lost = fixed_point.has_overflowed(integers) | (gates < 1)
  beyond = jnp.asarray(fixed_point.overflow(integers.dtype), integers.dtype)
  restored = jnp.where(lost, beyond, restored)
  return restored, GateBuffer((high << GATE_BITS) | low, words, used)


def _places(chosen: jax.Array) -> tuple[jax.Array, jax.Array]:
  """How many are chosen before each element, and in all."""
  ranks = jnp.cumsum(chosen.reshape(-1), dtype=jnp.int32)
  count = ranks[-1] if ranks.size else jnp.zeros((), jnp.int32)
  return ranks.reshape(chosen.shape) - 1, count
