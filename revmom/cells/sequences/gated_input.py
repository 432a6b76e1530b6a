"""A recurrent network whose gates mix the state, and the inputs of its update.

    G, F = sigmoid(x_t W + h_{t-1} U + b),                              (1)
    R = tanh(F (h_{t-1} U_R + b'_R) + (1 - F) (x_t W_R + b_R)),         (2)
    h_t = G h_{t-1} + (1 - G) R.                                        (3)

It is the update-gate network with a second gate F, which chooses between what
the state and what the input say.  Biases that are subtracted elsewhere are
added here.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from revmom.cells.sequences.affine import (
  Normalised,
  gain_adjoint,
  gained_product,
  normalised_product,
  product_adjoint,
  sigmoid,
  total,
  weights_adjoint,
)
from revmom.cells.sequences.cell import Cell, check_sizes, uniform
from revmom.cells.sequences.equations import Equations, Parts


class GatedInputParams(NamedTuple):
  """Parameters; columns are in the order G, F, R, and what is off is None."""

  input_weights: jax.Array  # W [D, 3H]
  recurrent_weights: jax.Array  # U [H, 3H]
  bias: jax.Array | None  # b [3H]
  recurrent_bias: jax.Array | None  # b'_R [H]
  input_gain: jax.Array | None  # of layer normalisation [3H]
  recurrent_gain: jax.Array | None  # of layer normalisation [3H]
  initial_carry: jax.Array | None  # [H], if it is learned


class GatedInputAdjoints(NamedTuple):
  """Adjoints of every step, arrays [T, B, H]."""

  hidden: jax.Array  # dL/dh_t
  update_gate: jax.Array  # dL/dG
  input_gate: jax.Array  # dL/dF
  candidate: jax.Array  # dL/dR


class _Gates(NamedTuple):
  update: jax.Array  # G
  mixing: jax.Array  # F
  candidate: jax.Array  # R
  difference: jax.Array  # of what F mixes: the state's part minus the input's


class _Factors(NamedTuple):
  """Of the adjoint of the new state."""

  update: jax.Array  # of what goes into G
  mixing: jax.Array  # of what goes into F
  candidate: jax.Array  # of what goes into R
  gates: _Gates
  product: Normalised | None  # norm(h U)


class _Local(NamedTuple):
  kept: Any
  hidden: jax.Array  # h_{t-1}
  factors: _Factors


class _Bars(NamedTuple):
  hidden: jax.Array  # of h_t
  product: jax.Array | None  # of h U, if it is normalised


def init(
  key: jax.Array,
  input_size: int,
  hidden_size: int,
  *,
  bias: bool = True,
  update_bias: float = 1.0,
  layer_norm: bool = False,
  learned_carry: bool = False,
  dtype: jax.typing.DTypeLike = jnp.float32,
) -> GatedInputParams:
  """Parameters, uniform within 1 / sqrt(hidden_size).

  Args:
    key: of the random weights.
    input_size, hidden_size: D and H.
    bias: whether there are any.
    update_bias: of G at first, so that the state is kept; without a bias it
      does nothing.
    layer_norm: normalise x W and h U, with gains (Ba et al. 2016).
    learned_carry: make the initial carry a parameter.
    dtype: of the parameters.

  Raises:
    ValueError: if a size is no positive integer.

  >>> params = init(jax.random.key(0), 3, 5)
  >>> outputs, carry = apply(params, jnp.ones((7, 2, 3)))
  >>> outputs.shape, carry.shape
  ((7, 2, 5), (2, 5))
  """
  check_sizes(input_size=input_size, hidden_size=hidden_size)
  keys = jax.random.split(key, 2)
  columns = 3 * hidden_size
  ones = jnp.ones(columns, dtype) if layer_norm else None
  zeros = jnp.zeros(hidden_size, dtype)
  keep = jnp.zeros(columns, dtype).at[:hidden_size].set(update_bias)
  return GatedInputParams(
    uniform(keys[0], (input_size, columns), hidden_size, dtype),
    uniform(keys[1], (hidden_size, columns), hidden_size, dtype),
    keep if bias else None,
    zeros if bias else None,
    ones,
    ones,
    zeros if learned_carry else None,
  )


def _sizes(params: GatedInputParams) -> int:
  return params.recurrent_weights.shape[0]


def _step(
  params: GatedInputParams,
  drive: Parts,
  hidden: jax.Array,
  kept: Any,
) -> tuple[jax.Array, _Gates]:
  """Equations (1) to (3)."""
  size = hidden.shape[-1]
  recurrent = gained_product(
    hidden, params.recurrent_weights, params.recurrent_gain
  )
  of_update, of_mixing, of_input = drive
  update = sigmoid(of_update + recurrent[..., :size])
  mixing = sigmoid(of_mixing + recurrent[..., size : 2 * size])
  of_state = recurrent[..., 2 * size :]
  if params.recurrent_bias is not None:
    of_state = of_state + params.recurrent_bias.astype(of_state.dtype)
  candidate = jnp.tanh(mixing * of_state + (1 - mixing) * of_input)
  new = update * hidden + (1 - update) * candidate * kept
  return new, _Gates(update, mixing, candidate, of_state - of_input)


def _derivatives(
  params: GatedInputParams, gates: _Gates, hidden: jax.Array, kept: Any
) -> tuple[_Factors, _Local]:
  update, mixing, candidate, difference = gates
  of_candidate = (1 - update) * kept * (1 - candidate * candidate)
  factors = _Factors(
    (hidden - candidate * kept) * update * (1 - update),
    of_candidate * difference * mixing * (1 - mixing),
    of_candidate,
    gates,
    normalised_product(hidden, params.recurrent_weights, params.recurrent_gain),
  )
  return factors, _Local(kept, hidden, factors)


def _bars_of(
  factors: _Factors, share: jax.Array, hidden_bar: jax.Array
) -> jax.Array:
  """Of what goes into G, F and R, when `share` of R's goes there."""
  of_gates = [factors.update, factors.mixing, factors.candidate * share]
  return jnp.concatenate(of_gates, -1) * jnp.concatenate([hidden_bar] * 3, -1)


def _step_adjoint(
  params: GatedInputParams, factors: _Factors, hidden_bar: jax.Array
) -> tuple[jax.Array, _Bars, jax.Array]:
  product_bar, through = product_adjoint(
    params.recurrent_weights,
    params.recurrent_gain,
    factors.product,
    _bars_of(factors, factors.gates.mixing, hidden_bar),
  )
  normalised = factors.product is not None
  bars = _Bars(hidden_bar, product_bar if normalised else None)
  return hidden_bar * factors.gates.update + through, bars, hidden_bar


def _weights_adjoint(
  params: GatedInputParams, local: _Local, hidden: jax.Array, bars: _Bars
) -> tuple[jax.Array, dict[str, jax.Array]]:
  factors, dtype = local.factors, params.recurrent_weights.dtype
  mixing = factors.gates.mixing
  recurrent_bars = _bars_of(factors, mixing, bars.hidden)
  product_bars = recurrent_bars if bars.product is None else bars.product
  gradients = {
    "recurrent_weights": weights_adjoint(hidden, product_bars, dtype)
  }
  if params.recurrent_bias is not None:
    of_state = recurrent_bars[..., 2 * hidden.shape[-1] :]
    gradients["recurrent_bias"] = total(of_state)
  if params.recurrent_gain is not None:
    gradients["recurrent_gain"] = gain_adjoint(factors.product, recurrent_bars)
  return _bars_of(factors, 1 - mixing, bars.hidden), gradients


def _gate_adjoints(local: _Local, hidden_bar: jax.Array) -> GatedInputAdjoints:
  factors, gates = local.factors, local.factors.gates
  return GatedInputAdjoints(
    hidden=hidden_bar,
    update_gate=hidden_bar * (local.hidden - gates.candidate * local.kept),
    input_gate=hidden_bar * factors.candidate * gates.difference,
    candidate=hidden_bar * (1 - gates.update) * local.kept,
  )


cell = Cell(
  "gated_input",
  init,
  Equations(
    _sizes,
    _step,
    _derivatives,
    _step_adjoint,
    _weights_adjoint,
    _gate_adjoints,
    parts=3,
  ),
)
step, forward, backward, apply = (
  cell.step,
  cell.forward,
  cell.backward,
  cell.apply,
)
