"""The integers of one parameter array, and what a step does to one role."""

from typing import NamedTuple

import jax

from revmom.exact import bit_buffer, fixed_point
from revmom.exact.bit_buffer import BitBuffer

PARAMS, AVERAGE = "params", "average"
_TANGENT = "_tangent"


def tangent_of(role: str) -> str:
  """The role that holds the tangent of another one."""
  return role + _TANGENT


def is_tangent(role: str) -> bool:
  """Whether a role holds the tangent of another one."""
  return role.endswith(_TANGENT)


def base(role: str) -> str:
  """The role that a tangent is of; any other role itself."""
  return role.removesuffix(_TANGENT)


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
  return _value(
    equations, role, leaf, now[role].after if role in now else 0, dtype
  )


def value_before(equations, role, leaf: Leaf, now, dtype) -> jax.Array:
  """A role as floats, before the step that `now` belongs to."""
  return _value(
    equations, role, leaf, now[role].full if role in now else 0, dtype
  )


def _value(equations, role, leaf: Leaf, capacity, dtype) -> jax.Array:
  bits, integers = dict(equations.fraction_bits)[role], leaf.of(role)
  if role not in equations.fine:
    held = fixed_point.from_fixed(integers, bits, dtype)
  else:
    parts = bit_buffer.remainder(integers, leaf.buffers[role].number, capacity)
    held = fixed_point.from_fine(integers, parts, capacity, bits, dtype)
  return held / equations.scale(role)


def _round(equations, role, increment, now) -> tuple:
  """The increment as integers, and their parts if its role is fine."""
  bits = dict(equations.fraction_bits)[role]
  increment = increment * equations.scale(role)
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
