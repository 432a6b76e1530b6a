"""The integers of one parameter array, and what a step does to one role."""

from typing import NamedTuple

import jax

from revmom.exact import bit_buffer, fixed_point
from revmom.exact.bit_buffer import BitBuffer

PARAMS, AVERAGE = "params", "average"


class Leaf(NamedTuple):
  """The integers of one parameter array, or of some that are packed."""

  params: jax.Array
  slots: dict[str, jax.Array]
  buffers: dict[str, BitBuffer]  # of the roles that are multiplied

  def of(self, role: str) -> jax.Array:
    """The integers of a role."""
    return self.params if role == PARAMS else self.slots[role]

  def put(
    self, role: str, integers: jax.Array, buffer: BitBuffer | None
  ) -> "Leaf":
    """The leaf with other integers of a role."""
    buffers = self.buffers if buffer is None else {**self.buffers, role: buffer}
    if role == PARAMS:
      return Leaf(integers, self.slots, buffers)
    return Leaf(self.params, {**self.slots, role: integers}, buffers)


def with_words(leaves: list[Leaf], rows: list[dict[str, int]]) -> list[Leaf]:
  """The leaves with empty words; rows of each leaf, see `Spills.rows`."""
  renewed = []
  for leaf, own in zip(leaves, rows, strict=True):
    buffers = {
      role: buffer._replace(
        words=bit_buffer.empty_words(buffer.number, own[role])
      )
      for role, buffer in leaf.buffers.items()
    }
    renewed.append(leaf._replace(buffers=buffers))
  return renewed


def value_after(equations, role, leaf: Leaf, now, dtype) -> jax.Array:
  """A role as floats, after the step that `now` belongs to."""
  bits = dict(equations.fraction_bits)[role]
  if role not in equations.fine:
    return fixed_point.from_fixed(leaf.of(role), bits, dtype)
  return _fine_value(leaf, role, now[role].after, bits, dtype)


def value_before(equations, role, leaf: Leaf, now, dtype) -> jax.Array:
  """A role as floats, before the step that `now` belongs to."""
  bits = dict(equations.fraction_bits)[role]
  if role not in equations.fine:
    return fixed_point.from_fixed(leaf.of(role), bits, dtype)
  return _fine_value(leaf, role, now[role].full, bits, dtype)


def _fine_value(leaf: Leaf, role, capacity, bits, dtype) -> jax.Array:
  integers, number = leaf.of(role), leaf.buffers[role].number
  parts = bit_buffer.remainder(integers, number, capacity)
  return fixed_point.from_fine(integers, parts, capacity, bits, dtype)


def _round(equations, role, increment, now) -> tuple:
  """The increment as integers, and their parts if its role is fine."""
  bits = dict(equations.fraction_bits)[role]
  if role not in equations.fine:
    return fixed_point.to_increment(increment, bits, equations.integer), 0
  return fixed_point.to_fine(
    increment,
    bits,
    now[role].after,
    positive=role in equations.nonnegative,
  )


def advance(equations, role, leaf: Leaf, increment, now) -> Leaf:
  """z' = rho z + phi for one role."""
  increment, parts = _round(equations, role, increment, now)
  if role not in now:
    return leaf.put(role, fixed_point.add(leaf.of(role), increment), None)
  integers, buffer = bit_buffer.multiply_add(
    leaf.of(role), leaf.buffers[role], now[role], increment, parts
  )
  return leaf.put(role, integers, buffer)


def retreat(equations, role, leaf: Leaf, increment, now) -> Leaf:
  """Undoes `advance`."""
  increment, parts = _round(equations, role, increment, now)
  if role not in now:
    return leaf.put(role, fixed_point.subtract(leaf.of(role), increment), None)
  buffer = leaf.buffers[role]
  integers, number = bit_buffer.subtract_divide(
    leaf.of(role), buffer, now[role], increment, parts
  )
  return leaf.put(role, integers, buffer._replace(number=number))
