"""What is derived by hand for a cell, from which `sweep` makes whole passes."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax

Parts = tuple[jax.Array, ...]  # of x W + b


class Equations(NamedTuple):
  """What is derived by hand for each cell.

  `params` is a NamedTuple with at least input_weights [D, G], bias [G] or None,
  input_gain [G] or None, and initial_carry. A carry is an array or a NamedTuple
  of arrays [B, H]; the first is the output of the cell.

  Attributes:
    sizes: params -> a carry of sizes H.
    step: (params, drive, carry, kept) -> (carry, gates), from drive = x W + b
      as a tuple of parts; kept multiplies the candidate, or is 1.
    derivatives: (params, gates, carry, kept) -> (factors, local), of many
      steps at once: what the recurrence of the adjoints needs, and what the
      gradients of the weights need.
    step_adjoint: (params, factors, carry_bar) -> (carry_bar, bars,
      states_bar): one step of that recurrence; states_bar are the adjoints of
      the new states in full.  These params have some fields transposed.
    weights_adjoint: (params, local, carry, bars) -> (drive_bars, gradients),
      of many steps at once; gradients is a dict of fields of params.
    gate_adjoints: (local, states_bar) -> the adjoints of all gates and states.
    parts: into how many the drive is split for a step: one for each gate, or
      one if the step takes it as a whole.
    transposed: which fields those are.
    alone: into how many blocks the way back of a sequence alone is divided.
  """

  sizes: Callable[..., Any]
  step: Callable[..., Any]
  derivatives: Callable[..., Any]
  step_adjoint: Callable[..., Any]
  weights_adjoint: Callable[..., Any]
  gate_adjoints: Callable[..., Any]
  parts: int = 1
  transposed: tuple[str, ...] = ("recurrent_weights",)
  alone: int = 4
