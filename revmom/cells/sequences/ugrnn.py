"""Update-gate recurrent network (Collins, Sohl-Dickstein & Sussillo 2017).

    R = tanh(x_t W_R + h_{t-1} U_R + b_R),                              (1)
    G = sigmoid(x_t W_G + h_{t-1} U_G + b_G),                           (2)
    h_t = G h_{t-1} + (1 - G) R.                                        (3)

Biases that are subtracted elsewhere are added here.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from revmom.cells.initialisation import check_sizes, uniform
from revmom.cells.sequences.cell import Cell
from revmom.cells.sequences.equations import Equations, Parts
from revmom.numerics import sigmoid


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


class Gates(NamedTuple):
  """What the cell keeps of a step."""

  update: jax.Array  # G
  candidate: jax.Array  # R


class _Factors(NamedTuple):
  """What the adjoint of the new state is multiplied by."""

  gates: jax.Array  # for what goes into G and R [..., 2H]
  update: jax.Array  # G, for the state before


class _Local(NamedTuple):
  gates: Gates
  kept: Any
  hidden: jax.Array  # h_{t-1}
  factors: _Factors


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


def update(
  of_update: jax.Array, of_candidate: jax.Array, hidden: jax.Array, kept: Any
) -> tuple[jax.Array, Gates]:
  """Equations (1) to (3), from what goes into R and G."""
  gates = Gates(sigmoid(of_update), jnp.tanh(of_candidate))
  candidate = gates.candidate * kept
  return gates.update * hidden + (1 - gates.update) * candidate, gates


def slopes(
  gates: Gates, hidden: jax.Array, kept: Any
) -> tuple[jax.Array, jax.Array]:
  """Derivatives of the new state by what goes into G and R."""
  update, candidate = gates
  return (
    (hidden - candidate * kept) * update * (1 - update),
    (1 - update) * kept * (1 - candidate * candidate),
  )


def adjoints(
  gates: Gates, hidden: jax.Array, kept: Any, hidden_bar: jax.Array
) -> UGRNNAdjoints:
  """Those of the new state, of G and of R."""
  return UGRNNAdjoints(
    hidden=hidden_bar,
    update_gate=hidden_bar * (hidden - gates.candidate * kept),
    candidate=hidden_bar * (1 - gates.update) * kept,
  )


def _step(
  params: UGRNNParams,
  drive: Parts,
  product: jax.Array,
  hidden: jax.Array,
  kept: Any,
) -> tuple[jax.Array, Gates]:
  del params
  of_update, of_candidate = map(jnp.add, drive, jnp.split(product, 2, -1))
  return update(of_update, of_candidate, hidden, kept)


def _derivatives(
  params: UGRNNParams, gates: Gates, hidden: jax.Array, kept: Any
) -> tuple[_Factors, _Local]:
  del params
  of_gates = jnp.concatenate(slopes(gates, hidden, kept), -1)
  factors = _Factors(of_gates, gates.update)
  return factors, _Local(gates, kept, hidden, factors)


def _gate_bars(factors: _Factors, hidden_bar: jax.Array) -> jax.Array:
  return factors.gates * jnp.concatenate([hidden_bar, hidden_bar], -1)


def _step_adjoint(
  params: UGRNNParams, factors: _Factors, hidden_bar: jax.Array
) -> tuple[jax.Array, jax.Array, jax.Array, jax.Array]:
  del params
  gate_bars = _gate_bars(factors, hidden_bar)
  return hidden_bar * factors.update, gate_bars, hidden_bar, hidden_bar


def _weights_adjoint(
  params: UGRNNParams, local: _Local, hidden: jax.Array, hidden_bars: jax.Array
) -> tuple[jax.Array, jax.Array, dict[str, jax.Array]]:
  del params, hidden
  gate_bars = _gate_bars(local.factors, hidden_bars)
  return gate_bars, gate_bars, {}


def _gate_adjoints(local: _Local, hidden_bar: jax.Array) -> UGRNNAdjoints:
  return adjoints(local.gates, local.hidden, local.kept, hidden_bar)


cell = Cell(
  "ugrnn",
  init,
  Equations(
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
