"""Gated recurrent unit (Cho et al. 2014; Chung et al. 2014, equations 5-8).

    r, z = sigmoid(x_t W + h_{t-1} R + b),                              (1)
    n = tanh(x_t W_n + (r h_{t-1}) R_n + b_n)             reset before, (2)
    n = tanh(x_t W_n + r (h_{t-1} R_n + b'_n) + b_n)       reset after, (3)
    h_t = (1 - z) h_{t-1} + z n.                                        (4)

The reset gate acts before the product in the papers, after it in cuDNN, PyTorch
and Flax, where one product with all recurrent weights remains.  Those three
also exchange z and 1 - z in (4): the weights of z change their sign.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from revmom.cells.initialisation import check_sizes, uniform
from revmom.cells.sequences.affine import (
  gain_adjoint,
  gained_product,
  normalised_product,
  product_adjoint,
)
from revmom.cells.sequences.cell import Cell
from revmom.cells.sequences.equations import Equations, Parts, Steps
from revmom.numerics import Normalised, outer_products, sigmoid, total


class GRUParams(NamedTuple):
  """Parameters; gates are in the order r, z, n, and what is off is None."""

  input_weights: jax.Array  # W [D, 3H]
  recurrent_weights: jax.Array  # R [H, 3H]; [H, 2H] if the reset is before
  candidate_weights: jax.Array | None  # R_n [H, H] if the reset is before
  bias: jax.Array | None  # b [3H]
  candidate_bias: jax.Array | None  # b'_n [H] if the reset is after
  input_gain: jax.Array | None  # of layer normalisation [3H]
  recurrent_gain: jax.Array | None  # [3H]; [2H] if the reset is before
  candidate_gain: jax.Array | None  # [H] if the reset is before
  initial_carry: jax.Array | None  # [H], if it is learned


class GRUAdjoints(NamedTuple):
  """Adjoints of every step, arrays [T, B, H]."""

  hidden: jax.Array  # dL/dh_t
  reset_gate: jax.Array  # dL/dr
  update_gate: jax.Array  # dL/dz
  candidate: jax.Array  # dL/dn


class _Gates(NamedTuple):
  reset: jax.Array  # r
  update: jax.Array  # z
  candidate: jax.Array  # n
  resettable: jax.Array | None  # what r multiplies in (3)


class _Factors(NamedTuple):
  """What the adjoint of the new state is multiplied by.

  In (2) it is the adjoint of r h_{t-1} that is multiplied for the reset gate.
  """

  reset: jax.Array  # for what goes into r
  update: jax.Array  # for what goes into z
  candidate: jax.Array  # for what goes into n
  gates: _Gates
  reset_product: Normalised | None  # norm((r h_{t-1}) R_n), in (2)


class _Bars(NamedTuple):
  hidden: jax.Array  # of h_t
  reset_hidden: jax.Array | None  # of r h_{t-1}, in (2)
  reset_product: jax.Array | None  # of (r h_{t-1}) R_n, if it is normalised


def init(
  key: jax.Array,
  input_size: int,
  hidden_size: int,
  *,
  reset: str = "after",
  bias: bool = True,
  layer_norm: bool = False,
  learned_carry: bool = False,
  dtype: jax.typing.DTypeLike = jnp.float32,
) -> GRUParams:
  """Parameters, uniform within 1 / sqrt(hidden_size).

  Args:
    key: of the random weights.
    input_size, hidden_size: D and H.
    reset: "before" the recurrent product, equation (2), or "after" it, (3).
    bias: whether there are any.
    layer_norm: normalise each product, with gains (Ba et al. 2016).
    learned_carry: make the initial carry a parameter.
    dtype: of the parameters.

  Raises:
    ValueError: if `reset` is something else, or a size is no positive
      integer.

  >>> params = init(jax.random.key(0), 3, 5, reset="before")
  >>> outputs, carry = apply(params, jnp.ones((7, 2, 3)))
  >>> outputs.shape, carry.shape
  ((7, 2, 5), (2, 5))
  """
  check_sizes(input_size=input_size, hidden_size=hidden_size)
  if reset not in ("before", "after"):
    raise ValueError(
      f"reset must be 'before' or 'after' the recurrent product; got {reset!r}."
    )
  before, size = reset == "before", hidden_size
  keys = jax.random.split(key, 3)
  weights = lambda key, *shape: uniform(key, shape, size, dtype)
  ones = lambda size: jnp.ones(size, dtype) if layer_norm else None
  zeros = lambda size: jnp.zeros(size, dtype)
  columns = 2 * size if before else 3 * size
  return GRUParams(
    input_weights=weights(keys[0], input_size, 3 * size),
    recurrent_weights=weights(keys[1], size, columns),
    candidate_weights=weights(keys[2], size, size) if before else None,
    bias=zeros(3 * size) if bias else None,
    candidate_bias=zeros(size) if bias and not before else None,
    input_gain=ones(3 * size),
    recurrent_gain=ones(columns),
    candidate_gain=ones(size) if before else None,
    initial_carry=zeros(size) if learned_carry else None,
  )


def _step(
  params: GRUParams,
  drive: Parts,
  product: jax.Array,
  hidden: jax.Array,
  kept: Any,
) -> tuple[jax.Array, _Gates]:
  """Equations (1) to (4)."""
  size = hidden.shape[-1]
  of_reset, of_update, of_candidate = drive
  r = sigmoid(of_reset + product[..., :size])
  z = sigmoid(of_update + product[..., size : 2 * size])
  resettable = None
  if params.candidate_weights is None:
    resettable = product[..., 2 * size :]
    if params.candidate_bias is not None:
      resettable = resettable + params.candidate_bias.astype(r.dtype)
    inner = r * resettable
  else:
    inner = gained_product(
      r * hidden, params.candidate_weights, params.candidate_gain
    )
  n = jnp.tanh(of_candidate + inner)
  return (1 - z) * hidden + z * n * kept, _Gates(r, z, n, resettable)


def _derivatives(
  params: GRUParams, gates: _Gates, hidden: jax.Array, kept: Any
) -> _Factors:
  r, z, n, resettable = gates
  of_candidate = z * kept * (1 - n * n)
  if resettable is None:
    of_reset = hidden * r * (1 - r)
  else:
    of_reset = of_candidate * resettable * r * (1 - r)
  reset_product = None
  if params.candidate_weights is not None:
    reset_product = normalised_product(
      r * hidden, params.candidate_weights, params.candidate_gain
    )
  of_update = (n * kept - hidden) * z * (1 - z)
  return _Factors(of_reset, of_update, of_candidate, gates, reset_product)


def _product_bars(
  factors: _Factors, hidden_bar: jax.Array, reset_hidden_bar: Any
) -> jax.Array:
  """Of h R, or of norm(h R) gain."""
  if reset_hidden_bar is not None:
    parts = [reset_hidden_bar * factors.reset, hidden_bar * factors.update]
    return jnp.concatenate(parts, -1)
  of_candidate = factors.candidate * factors.gates.reset
  parts = [factors.reset, factors.update, of_candidate]
  return jnp.concatenate(parts, -1) * jnp.concatenate([hidden_bar] * 3, -1)


def _step_adjoint(
  params: GRUParams, factors: _Factors, hidden_bar: jax.Array
) -> tuple[jax.Array, jax.Array, _Bars, tuple[jax.Array, Any]]:
  old_bar = hidden_bar * (1 - factors.gates.update)
  reset_hidden_bar, reset_product_bar = None, None
  if params.candidate_weights is not None:
    reset_product_bar, reset_hidden_bar = product_adjoint(
      params.candidate_weights,
      params.candidate_gain,
      factors.reset_product,
      hidden_bar * factors.candidate,
    )
    old_bar = old_bar + reset_hidden_bar * factors.gates.reset
  product_bar = _product_bars(factors, hidden_bar, reset_hidden_bar)
  if factors.reset_product is None:
    reset_product_bar = None
  bars = _Bars(hidden_bar, reset_hidden_bar, reset_product_bar)
  return old_bar, product_bar, bars, (hidden_bar, reset_hidden_bar)


def _weights_adjoint(
  params: GRUParams, steps: Steps, bars: _Bars
) -> tuple[jax.Array, jax.Array, dict[str, jax.Array]]:
  factors, hidden = steps.factors, steps.carry
  product_bars = _product_bars(factors, bars.hidden, bars.reset_hidden)
  candidate_bars = bars.hidden * factors.candidate
  gradients = {}
  if params.candidate_weights is not None:
    gradients["candidate_weights"] = outer_products(
      factors.gates.reset * hidden,
      candidate_bars if bars.reset_product is None else bars.reset_product,
      params.candidate_weights.dtype,
    )
  if params.candidate_bias is not None:
    gradients["candidate_bias"] = total(candidate_bars * factors.gates.reset)
  if params.candidate_gain is not None:
    gradients["candidate_gain"] = gain_adjoint(
      factors.reset_product, candidate_bars
    )
  gate_bars = product_bars[..., : 2 * hidden.shape[-1]]
  drive_bars = jnp.concatenate([gate_bars, candidate_bars], -1)
  return drive_bars, product_bars, gradients


def _gate_adjoints(
  params: GRUParams, steps: Steps, states_bar: tuple[jax.Array, Any]
) -> GRUAdjoints:
  hidden_bar, reset_hidden_bar = states_bar
  gates, hidden, kept, factors = steps
  if gates.resettable is None:
    reset_bar = reset_hidden_bar * hidden
  else:
    reset_bar = hidden_bar * factors.candidate * gates.resettable
  return GRUAdjoints(
    hidden=hidden_bar,
    reset_gate=reset_bar,
    update_gate=hidden_bar * (gates.candidate * kept - hidden),
    candidate=hidden_bar * gates.update * kept,
  )


cell = Cell(
  "gru",
  init,
  Equations(
    _step,
    _derivatives,
    _step_adjoint,
    _weights_adjoint,
    _gate_adjoints,
    parts=3,
    transposed=("recurrent_weights", "candidate_weights"),
  ),
)
step, forward = cell.step, cell.forward
backward, apply = cell.backward, cell.apply
