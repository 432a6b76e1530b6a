"""Long short-term memory (Hochreiter & Schmidhuber 1997; Gers et al. 2000).

    i, f, o = sigmoid(x_t W + h_{t-1} R + b),   g = tanh(...),          (1)
    c_t = f c_{t-1} + i g,                                              (2)
    h_t = o tanh(c_t).                                                  (3)

The adjoint of a step is

    c̄_t += h̄_t o (1 - tanh^2 c_t),                                     (4)
    ō = h̄_t tanh c_t,  f̄ = c̄_t c_{t-1},  ī = c̄_t g,  ḡ = c̄_t i,      (5)
    c̄_{t-1} = c̄_t f,   h̄_{t-1} = ā_t R^T,                              (6)

where ā are the adjoints (5) times the slopes s (1 - s) and 1 - g^2.  All
factors come from the forward pass, so that (4) to (6) are linear in h̄ and c̄.
Peepholes, a projection and layer normalisation are in `lstm_variants`.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from revmom.cells.initialisation import check_sizes, uniform
from revmom.cells.sequences import lstm_variants as variants
from revmom.cells.sequences.cell import Cell
from revmom.cells.sequences.equations import Equations, Parts, Steps


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
  normalised_cell: Any  # norm(c_t)


class _Bars(NamedTuple):
  gates: jax.Array  # of what goes into the gates [..., 4H]
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


def _step(
  params: LSTMParams,
  drive: Parts,
  product: jax.Array,
  carry: LSTMCarry,
  kept: Any,
) -> tuple[LSTMCarry, jax.Array]:
  """Equations (1) to (3)."""
  before = variants.see_old_cell(params, drive[0] + product, carry.cell)
  gates = _activate(before)
  i, f, o, g = jnp.split(gates, 4, -1)
  cell = f * carry.cell + i * g * kept
  if params.peephole is not None:
    o = variants.see_new_cell(params, before, cell)
    gates = jnp.concatenate([i, f, o, g], -1)
  squashed, _ = variants.squash(params, cell)
  return LSTMCarry(variants.project(params, o * squashed), cell), gates


def _memory(
  params: LSTMParams, gates: jax.Array, carry: LSTMCarry, kept: Any
) -> tuple[jax.Array, jax.Array, Any]:
  """c_t again, tanh(c_t) and, if it is normalised, norm(c_t)."""
  i, f, _, g = jnp.split(gates, 4, -1)
  cell = f * carry.cell + i * g * kept
  return cell, *variants.squash(params, cell)


def _derivatives(
  params: LSTMParams, gates: jax.Array, carry: LSTMCarry, kept: Any
) -> _Factors:
  """The factors of (4) to (6)."""
  i, f, o, g = jnp.split(gates, 4, -1)
  _, squashed, normalised_cell = _memory(params, gates, carry, kept)
  of_gates = [
    g * kept * i * (1 - i),
    carry.cell * f * (1 - f),
    squashed * o * (1 - o),
    i * kept * (1 - g * g),
  ]
  of_cell = o * (1 - squashed * squashed)
  return _Factors(jnp.concatenate(of_gates, -1), of_cell, f, normalised_cell)


def _step_adjoint(
  params: LSTMParams, factors: _Factors, carry_bar: LSTMCarry
) -> tuple[LSTMCarry, jax.Array, _Bars, _StatesBar]:
  """Equations (4) to (6)."""
  hidden_bar, cell_bar = carry_bar
  exposed_bar = variants.project_adjoint(params, hidden_bar)
  cell_bar = cell_bar + variants.cell_adjoint(params, factors, exposed_bar)
  of_gates = [cell_bar, cell_bar, exposed_bar, cell_bar]
  gate_bars = factors.gates * jnp.concatenate(of_gates, -1)
  old_cell_bar = variants.see_old_cell_adjoint(
    params, cell_bar * factors.forget, gate_bars
  )
  bars = _Bars(
    gate_bars,
    None if params.cell_gain is None else exposed_bar,
    None if params.projection is None else hidden_bar,
  )
  states_bar = _StatesBar(hidden_bar, exposed_bar, cell_bar)
  return LSTMCarry(None, old_cell_bar), gate_bars, bars, states_bar


def _weights_adjoint(
  params: LSTMParams, steps: Steps, bars: _Bars
) -> tuple[jax.Array, jax.Array, dict[str, jax.Array]]:
  cell, squashed, _ = _memory(params, *steps[:3])
  o = jnp.split(steps.gates, 4, -1)[2]
  gradients = variants.peephole_gradient(
    params, bars.gates, steps.carry.cell, cell
  )
  gradients |= variants.projection_gradient(params, o * squashed, bars.hidden)
  if params.cell_gain is not None:
    through = bars.exposed * steps.factors.cell
    gradients |= variants.squash_gradients(
      steps.factors.normalised_cell, through
    )
  return bars.gates, bars.gates, gradients


def _gate_adjoints(
  params: LSTMParams, steps: Steps, states_bar: _StatesBar
) -> LSTMAdjoints:
  """Equation (5)."""
  i, _, _, g = jnp.split(steps.gates, 4, -1)
  _, squashed, _ = _memory(params, *steps[:3])
  hidden_bar, exposed_bar, cell_bar = states_bar
  return LSTMAdjoints(
    hidden=hidden_bar,
    cell=cell_bar,
    candidate=cell_bar * i * steps.kept,
    output_gate=exposed_bar * squashed,
    forget_gate=cell_bar * steps.carry.cell,
    input_gate=cell_bar * g * steps.kept,
  )


cell = Cell(
  "lstm",
  init,
  Equations(
    _step,
    _derivatives,
    _step_adjoint,
    _weights_adjoint,
    _gate_adjoints,
    _sizes,
    transposed=("recurrent_weights", "projection"),
    alone=1,
  ),
)
step, forward = cell.step, cell.forward
backward, apply = cell.backward, cell.apply
