"""The integers that a step changes, one array for each of its roles."""

from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import DTypeLike

from revmom.exact import bit_buffer, fixed_point, gate_buffer
from revmom.exact.bit_buffer import BitBuffer
from revmom.exact.capacities import Schedule
from revmom.exact.gate_buffer import GateBuffer

_TANGENT = "_tangent"
# Bits of an integer that the largest tangent of a run leaves unused.
_UNUSED = 3


class Role(NamedTuple):
  """A quantity z of a step, and the grid that it lives on."""

  name: str
  bits: int  # the resolution is 2^-bits
  # The smallest factor that its buffer has room for, if it is not known; None
  # where nothing is multiplied.
  floor: float | None = None
  # Whether increments are added below the resolution, into the remainder; it
  # needs a factor for that, which may be 1.
  fine: bool = False
  nonnegative: bool = False  # fine, and what is positive never rounds to zero
  integer: np.dtype = np.dtype("int32")
  # Where each element has a factor of its own, the smallest of them, in units
  # of 1 / `gate_buffer.ONE`: increments are `Gated` then.
  least_gate: int | None = None

  @property
  def largest(self) -> float:
    """The largest magnitude on the grid."""
    return fixed_point.largest(self.bits, self.integer)


class Gated(NamedTuple):
  """What changes a role whose elements have factors of their own."""

  gate: jax.Array  # rho, floats
  increment: jax.Array  # phi


class Leaf(NamedTuple):
  """The integers of one array, or of some that are packed."""

  integers: dict[str, jax.Array]  # by the name of the role
  # Of the roles that are multiplied.
  buffers: Mapping[str, BitBuffer | GateBuffer]

  def put(
    self,
    name: str,
    integers: jax.Array,
    buffer: BitBuffer | GateBuffer | None,
  ) -> "Leaf":
    """The leaf with other integers of a role."""
    own = {} if buffer is None else {name: buffer}
    return Leaf({**self.integers, name: integers}, {**self.buffers, **own})

  def with_words(self, words: dict[str, jax.Array | None]) -> "Leaf":
    """The leaf with other spilled words."""
    return self._replace(
      buffers={
        name: buffer._replace(words=words[name])
        for name, buffer in self.buffers.items()
      }
    )

  def words(self) -> dict[str, jax.Array | None]:
    """The words that each role spilled."""
    return {name: buffer.words for name, buffer in self.buffers.items()}

  def bare(self) -> "Leaf":
    """The leaf without words."""
    return self.with_words(dict.fromkeys(self.buffers))

  def with_rows(self, rows: dict[str, int]) -> "Leaf":
    """The leaf with room for so many words in each role, all empty."""
    return self.with_words(
      {
        name: bit_buffer.empty_words(self.integers[name], rows[name])
        for name in self.buffers
      }
    )

  @property
  def overflowed(self) -> jax.Array:
    """Where any role has left its grid."""
    flags = [fixed_point.has_overflowed(z) for z in self.integers.values()]
    outside = flags[0]
    for flag in flags[1:]:
      outside = outside | flag
    return outside


def tangent_of(name: str) -> str:
  """The role that holds the tangent of another one."""
  return name + _TANGENT


def is_tangent(name: str) -> bool:
  """Whether a role holds the tangent of another one."""
  return name.endswith(_TANGENT)


def base(name: str) -> str:
  """The role that a tangent is of; any other role itself."""
  return name.removesuffix(_TANGENT)


def exact(names: Iterable[str]) -> list[str]:
  """Those that a reversal restores bit for bit: all but tangents."""
  return sorted(name for name in names if not is_tangent(name))


def scale_for(role: Role, peak: jax.Array) -> jax.Array:
  """A power of two that makes the most of a role's integers.

  Args:
    role: any.
    peak: a float [], the largest magnitude that it will hold; 1 is returned
      where it is zero or not finite.
  """
  known = jnp.isfinite(peak) & (peak > 0)
  _, exponent = jnp.frexp(jnp.where(known, peak, 1))
  most = jnp.finfo(peak.dtype).maxexp - 2
  room = jnp.iinfo(role.integer).bits - _UNUSED - role.bits
  return jnp.ldexp(jnp.ones_like(peak), jnp.clip(room - exponent, -most, most))


def value(
  role: Role, leaf: Leaf, capacity: Any, dtype: DTypeLike, scale: Any = 1
) -> jax.Array:
  """A role as floats.

  Args:
    role: any.
    leaf: its integers.
    capacity: of its buffer, if the role is fine.
    dtype: of the floats.
    scale: a power of two that the integers are multiplied with.
  """
  integers = leaf.integers[role.name]
  if not role.fine:
    held = fixed_point.from_fixed(integers, role.bits, dtype)
  else:
    number = leaf.buffers[role.name].number
    parts = bit_buffer.remainder(integers, number, capacity)
    held = fixed_point.from_fine(integers, parts, capacity, role.bits, dtype)
  return held / scale


def _rounded(role: Role, increment: jax.Array, now: Schedule | None) -> tuple:
  """The increment as integers, and their parts if the role is fine."""
  if not role.fine:
    return fixed_point.to_increment(increment, role.bits, role.integer), 0
  assert now is not None
  return fixed_point.to_fine(
    increment, role.bits, now.after, positive=role.nonnegative
  )


def gates_of(role: Role, change: Gated) -> jax.Array:
  """The factors of the elements, as integers."""
  assert role.least_gate is not None
  return gate_buffer.to_gates(change.gate, role.least_gate)


def advance(
  role: Role, leaf: Leaf, increment: Any, now: Schedule | None
) -> Leaf:
  """z' = rho z + increment; `now` is None where nothing is multiplied."""
  name, integers = role.name, leaf.integers[role.name]
  if isinstance(increment, Gated):
    return leaf.put(name, *_gated(role, leaf, increment, back=False))
  whole, parts = _rounded(role, increment, now)
  if now is None:
    return leaf.put(name, fixed_point.add(integers, whole), None)
  buffer: Any = leaf.buffers[name]
  return leaf.put(
    name,
    *bit_buffer.multiply_add(integers, buffer, now, whole, parts),
  )


def retreat(
  role: Role, leaf: Leaf, increment: Any, now: Schedule | None
) -> Leaf:
  """Undoes `advance`."""
  name, integers = role.name, leaf.integers[role.name]
  if isinstance(increment, Gated):
    return leaf.put(name, *_gated(role, leaf, increment, back=True))
  whole, parts = _rounded(role, increment, now)
  if now is None:
    return leaf.put(name, fixed_point.subtract(integers, whole), None)
  buffer: Any = leaf.buffers[name]
  integers, number = bit_buffer.subtract_divide(
    integers, buffer, now, whole, parts
  )
  return leaf.put(name, integers, buffer._replace(number=number))


def _gated(role: Role, leaf: Leaf, change: Gated, back: bool) -> tuple:
  """The integers and the buffer after, or before, each has its own factor."""
  buffer: Any = leaf.buffers[role.name]
  whole, _ = _rounded(role, change.increment, None)
  move = gate_buffer.subtract_divide if back else gate_buffer.multiply_add
  gates = gates_of(role, change)
  return move(leaf.integers[role.name], buffer, gates, whole)
