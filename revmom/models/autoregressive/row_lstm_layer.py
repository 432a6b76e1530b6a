"""The layer of PixelRNN that goes down an image row by row."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from revmom.cells.sequences.deferred import defer_weights
from revmom.models.affine_layer import Affine
from revmom.models.autoregressive.causal_convolution import (
  channel_mask,
  groups,
  init_affine,
  pointwise,
)
from revmom.models.autoregressive.pixel_layers import (
  Layer,
  get,
  put,
  two_rows,
)
from revmom.numerics import accumulator, product, sigmoid


class RowParams(NamedTuple):
  """A row LSTM; gates are in the order i, f, o, g."""

  inputs: Affine  # K^is of the pixels to the left and here [2, D, 4F]
  recurrent_weights: jax.Array  # K^ss of three pixels above [3, F, 4F]


class RowState(NamedTuple):
  """What the next row sees."""

  h: jax.Array
  c: jax.Array


class RowCache(NamedTuple):
  """Of generation."""

  inputs: jax.Array  # two rows
  states: RowState  # two rows


def row_lstm_layer(hidden_size: int, channels: int) -> Layer:
  r"""An LSTM down the image, each row of which sees the one above.

  .. math::
    [o_i, f_i, i_i, g_i] &= \sigma(K^{ss} * h_{i-1} + K^{is} * x_i), \\
    c_i &= f_i \odot c_{i-1} + i_i \odot g_i, \qquad
    h_i = o_i \odot \tanh(c_i)

  (equation 3, with tanh for g), convolutions of three pixels along the row.
  The masked one, :math:`K^{is}`, has two taps; what mask B would set to zero
  on the right is not there.

  Args:
    hidden_size: F.
    channels: groups of features.
  """
  gate_groups = np.tile(groups(hidden_size, channels), 4)

  def init(key, input_size, dtype):
    of_inputs, of_state = jax.random.split(key)
    columns = 4 * hidden_size
    inputs = init_affine(of_inputs, (2, input_size, columns), dtype)
    remember = slice(hidden_size, 2 * hidden_size)
    bias = inputs.bias.at[remember].set(1)
    shape = (3, hidden_size, columns)
    recurrent = init_affine(of_state, shape, dtype).weights
    return RowParams(inputs._replace(bias=bias), recurrent)

  def masked(params):
    weights, bias = params.inputs
    here = channel_mask(groups(weights.shape[1], channels), gate_groups, False)
    mask = np.stack([np.ones_like(here), here])
    inputs = Affine(jnp.asarray(mask, weights.dtype) * weights, bias)
    return params._replace(inputs=inputs)

  def drive(params, left, here):
    """K^is * x + b."""
    weights, bias = params.inputs
    weights = weights.reshape(-1, weights.shape[-1])
    return pointwise(Affine(weights, bias), jnp.concatenate([left, here], -1))

  def advance(recurrent, three, c, drive):
    weights = recurrent.reshape(-1, recurrent.shape[-1])
    gates = drive + product(jnp.concatenate(three, -1), weights)
    i, f, o, g = jnp.split(gates, 4, -1)
    c = sigmoid(f) * c + sigmoid(i) * jnp.tanh(g)
    return RowState(sigmoid(o) * jnp.tanh(c), c)

  def forward(params, xs, pixels):
    left = jnp.pad(xs[:, :-1], ((0, 0), (1, 0), (0, 0), (0, 0)))
    drives = drive(params, left, xs)

    def row(recurrent, state, drive):
      padded = jnp.pad(state.h, ((1, 1), (0, 0), (0, 0)))
      three = [padded[:-2], state.h, padded[2:]]
      state = advance(recurrent, three, state.c, drive)
      return state, state.h

    zeros = jnp.zeros((*xs.shape[1:3], hidden_size), drives.dtype)
    first = RowState(zeros, zeros)
    sweep = defer_weights(row)
    return sweep(params.recurrent_weights, drives, first)[0]

  def start(params, width, batch):
    dtype = accumulator(params.recurrent_weights.dtype)
    size = params.inputs.weights.shape[1]
    like: Any = lambda size: jax.ShapeDtypeStruct((batch, size), dtype)
    state = RowState(like(hidden_size), like(hidden_size))
    return RowCache(
      two_rows(width, batch, like(size)), two_rows(width, batch, state)
    )

  def step(params, cache, place, x, images):
    left = get(cache.inputs, place, 0, -1)
    above = [get(cache.states, place, 1, right) for right in (-1, 0, 1)]
    state = advance(
      params.recurrent_weights,
      [state.h for state in above],
      above[1].c,
      drive(params, left, x),
    )
    inputs = put(cache.inputs, place, x)
    return state.h, RowCache(inputs, put(cache.states, place, state))

  return Layer(init, masked, forward, start, step)
