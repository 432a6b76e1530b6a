"""The plain recurrent network (Elman 1990).

h_t = tanh(x_t W + h_{t-1} R + b).                                  (1)
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
  weights_adjoint,
)
from revmom.cells.sequences.cell import Cell, check_sizes, uniform
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


class _Factors(NamedTuple):
  slope: jax.Array  # 1 - h^2
  product: Normalised | None  # norm(h R)


class _Bars(NamedTuple):
  drive: jax.Array  # of x W + b, which is that of norm(h R) gain as well
  product: jax.Array | None  # of h R, if it is normalised


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


def _sizes(params: ElmanParams) -> int:
  return params.recurrent_weights.shape[0]


def _step(
  params: ElmanParams,
  drive: Parts,
  hidden: jax.Array,
  kept: Any,
) -> tuple[jax.Array, jax.Array]:
  """Equation (1)."""
  del kept  # there is no candidate
  new = jnp.tanh(
    drive[0]
    + gained_product(hidden, params.recurrent_weights, params.recurrent_gain)
  )
  return new, new


def _derivatives(
  params: ElmanParams, new: jax.Array, hidden: jax.Array, kept: Any
) -> tuple[_Factors, Normalised | None]:
  del kept
  normalised = normalised_product(
    hidden, params.recurrent_weights, params.recurrent_gain
  )
  return _Factors(1 - new * new, normalised), normalised


def _step_adjoint(
  params: ElmanParams, factors: _Factors, hidden_bar: jax.Array
) -> tuple[jax.Array, _Bars, ElmanAdjoints]:
  drive_bar = hidden_bar * factors.slope
  product_bar, old_bar = product_adjoint(
    params.recurrent_weights, params.recurrent_gain, factors.product, drive_bar
  )
  bars = _Bars(drive_bar, None if factors.product is None else product_bar)
  return old_bar, bars, ElmanAdjoints(hidden_bar)


def _weights_adjoint(
  params: ElmanParams,
  normalised: Normalised | None,
  hidden: jax.Array,
  bars: _Bars,
) -> tuple[jax.Array, dict[str, jax.Array]]:
  product_bars = bars.drive if bars.product is None else bars.product
  dtype = params.recurrent_weights.dtype
  gradients = {
    "recurrent_weights": weights_adjoint(hidden, product_bars, dtype)
  }
  if normalised is not None:
    gradients["recurrent_gain"] = gain_adjoint(normalised, bars.drive)
  return bars.drive, gradients


def _gate_adjoints(local: Any, states_bar: ElmanAdjoints) -> ElmanAdjoints:
  del local
  return states_bar


cell = Cell(
  "elman",
  init,
  Equations(
    _sizes,
    _step,
    _derivatives,
    _step_adjoint,
    _weights_adjoint,
    _gate_adjoints,
  ),
  has_candidate=False,
)
step, forward, backward, apply = (
  cell.step,
  cell.forward,
  cell.backward,
  cell.apply,
)
