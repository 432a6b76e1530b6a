"""The plain recurrent network (Elman 1990).

h_t = tanh(x_t W + h_{t-1} R + b).                                  (1)
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from revmom.cells.initialisation import shared_fields
from revmom.cells.sequences.cell import Cell
from revmom.cells.sequences.equations import Equations, Parts, Steps


class ElmanParams(NamedTuple):
  """Parameters of a plain recurrent network; what is off is None."""

  input_weights: jax.Array  # W [D, H]
  recurrent_weights: jax.Array  # R [H, H]
  bias: jax.Array | None  # b [H]
  input_gain: jax.Array | None  # of layer normalisation [H]
  recurrent_gain: jax.Array | None  # of layer normalisation [H]
  initial_carry: jax.Array | None  # [H], if it is learned


class ElmanAdjoints(NamedTuple):
  """dL/dh_t of every step [T, B, H]."""

  hidden: jax.Array


def init(
  key: jax.Array,
  input_size: int,
  hidden_size: int,
  *,
  bias: bool = True,
  layer_norm: bool = False,
  learned_carry: bool = False,
  dtype: jax.typing.DTypeLike = jnp.float32,
) -> ElmanParams:
  """Parameters, uniform within 1 / sqrt(hidden_size).

  Args:
    key: of the random weights.
    input_size, hidden_size: D and H.
    bias: whether there is one.
    layer_norm: normalise x W and h R, each with gains (Ba et al. 2016).
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
    gates=1,
    layer_norm=layer_norm,
    learned_carry=learned_carry,
    dtype=dtype,
  )
  zeros = jnp.zeros(hidden_size, dtype)
  return ElmanParams(bias=zeros if bias else None, **fields)


def _step(
  params: ElmanParams,
  drive: Parts,
  product: jax.Array,
  hidden: jax.Array,
  kept: Any,
) -> tuple[jax.Array, jax.Array]:
  """Equation (1)."""
  new = jnp.tanh(drive[0] + product)
  return new, new


def _derivatives(
  params: ElmanParams, new: jax.Array, hidden: jax.Array, kept: Any
) -> jax.Array:
  return 1 - new * new


def _step_adjoint(
  params: ElmanParams, slope: jax.Array, hidden_bar: jax.Array
) -> tuple[None, jax.Array, jax.Array, ElmanAdjoints]:
  drive_bar = hidden_bar * slope
  return None, drive_bar, drive_bar, ElmanAdjoints(hidden_bar)


def _weights_adjoint(
  params: ElmanParams, steps: Steps, drive_bars: jax.Array
) -> tuple[jax.Array, jax.Array, dict[str, jax.Array]]:
  return drive_bars, drive_bars, {}


def _gate_adjoints(
  params: ElmanParams, steps: Steps, states_bar: ElmanAdjoints
) -> ElmanAdjoints:
  return states_bar


cell = Cell(
  "elman",
  init,
  Equations(
    _step, _derivatives, _step_adjoint, _weights_adjoint, _gate_adjoints
  ),
  has_candidate=False,
)
step, forward = cell.step, cell.forward
backward, apply = cell.backward, cell.apply
