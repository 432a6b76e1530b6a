"""Update-gate recurrent network (Collins, Sohl-Dickstein & Sussillo 2017).

    R = tanh(x_t W_R + h_{t-1} U_R + b_R),                              (1)
    G = sigmoid(x_t W_G + h_{t-1} U_G + b_G),                           (2)
    h_t = G h_{t-1} + (1 - G) R.                                        (3)

Biases that are subtracted elsewhere are added here.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.typing import DTypeLike

from revmom.cells.initialisation import shared_fields
from revmom.cells.sequences.cell import Cell
from revmom.cells.sequences.equations import Equations, Parts, Steps
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


def init(
  key: jax.Array,
  input_size: int,
  hidden_size: int,
  *,
  bias: bool = True,
  update_bias: float = 1.0,
  layer_norm: bool = False,
  learned_carry: bool = False,
  dtype: DTypeLike = jnp.float32,
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
  fields = shared_fields(
    key,
    input_size,
    hidden_size,
    gates=2,
    layer_norm=layer_norm,
    learned_carry=learned_carry,
    dtype=dtype,
  )
  return UGRNNParams(
    bias=first_bias(hidden_size, 2, update_bias, dtype) if bias else None,
    **fields,
  )


def first_bias(
  hidden_size: int, gates: int, update_bias: float, dtype: DTypeLike
) -> jax.Array:
  """A bias of zeros but for the first gate, G."""
  zeros = jnp.zeros(gates * hidden_size, dtype)
  return zeros.at[:hidden_size].set(update_bias)


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
  of_update, of_candidate = map(jnp.add, drive, jnp.split(product, 2, -1))
  return update(of_update, of_candidate, hidden, kept)


def _derivatives(
  params: UGRNNParams, gates: Gates, hidden: jax.Array, kept: Any
) -> _Factors:
  of_gates = jnp.concatenate(slopes(gates, hidden, kept), -1)
  return _Factors(of_gates, gates.update)


def _gate_bars(factors: _Factors, hidden_bar: jax.Array) -> jax.Array:
  return factors.gates * jnp.concatenate([hidden_bar, hidden_bar], -1)


def _step_adjoint(
  params: UGRNNParams, factors: _Factors, hidden_bar: jax.Array
) -> tuple[jax.Array, jax.Array, jax.Array, jax.Array]:
  gate_bars = _gate_bars(factors, hidden_bar)
  return hidden_bar * factors.update, gate_bars, hidden_bar, hidden_bar


def _weights_adjoint(
  params: UGRNNParams, steps: Steps, hidden_bars: jax.Array
) -> tuple[jax.Array, jax.Array, dict[str, jax.Array]]:
  gate_bars = _gate_bars(steps.factors, hidden_bars)
  return gate_bars, gate_bars, {}


def _gate_adjoints(
  params: UGRNNParams, steps: Steps, hidden_bar: jax.Array
) -> UGRNNAdjoints:
  return adjoints(steps.gates, steps.carry, steps.kept, hidden_bar)


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
step, forward = cell.step, cell.forward
backward, apply = cell.backward, cell.apply
