"""What a sweep keeps for its backward pass."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from revmom.cells.sequences import blocks
from revmom.cells.sequences.masks import Rates
from revmom.exact.pytree import Pytree, static

BLOCK_ROWS = 512  # steps times sequences in a block


class Options(NamedTuple):
  """What is known before a sweep begins."""

  rates: Rates
  reverse: bool
  recompute: bool

  def block_rows(self, arrays: jax.Array, alone: int = 1) -> int:
    """Rows of a block: a part of all [T, B] where memory is to be saved.

    A whole block of a short sequence would be all that it needs.  A sequence
    alone, B = 1, is divided into `alone` blocks.
    """
    steps, batch, _ = arrays.shape
    parts = 4 if self.recompute else alone if batch == 1 else 1
    if parts == 1:
      return BLOCK_ROWS
    return min(BLOCK_ROWS, max(BLOCK_ROWS // 4, steps * batch // parts))


class Residuals(Pytree):
  """What the backward pass needs to know of a sweep; time-major."""

  inputs: jax.Array  # [T, B, D]
  states: blocks.Collected  # carries [T, B, H] after each step, and its gates
  initial_carry: Any
  lengths: jax.Array | None
  key: jax.Array | None
  options: Options = static()
  learned_carry: bool = static(default=False)
  batch_major: bool = static(default=False)

  @property
  def carries(self) -> Any:
    """After each step, of arrays [T, B, H]."""
    return self.states.results()[0]

  @property
  def gates(self) -> Any:
    """Of each step, or None where they are computed again."""
    return self.states.results()[1]

  def before(self, times: jax.Array, carries: Any) -> Any:
    """The carries before the steps of a block, from those after them."""
    steps = len(self.inputs)
    if not steps:
      return carries
    reverse = self.options.reverse
    first, step = (-1, -1) if reverse else (0, 1)
    last = times[first] - step  # the step before the first of these

    def shifted(initial: jax.Array, all_: jax.Array, these: jax.Array) -> Any:
      start = jnp.where(
        (last < 0) | (last == steps),
        initial.astype(all_.dtype),
        lax.dynamic_index_in_dim(all_, last, keepdims=False),
      )
      parts = [start[None], these[:-1]]
      if reverse:
        parts = [these[1:], start[None]]
      return jnp.concatenate(parts)

    return jax.tree.map(shifted, self.initial_carry, self.carries, carries)
