"""The plain recurrent network (Elman 1990).

h_t = tanh(x_t W + h_{t-1} R + b).                                  (1)
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from revmom.cells.initialisation import check_sizes, uniform
from revmom.cells.sequences.cell import Cell
from revmom.cells.sequences.equations import Equations, Parts


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
  check_sizes(input_size=input_size, hidden_size=hidden_size)
  keys = jax.random.split(key, 2)
  ones = jnp.ones(hidden_size, dtype) if layer_norm else None
  zeros = jnp.zeros(hidden_size, dtype)
  return ElmanParams(
    uniform(keys[0], (input_size, hidden_size), hidden_size, dtype),
    uniform(keys[1], (hidden_size, hidden_size), hidden_size, dtype),
    zeros if bias else None,
    ones,
    ones,
    zeros if learned_carry else None,
  )


def _step(
  params: ElmanParams,
  drive: Parts,
  product: jax.Array,
  hidden: jax.Array,
  kept: Any,
) -> tuple[jax.Array, jax.Array]:
  """Equation (1)."""
  del params, hidden, kept  # it sees h in the product; there is no candidate
  new = jnp.tanh(drive[0] + product)
  return new, new


def _derivatives(
  params: ElmanParams, new: jax.Array, hidden: jax.Array, kept: Any
) -> tuple[jax.Array, None]:
  """The slope 1 - h^2."""
  del params, hidden, kept
  return 1 - new * new, None


def _step_adjoint(
  params: ElmanParams, slope: jax.Array, hidden_bar: jax.Array
) -> tuple[None, jax.Array, jax.Array, ElmanAdjoints]:
  del params
  drive_bar = hidden_bar * slope
  return None, drive_bar, drive_bar, ElmanAdjoints(hidden_bar)


def _weights_adjoint(
  params: ElmanParams, local: None, hidden: jax.Array, drive_bars: jax.Array
) -> tuple[jax.Array, jax.Array, dict[str, jax.Array]]:
  del params, local, hidden
  return drive_bars, drive_bars, {}


def _gate_adjoints(local: None, states_bar: ElmanAdjoints) -> ElmanAdjoints:
  del local
  return states_bar


cell = Cell(
  "elman",
  init,
  Equations(
    _step, _derivatives, _step_adjoint, _weights_adjoint, _gate_adjoints
  ),
  has_candidate=False,
)
step, forward, backward, apply = (
  cell.step,
  cell.forward,
  cell.backward,
  cell.apply,
)
