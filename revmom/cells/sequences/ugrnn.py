"""Update-gate recurrent network (Collins, Sohl-Dickstein & Sussillo 2017).

    R = tanh(x_t W_R + h_{t-1} U_R + b_R),                              (1)
    G = sigmoid(x_t W_G + h_{t-1} U_G + b_G),                           (2)
    h_t = G h_{t-1} + (1 - G) R.                                        (3)

Biases that are subtracted elsewhere are added here.
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
  weights_adjoint,
)
from revmom.cells.sequences.cell import Cell, check_sizes, uniform
from revmom.cells.sequences.equations import Equations, Parts


class UGRNNParams(NamedTuple):
  """Parameters; columns are in the order G, R, and what is off is None."""

  input_weights: jax.Array  # W [D, 2H]
  recurrent_weights: jax.Array  # U [H, 2H]
  bias: jax.Array | None  # b [2H]
  input_gain: jax.Array | None  # of layer normalisation [2H]
  recurrent_gain: jax.Array | None  # of layer normalisation [2H]
  initial_carry: jax.Array | None  # [H], if it is learned


class UGRNNAdjoints(NamedTuple):
  """Adjoints of every step, arrays [T, B, H]."""

  hidden: jax.Array  # dL/dh_t
  update_gate: jax.Array  # dL/dG
  candidate: jax.Array  # dL/dR


class _Gates(NamedTuple):
  update: jax.Array  # G
  candidate: jax.Array  # R


class _Factors(NamedTuple):
  """Of the adjoint of the new state."""

  gates: jax.Array  # of what goes into G and R [..., 2H]
  update: jax.Array  # G
  product: Normalised | None  # norm(h U)


class _Local(NamedTuple):
  gates: _Gates
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
) -> UGRNNParams:
  """Parameters, uniform within 1 / sqrt(hidden_size).

  Args:
    key: of the random weights.
    input_size, hidden_size: D and H.
    bias: whether there is one.
    update_bias: of G at first, so that the state is kept (Collins et al. 2017,
      section 2); without a bias it does nothing.
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
  columns = 2 * hidden_size
  ones = jnp.ones(columns, dtype) if layer_norm else None
  keep = jnp.zeros(columns, dtype).at[:hidden_size].set(update_bias)
  return UGRNNParams(
    uniform(keys[0], (input_size, columns), hidden_size, dtype),
    uniform(keys[1], (hidden_size, columns), hidden_size, dtype),
    keep if bias else None,
    ones,
    ones,
    jnp.zeros(hidden_size, dtype) if learned_carry else None,
  )


def _sizes(params: UGRNNParams) -> int:
  return params.recurrent_weights.shape[0]


def _step(
  params: UGRNNParams,
  drive: Parts,
  hidden: jax.Array,
  kept: Any,
) -> tuple[jax.Array, _Gates]:
  """Equations (1) to (3)."""
  recurrent = gained_product(
    hidden, params.recurrent_weights, params.recurrent_gain
  )
  of_update, of_candidate = map(jnp.add, drive, jnp.split(recurrent, 2, -1))
  gates = _Gates(sigmoid(of_update), jnp.tanh(of_candidate))
  candidate = gates.candidate * kept
  return gates.update * hidden + (1 - gates.update) * candidate, gates


def _derivatives(
  params: UGRNNParams, gates: _Gates, hidden: jax.Array, kept: Any
) -> tuple[_Factors, _Local]:
  update, candidate = gates
  of_gates = [
    (hidden - candidate * kept) * update * (1 - update),
    (1 - update) * kept * (1 - candidate * candidate),
  ]
  normalised = normalised_product(
    hidden, params.recurrent_weights, params.recurrent_gain
  )
  factors = _Factors(jnp.concatenate(of_gates, -1), update, normalised)
  return factors, _Local(gates, kept, hidden, factors)


def _gate_bars(factors: _Factors, hidden_bar: jax.Array) -> jax.Array:
  return factors.gates * jnp.concatenate([hidden_bar, hidden_bar], -1)


def _step_adjoint(
  params: UGRNNParams, factors: _Factors, hidden_bar: jax.Array
) -> tuple[jax.Array, _Bars, jax.Array]:
  product_bar, through = product_adjoint(
    params.recurrent_weights,
    params.recurrent_gain,
    factors.product,
    _gate_bars(factors, hidden_bar),
  )
  normalised = factors.product is not None
  bars = _Bars(hidden_bar, product_bar if normalised else None)
  return hidden_bar * factors.update + through, bars, hidden_bar


def _weights_adjoint(
  params: UGRNNParams, local: _Local, hidden: jax.Array, bars: _Bars
) -> tuple[jax.Array, dict[str, jax.Array]]:
  gate_bars = _gate_bars(local.factors, bars.hidden)
  product_bars = gate_bars if bars.product is None else bars.product
  dtype = params.recurrent_weights.dtype
  gradients = {
    "recurrent_weights": weights_adjoint(hidden, product_bars, dtype)
  }
  if params.recurrent_gain is not None:
    gradients["recurrent_gain"] = gain_adjoint(local.factors.product, gate_bars)
  return gate_bars, gradients


def _gate_adjoints(local: _Local, hidden_bar: jax.Array) -> UGRNNAdjoints:
  update, candidate = local.gates
  return UGRNNAdjoints(
    hidden=hidden_bar,
    update_gate=hidden_bar * (local.hidden - candidate * local.kept),
    candidate=hidden_bar * (1 - update) * local.kept,
  )


cell = Cell(
  "ugrnn",
  init,
  Equations(
    _sizes,
    _step,
    _derivatives,
    _step_adjoint,
    _weights_adjoint,
    _gate_adjoints,
    parts=2,
  ),
)
step, forward, backward, apply = (
  cell.step,
  cell.forward,
  cell.backward,
  cell.apply,
)
