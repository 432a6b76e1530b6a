"""What is derived by hand for a cell on a grid, at one position."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax


class Values(NamedTuple):
  """What a cell computes."""

  h: jax.Array  # the hidden state [..., B, H], its output
  c: jax.Array | None = None  # the memory [..., B, H], if the cell has one
  gates: Any = None  # what else its adjoint needs, a pytree of [..., B, H]


class Seen(NamedTuple):
  """What the adjoint of a cell reads of the forward pass."""

  state: jax.Array  # the memory, or the hidden state of a cell without one
  gates: Any
  previous: tuple[jax.Array, ...] | None  # the neighbours' memories


class Adjoint(NamedTuple):
  """What the adjoint of a cell computes."""

  a: jax.Array  # of the pre-activations [..., B, G H]
  previous: tuple[jax.Array, ...] | None  # of the neighbours' memories
  adjoints: Any  # what users may want to see


class Equations(NamedTuple):
  """A cell with some parameters, elementwise.

  Attributes:
    forward: (a, previous) -> `Values`, from the pre-activations [..., B, G H]
      and the memories of the n neighbours.
    adjoint: (h_bar, c_bar, seen) -> `Adjoint`.  h_bar and c_bar are what
      reaches the hidden state and the memory from elsewhere; c_bar is None for
      cells without a memory.
  """

  forward: Callable[[jax.Array, Any], Values]
  adjoint: Callable[[jax.Array, Any, Seen], Adjoint]
