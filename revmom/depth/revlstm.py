r"""Reversible LSTM (MacKay, Vicol, Ba & Grosse 2018, section 3).

.. math::
  f_1, i_1, p_1, o_1 &= \sigma(x_t W_1 + h_2 R_1 + b_1), \qquad
  g_1 = \tanh(x_t W_1^g + h_2 R_1^g + b_1^g), \\
  c_1' &= f_1 \odot c_1 + i_1 \odot g_1, \qquad
  h_1' = p_1 \odot h_1 + o_1 \odot \tanh(c_1'),

and then c_2 and h_2 likewise from h_1'.  The hidden state has a gate p of its
own, because it could not be undone if it were computed anew in every step.
Gates f and p are limited to [2^-bits, 1] (their section 4).  The carry is
(c_1, h_1, c_2, h_2).
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
  """Parameters, uniform within 1 / sqrt(hidden_size); columns f, i, g, p, o.

  The biases of p are -2, those of other gates 0: a hidden state that keeps much
  of itself grows without bound in a network that has not learned yet.

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
  ((100, 2, 6), [(2, 3), (2, 3), (2, 3), (2, 3)])
  """
  size = half_of(hidden_size, input_size)
  first, second = jax.random.split(key)

  def of(key: jax.Array) -> HalfParams:
    half = init_half(key, input_size, size, 5, False, dtype)
    keep = slice(3 * size, 4 * size)
    return half._replace(bias=half.bias.at[keep].set(-2))

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

  def half(own: HalfParams, cell: int, other: int):
    size = own.recurrent_weights.shape[0]
    memory, hidden = (
      jax.tree.map(lambda a, of=of: a[..., of], own)
      for of in (slice(0, 3 * size), slice(3 * size, 5 * size))
    )

    def drive(weights, layer, carry):
      driven = inputs(layer) @ weights.input_weights + weights.bias
      return driven + carry[other] @ weights.recurrent_weights

    def change_memory(layer, carry):
      forget, write, new = jnp.split(drive(memory, layer, carry), 3, -1)
      written = jax.nn.sigmoid(write) * jnp.tanh(new)
      return gate.limit(jax.nn.sigmoid(forget)), written

    def change_hidden(layer, carry):
      keep, read = jnp.split(jax.nn.sigmoid(drive(hidden, layer, carry)), 2, -1)
      return gate.limit(keep), read * jnp.tanh(carry[cell])

    return held(is_there, change_memory), held(is_there, change_hidden)

  halves = *half(params[0], 0, 3), *half(params[1], 2, 1)
  return Updates(halves, (gate,) * 4)


cell = Recurrence("revlstm", updates, hidden=(1, 3), arrays=4)
apply = cell.apply
initial_carry = cell.initial_carry
