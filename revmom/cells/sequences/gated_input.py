"""A recurrent network whose gates mix the state, and the inputs of its update.

    G, F = sigmoid(x_t W + h_{t-1} U + b),                              (1)
    R = tanh(F (h_{t-1} U_R + b'_R) + (1 - F) (x_t W_R + b_R)),         (2)
    h_t = G h_{t-1} + (1 - G) R.                                        (3)

It is the update-gate network, `ugrnn`, with a second gate F, which chooses
between what the state and what the input say.  Biases that are subtracted
elsewhere are added here.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from revmom.cells.initialisation import shared_fields
from revmom.cells.sequences import ugrnn
from revmom.cells.sequences.cell import Cell
from revmom.cells.sequences.equations import Equations, Parts, Steps
from revmom.numerics import sigmoid, total


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
  ugrnn: ugrnn.Gates  # G and R
  mixing: jax.Array  # F
  difference: jax.Array  # of what F mixes: the state's part minus the input's


class _Factors(NamedTuple):
  """What the adjoint of the new state is multiplied by."""

  update: jax.Array  # for what goes into G
  mixing: jax.Array  # for what goes into F
  candidate: jax.Array  # for what goes into R
  gates: _Gates


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
  fields = shared_fields(
    key,
    input_size,
    hidden_size,
    gates=3,
    layer_norm=layer_norm,
    learned_carry=learned_carry,
    dtype=dtype,
  )
  first = ugrnn.first_bias(hidden_size, 3, update_bias, dtype)
  return GatedInputParams(
    bias=first if bias else None,
    recurrent_bias=jnp.zeros(hidden_size, dtype) if bias else None,
    **fields,
  )


def _step(
  params: GatedInputParams,
  drive: Parts,
  product: jax.Array,
  hidden: jax.Array,
  kept: Any,
) -> tuple[jax.Array, _Gates]:
  """Equations (1) to (3)."""
  into_update, into_mixing, of_input = drive
  by_update, by_mixing, of_state = jnp.split(product, 3, -1)
  if params.recurrent_bias is not None:
    of_state = of_state + params.recurrent_bias.astype(of_state.dtype)
  mixing = sigmoid(into_mixing + by_mixing)
  new, gates = ugrnn.update(
    into_update + by_update,
    mixing * of_state + (1 - mixing) * of_input,
    hidden,
    kept,
  )
  return new, _Gates(gates, mixing, of_state - of_input)


def _derivatives(
  params: GatedInputParams, gates: _Gates, hidden: jax.Array, kept: Any
) -> _Factors:
  of_update, of_candidate = ugrnn.slopes(gates.ugrnn, hidden, kept)
  mixing = gates.mixing
  of_mixing = of_candidate * gates.difference * mixing * (1 - mixing)
  return _Factors(of_update, of_mixing, of_candidate, gates)


def _bars_of(
  factors: _Factors, share: jax.Array, hidden_bar: jax.Array
) -> jax.Array:
  """Adjoints of terms of G, F and R, of which R's is multiplied by `share`."""
  of_gates = [factors.update, factors.mixing, factors.candidate * share]
  return jnp.concatenate(of_gates, -1) * jnp.concatenate([hidden_bar] * 3, -1)


def _step_adjoint(
  params: GatedInputParams, factors: _Factors, hidden_bar: jax.Array
) -> tuple[jax.Array, jax.Array, jax.Array, jax.Array]:
  gates = factors.gates
  product_bar = _bars_of(factors, gates.mixing, hidden_bar)
  old_bar = hidden_bar * gates.ugrnn.update
  return old_bar, product_bar, hidden_bar, hidden_bar


def _weights_adjoint(
  params: GatedInputParams, steps: Steps, hidden_bars: jax.Array
) -> tuple[jax.Array, jax.Array, dict[str, jax.Array]]:
  mixing = steps.gates.mixing
  product_bars = _bars_of(steps.factors, mixing, hidden_bars)
  gradients = {}
  if params.recurrent_bias is not None:
    gradients["recurrent_bias"] = total(jnp.split(product_bars, 3, -1)[2])
  drive_bars = _bars_of(steps.factors, 1 - mixing, hidden_bars)
  return drive_bars, product_bars, gradients


def _gate_adjoints(
  params: GatedInputParams, steps: Steps, hidden_bar: jax.Array
) -> GatedInputAdjoints:
  gates, factors = steps.gates, steps.factors
  of_ugrnn = ugrnn.adjoints(gates.ugrnn, steps.carry, steps.kept, hidden_bar)
  return GatedInputAdjoints(
    hidden=hidden_bar,
    update_gate=of_ugrnn.update_gate,
    input_gate=hidden_bar * factors.candidate * gates.difference,
    candidate=of_ugrnn.candidate,
  )


cell = Cell(
  "gated_input",
  init,
  Equations(
    _step,
    _derivatives,
    _step_adjoint,
    _weights_adjoint,
    _gate_adjoints,
    parts=3,
  ),
)
step, forward = cell.step, cell.forward
backward, apply = cell.backward, cell.apply
