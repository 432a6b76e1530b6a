r"""Reversible GRU (MacKay, Vicol, Ba & Grosse 2018, section 3).

.. math::
  z_1, r_1 &= \sigma(x_t W_1 + h_2 R_1 + b_1), \qquad
  g_1 = \tanh(x_t W_1^g + (r_1 \odot h_2) U_1 + b_1^g), \\
  h_1' &= z_1 \odot h_1 + (1 - z_1) \odot g_1,

and then h_2 likewise from h_1'.  Gates z are limited to [2^-bits, 1] (their
section 4).  The carry is (h_1, h_2).
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from revmom.depth.gates import Gate
from revmom.depth.layer import Updates
from revmom.depth.recurrence import (
  HalfParams,
  Halves,
  Recurrence,
  half_of,
  held,
  init_half,
)


def init(
  key: jax.Array,
  input_size: int,
  hidden_size: int,
  *,
  dtype: jax.typing.DTypeLike = jnp.float32,
) -> Halves:
  """Parameters, uniform within 1 / sqrt(hidden_size); columns are z, r, g.

  Args:
    key: of the random weights.
    input_size: D.
    hidden_size: H, of both halves together.
    dtype: of the parameters.

  Raises:
    ValueError: a size is no positive integer, or H is odd.

  >>> params = init(jax.random.key(0), 3, 6)
  >>> outputs, carry = apply(params, jnp.ones((100, 2, 3)))
  >>> outputs.shape, [half.shape for half in carry]
  ((100, 2, 6), [(2, 3), (2, 3)])
  """
  size = half_of(hidden_size, input_size)
  first, second = jax.random.split(key)
  of = lambda key: init_half(key, input_size, size, 3, True, dtype)
  return of(first), of(second)


def updates(
  params: Halves,
  gate: Gate | None = None,
  inputs: Callable[[Any], jax.Array] = lambda layer: layer,
  is_there: Callable[[Any], jax.Array] | None = None,
) -> Updates:
  """The equations of a step, for `reversible_scan`.

  Args:
    params: of `init`.
    gate: how many bits gates forget at most, `Gate()` by default.
    inputs: what is scanned, of one step -> x_t [B, D].
    is_there: what is scanned -> bool [B], false where a sequence has ended.
  """
  gate = Gate() if gate is None else gate

  def half(own: HalfParams, other: int):
    assert own.candidate_weights is not None
    candidate_weights = own.candidate_weights

    def change(layer, carry):
      seen = carry[other]
      size = seen.shape[-1]
      driven = inputs(layer) @ own.input_weights + own.bias
      gates = driven[:, : 2 * size] + seen @ own.recurrent_weights
      keep, reset = jnp.split(jax.nn.sigmoid(gates), 2, -1)
      candidate = jnp.tanh(
        driven[:, 2 * size :] + (reset * seen) @ candidate_weights
      )
      keep = gate.limit(keep)
      return keep, (1 - keep) * candidate

    return held(is_there, change)

  return Updates((half(params[0], 1), half(params[1], 0)), (gate, gate))


cell = Recurrence("revgru", updates, hidden=(0, 1), arrays=2)
apply = cell.apply
initial_carry = cell.initial_carry
