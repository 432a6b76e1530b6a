"""What is derived by hand for a cell, from which `sweep` makes whole passes."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax

from revmom.cells.sequences.affine import gained_product

Parts = tuple[jax.Array, ...]  # of x W + b


def hidden_size(params: Any) -> int:
  """H, of a cell whose recurrent weights R are [H, G]."""
  return params.recurrent_weights.shape[0]


class Steps(NamedTuple):
  """What is known of many steps when gradients are computed."""

  gates: Any
  carry: Any  # before each step
  kept: Any
  factors: Any


class Equations(NamedTuple):
  """What is derived by hand for each cell.

  `params` is a NamedTuple with at least input_weights [D, G], bias [G] or None,
  input_gain [G] or None, recurrent_weights [H, G'], recurrent_gain [G'] or
  None, and initial_carry.  A carry is an array or a NamedTuple of arrays
  [B, H]; the first is h, the output of the cell.

  Every cell sees h through the product h R, or norm(h R) gain.  That product
  and its adjoint are no equations of the cell: it gets the one, and returns the
  adjoint.

  Attributes:
    step: (params, drive, product, carry, kept) -> (carry, gates), from drive =
      x W + b as a tuple of parts and from the product; kept multiplies the
      candidate, or is 1.
    derivatives: (params, gates, carry, kept) -> factors, of many steps at once:
      what the recurrence of the adjoints needs.
    step_adjoint: (params, factors, carry_bar) -> (carry_bar, product_bar, bars,
      states_bar): one step of that recurrence.  The carry's adjoint lacks what
      comes back through the product, and has None for h if nothing else does;
      bars are what `weights_adjoint` needs; states_bar are the adjoints of the
      new states in full.  These params have some fields transposed.
    weights_adjoint: (params, steps, bars) -> (drive_bars, product_bars,
      gradients), from `Steps`; gradients is a dict of those fields of params
      that are neither in the drive nor in the product.
    gate_adjoints: (params, steps, states_bar) -> the adjoints of all gates and
      states.
    sizes: params -> a carry of sizes H.
    parts: into how many the drive is split for a step: one for each gate, or
      one if the step takes it as a whole.
    transposed: which fields those are.
    alone: into how many blocks the way back of a sequence alone is divided.
  """

  step: Callable[..., Any]
  derivatives: Callable[..., Any]
  step_adjoint: Callable[..., Any]
  weights_adjoint: Callable[..., Any]
  gate_adjoints: Callable[..., Any]
  sizes: Callable[[Any], Any] = hidden_size
  parts: int = 1
  transposed: tuple[str, ...] = ("recurrent_weights",)
  alone: int = 4

  def advance(
    self, params: Any, drive: Parts, carry: Any, kept: Any
  ) -> tuple[Any, Any]:
    """`step` with the product of the carry's h."""
    product = gained_product(
      jax.tree.leaves(carry)[0], params.recurrent_weights, params.recurrent_gain
    )
    return self.step(params, drive, product, carry, kept)
