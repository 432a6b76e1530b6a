"""Long short-term memory (Hochreiter & Schmidhuber 1997; Gers et al. 2000).

    i, f, o = sigmoid(x_t W + h_{t-1} R + b),   g = tanh(...),          (1)
    c_t = f c_{t-1} + i g,                                              (2)
    h_t = o tanh(c_t).                                                  (3)

With peepholes (Gers, Schraudolph & Schmidhuber 2002) i and f see c_{t-1} and o
sees c_t; a projection (Sak, Senior & Beaufays 2014) makes h_t = o tanh(c_t) P;
layer normalisation (Ba, Kiros & Hinton 2016, equations 20-22) acts on x W, on
h R and inside the tanh of (3).  The adjoint of a step is

    c̄_t += h̄_t o (1 - tanh^2 c_t),                                     (4)
    ō = h̄_t tanh c_t,  f̄ = c̄_t c_{t-1},  ī = c̄_t g,  ḡ = c̄_t i,      (5)
    c̄_{t-1} = c̄_t f,   h̄_{t-1} = ā_t R^T,                              (6)

where ā are the adjoints (5) times the slopes s (1 - s) and 1 - g^2.  All
factors come from the forward pass, so that (4) to (6) are linear in h̄ and c̄.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from revmom.cells.sequences.affine import (
  Normalised,
  gain_adjoint,
  gained_product,
  normalise,
  normalise_adjoint,
  normalised_product,
  product,
  product_adjoint,
  sigmoid,
  total,
  weights_adjoint,
)
from revmom.cells.sequences.cell import Cell, check_sizes, uniform
from revmom.cells.sequences.equations import Equations, Parts


class LSTMCarry(NamedTuple):
  """State between steps, [B, P] and [B, H]; P is H without a projection."""

  hidden: Any
  cell: Any


class LSTMParams(NamedTuple):
  """Parameters; gates are in the order i, f, o, g, and what is off is None."""

  input_weights: jax.Array  # W [D, 4H]
  recurrent_weights: jax.Array  # R [P, 4H]
  bias: jax.Array | None  # b [4H]
  peephole: jax.Array | None  # of i, f and o [3, H]
  projection: jax.Array | None  # P [H, P]
  input_gain: jax.Array | None  # of layer normalisation [4H]
  recurrent_gain: jax.Array | None  # [4H]
  cell_gain: jax.Array | None  # [H]
  cell_bias: jax.Array | None  # [H]
  initial_carry: LSTMCarry | None  # [P] and [H], if it is learned


class LSTMAdjoints(NamedTuple):
  """Adjoints of every step, [T, B, P] and [T, B, H]: equations (4) to (6)."""

  hidden: jax.Array  # dL/dh_t
  cell: jax.Array  # dL/dc_t
  candidate: jax.Array  # dL/dg
  output_gate: jax.Array  # dL/do
  forget_gate: jax.Array  # dL/df
  input_gate: jax.Array  # dL/di


class _Factors(NamedTuple):
  gates: jax.Array  # of (5), times the slopes of the gates [..., 4H]
  cell: jax.Array  # o (1 - tanh^2), of (4)
  forget: jax.Array  # f
  product: Normalised | None  # norm(h R)
  normalised_cell: Any  # norm(c_t)


class _Local(NamedTuple):
  gates: jax.Array  # i, f, o and g
  kept: Any
  old_cell: jax.Array  # c_{t-1}
  cell: jax.Array  # c_t
  squashed: jax.Array  # tanh(c_t)
  factors: _Factors


class _Bars(NamedTuple):
  gates: jax.Array  # of what goes into the gates [..., 4H]
  product: Any  # of h R, if it is normalised
  exposed: Any  # of o tanh(c_t), if the cell is normalised
  hidden: Any  # of h_t, if it is projected


class _StatesBar(NamedTuple):
  hidden: jax.Array
  exposed: jax.Array  # o tanh(c_t): the hidden state before a projection
  cell: jax.Array


def init(
  key: jax.Array,
  input_size: int,
  hidden_size: int,
  *,
  bias: bool = True,
  forget_bias: float = 1.0,
  peephole: bool = False,
  projection_size: int | None = None,
  layer_norm: bool = False,
  learned_carry: bool = False,
  dtype: jax.typing.DTypeLike = jnp.float32,
) -> LSTMParams:
  """Parameters, uniform within 1 / sqrt(hidden_size).

  Args:
    key: of the random weights.
    input_size, hidden_size: D and H.
    bias: whether there is one.
    forget_bias: added to the bias of the forget gate, so that cells remember
      at first (Gers et al. 2000); without a bias it does nothing.
    peephole: let gates see the cell.
    projection_size: P; None is no projection.
    layer_norm: normalise x W, h R and the cell, with gains.
    learned_carry: make the initial carry a parameter.
    dtype: of the parameters.

  Raises:
    ValueError: if a size is no positive integer.

  >>> params = init(jax.random.key(0), 3, 5)
  >>> outputs, carry = apply(params, jnp.ones((7, 2, 3)))
  >>> outputs.shape, carry.cell.shape
  ((7, 2, 5), (2, 5))
  """
  check_sizes(input_size=input_size, hidden_size=hidden_size)
  if projection_size is not None:
    check_sizes(projection_size=projection_size)
  keys = jax.random.split(key, 4)
  gates, output_size = 4 * hidden_size, projection_size or hidden_size
  weights = lambda key, *shape: uniform(key, shape, hidden_size, dtype)
  ones = lambda size: jnp.ones(size, dtype) if layer_norm else None
  zeros = lambda size: jnp.zeros(size, dtype)
  remember = zeros(gates).at[hidden_size : 2 * hidden_size].set(forget_bias)
  return LSTMParams(
    input_weights=weights(keys[0], input_size, gates),
    recurrent_weights=weights(keys[1], output_size, gates),
    bias=remember if bias else None,
    peephole=weights(keys[2], 3, hidden_size) if peephole else None,
    projection=(
      weights(keys[3], hidden_size, output_size) if projection_size else None
    ),
    input_gain=ones(gates),
    recurrent_gain=ones(gates),
    cell_gain=ones(hidden_size),
    cell_bias=zeros(hidden_size) if layer_norm else None,
    initial_carry=(
      LSTMCarry(zeros(output_size), zeros(hidden_size))
      if learned_carry
      else None
    ),
  )


def _sizes(params: LSTMParams) -> LSTMCarry:
  output_size, gates = params.recurrent_weights.shape
  return LSTMCarry(output_size, gates // 4)


def _activate(gates: jax.Array) -> jax.Array:
  """sigmoid of i, f and o, tanh of g, as one: sigmoid(a) = (1 + tanh(a/2)) / 2.

  One vectorised tanh takes half the time of two functions on parts.
  """
  size = gates.shape[-1] // 4
  half = np.repeat(np.array([0.5, 1.0]), [3 * size, size]).astype(gates.dtype)
  return jnp.tanh(gates * half) * half + (1 - half)


def _squashed(
  params: LSTMParams, cell: jax.Array
) -> tuple[jax.Array, Normalised | None]:
  """tanh(c_t), or tanh(norm(c_t) gain + bias)."""
  if params.cell_gain is None or params.cell_bias is None:
    return jnp.tanh(cell), None
  normalised = normalise(cell)
  return jnp.tanh(
    normalised.values * params.cell_gain.astype(cell.dtype)
    + params.cell_bias.astype(cell.dtype)
  ), normalised


def _step(
  params: LSTMParams, drive: Parts, carry: LSTMCarry, kept: Any
) -> tuple[LSTMCarry, jax.Array]:
  """Equations (1) to (3)."""
  hidden, cell = carry
  before = drive[0] + gained_product(
    hidden, params.recurrent_weights, params.recurrent_gain
  )
  if params.peephole is not None:
    of_input, of_forget, of_output = params.peephole.astype(cell.dtype)
    nothing = jnp.zeros_like(cell)
    seen = [of_input * cell, of_forget * cell, nothing, nothing]
    before = before + jnp.concatenate(seen, -1)
  gates = _activate(before)
  i, f, o, g = jnp.split(gates, 4, -1)
  cell = f * cell + i * g * kept
  if params.peephole is not None:
    o = sigmoid(jnp.split(before, 4, -1)[2] + of_output * cell)
    gates = jnp.concatenate([i, f, o, g], -1)
  hidden = o * _squashed(params, cell)[0]
  if params.projection is not None:
    hidden = product(hidden, params.projection)
  return LSTMCarry(hidden, cell), gates


def _derivatives(
  params: LSTMParams, gates: jax.Array, carry: LSTMCarry, kept: Any
) -> tuple[_Factors, _Local]:
  """The factors of (4) to (6)."""
  hidden, old = carry
  i, f, o, g = jnp.split(gates, 4, -1)
  cell = f * old + i * g * kept
  squashed, normalised_cell = _squashed(params, cell)
  of_gates = jnp.concatenate(
    [
      g * kept * i * (1 - i),
      old * f * (1 - f),
      squashed * o * (1 - o),
      i * kept * (1 - g * g),
    ],
    -1,
  )
  of_product = normalised_product(
    hidden, params.recurrent_weights, params.recurrent_gain
  )
  factors = _Factors(
    of_gates, o * (1 - squashed * squashed), f, of_product, normalised_cell
  )
  return factors, _Local(gates, kept, old, cell, squashed, factors)


def _step_adjoint(
  params: LSTMParams, factors: _Factors, carry_bar: LSTMCarry
) -> tuple[LSTMCarry, _Bars, _StatesBar]:
  """Equations (4) to (6)."""
  hidden_bar, cell_bar = carry_bar
  exposed_bar = hidden_bar  # of o tanh(c_t)
  if params.projection is not None:
    exposed_bar = product(hidden_bar, params.projection)
  through = exposed_bar * factors.cell
  if params.cell_gain is not None:
    through = normalise_adjoint(
      factors.normalised_cell, through * params.cell_gain.astype(through.dtype)
    )
  if params.peephole is not None:
    of_input, of_forget, of_output = params.peephole.astype(through.dtype)
    output_factor = jnp.split(factors.gates, 4, -1)[2]
    through = through + exposed_bar * output_factor * of_output
  cell_bar = cell_bar + through
  gate_bars = factors.gates * jnp.concatenate(
    [cell_bar, cell_bar, exposed_bar, cell_bar], -1
  )
  old_cell_bar = cell_bar * factors.forget
  if params.peephole is not None:
    input_bar, forget_bar, _, _ = jnp.split(gate_bars, 4, -1)
    old_cell_bar += input_bar * of_input + forget_bar * of_forget
  product_bar, old_hidden_bar = product_adjoint(
    params.recurrent_weights, params.recurrent_gain, factors.product, gate_bars
  )
  normalised = factors.product is not None
  bars = _Bars(
    gate_bars,
    product_bar if normalised else None,
    exposed_bar if normalised else None,
    hidden_bar if params.projection is not None else None,
  )
  states_bar = _StatesBar(hidden_bar, exposed_bar, cell_bar)
  return LSTMCarry(old_hidden_bar, old_cell_bar), bars, states_bar


def _weights_adjoint(
  params: LSTMParams, local: _Local, carry: LSTMCarry, bars: _Bars
) -> tuple[jax.Array, dict[str, jax.Array]]:
  factors, dtype = local.factors, params.recurrent_weights.dtype
  product_bars = bars.gates if bars.product is None else bars.product
  gradients = {
    "recurrent_weights": weights_adjoint(carry.hidden, product_bars, dtype)
  }
  if params.peephole is not None:
    of_input, of_forget, of_output, _ = jnp.split(bars.gates, 4, -1)
    gradients["peephole"] = jnp.stack(
      [
        total(of_input * local.old_cell),
        total(of_forget * local.old_cell),
        total(of_output * local.cell),
      ]
    )
  if params.projection is not None:
    o = jnp.split(local.gates, 4, -1)[2]
    gradients["projection"] = weights_adjoint(
      o * local.squashed, bars.hidden, dtype
    )
  if params.recurrent_gain is not None:
    through = bars.exposed * factors.cell
    gradients["recurrent_gain"] = gain_adjoint(factors.product, bars.gates)
    gradients["cell_gain"] = gain_adjoint(factors.normalised_cell, through)
    gradients["cell_bias"] = total(through)
  return bars.gates, gradients


def _gate_adjoints(local: _Local, states_bar: _StatesBar) -> LSTMAdjoints:
  """Equation (5)."""
  i, _, _, g = jnp.split(local.gates, 4, -1)
  hidden_bar, exposed_bar, cell_bar = states_bar
  return LSTMAdjoints(
    hidden=hidden_bar,
    cell=cell_bar,
    candidate=cell_bar * i * local.kept,
    output_gate=exposed_bar * local.squashed,
    forget_gate=cell_bar * local.old_cell,
    input_gate=cell_bar * g * local.kept,
  )


cell = Cell(
  "lstm",
  init,
  Equations(
    _sizes,
    _step,
    _derivatives,
    _step_adjoint,
    _weights_adjoint,
    _gate_adjoints,
    transposed=("recurrent_weights", "projection"),
    alone=1,
  ),
)
step, forward, backward, apply = (
  cell.step,
  cell.forward,
  cell.backward,
  cell.apply,
)
