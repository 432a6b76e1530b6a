"""Factors of elements that a layer computes from data."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from revmom.exact import gate_buffer
from revmom.steps.leaf import Leaf, Role


class Gate(NamedTuple):
  """In place of a decay: each element has a factor of its own, from data.

  The function of such an array gives two arrays, (gate, increment).  A gate is
  rounded to a multiple of 2^-10, and differentiated as if it were not; it must
  lie in [2^-bits, 1], as that of `limit` does.  Where one does not, the value
  becomes NaN.

  Attributes:
    bits: that a layer may forget of an element, in (0, 8].
    budget: bits a layer and element, on average over all, that there is memory
      for.  None is `bits`, which always suffices.  Where it does not, results
      are NaN: see `revmom.depth.bits_kept`.

  >>> Gate(bits=3).limit(jnp.array([0.0, 0.5, 1.0]))
  Array([0.125 , 0.5625, 1.    ], dtype=float32)
  """

  bits: float = 3.0
  budget: float | None = None

  def limit(self, gate: jax.Array) -> jax.Array:
    """A gate in [0, 1] as one in [2^-bits, 1] (MacKay et al. 2018, section 4).

    z = 2^-bits + (1 - 2^-bits) gate.
    """
    floor = 2.0**-self.bits
    return floor + (1 - floor) * gate


def least_gate(decay: Any) -> int | None:
  """The smallest factor, as an integer; None for what is no gate.

  Raises:
    ValueError: bits or the budget are out of range.
  """
  if not isinstance(decay, Gate):
    return None
  if not 0 < decay.bits <= gate_buffer.MOST_BITS:
    raise ValueError(
      f"{decay}: a layer can forget more than 0 and up to "
      f"{gate_buffer.MOST_BITS} bits of an element."
    )
  if decay.budget is not None and not 0 < decay.budget <= decay.bits:
    raise ValueError(
      f"{decay}: give a budget above 0 and up to bits={decay.bits}, which "
      "always suffice, or None."
    )
  return gate_buffer.least_gate(decay.bits)


def rooms_of(decays: Any, roles: tuple[Role, ...], size: int, depth: int):
  """The bytes of the stack of each role that has gates.

  Raises:
    ValueError: they are too many to be counted.
  """
  rooms = {}
  for role, decay in zip(roles, decays, strict=True):
    if isinstance(decay, Gate):
      bits = decay.bits if decay.budget is None else decay.budget
      room = gate_buffer.room_needed(size, depth, bits)
      if room >= 2**31 - 1:
        raise ValueError(
          f"array {role.name[1:]} would need {room:,} bytes for what its gates "
          f"forget in {depth} layers, but a stack holds 2^31; use fewer "
          "layers or elements at once, or fewer bits."
        )
      rooms[role.name] = max(1, room)
  return rooms


def are_full(leaf: Leaf) -> jax.Array:
  """Whether a stack had too little room."""
  full = [gate_buffer.is_full(buffer) for buffer in _gated(leaf).values()]
  return jnp.any(jnp.stack([jnp.zeros((), bool), *full]))


def height(leaf: Leaf) -> jax.Array:
  """How many bytes are on all stacks, an int32 []."""
  used = [buffer.used for buffer in _gated(leaf).values()]
  return sum(used, jnp.zeros((), jnp.int32))


def bits_kept_in(leaf: Leaf) -> dict[str, jax.Array]:
  """Of each role with gates: those on its stack and those beside it."""
  return {
    name: gate_buffer.bits_in(buffer) for name, buffer in _gated(leaf).items()
  }


def _gated(leaf: Leaf) -> dict[str, gate_buffer.GateBuffer]:
  return {
    name: buffer
    for name, buffer in leaf.buffers.items()
    if isinstance(buffer, gate_buffer.GateBuffer)
  }
