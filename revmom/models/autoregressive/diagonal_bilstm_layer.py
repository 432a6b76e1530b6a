"""The layer of PixelRNN that goes through an image from two of its corners."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from revmom.cells.grids import mdlstm
from revmom.models.autoregressive.causal_convolution import channel_mask, groups
from revmom.models.autoregressive.pixel_layers import (
  Layer,
  Place,
  get,
  put,
  two_rows,
)
from revmom.numerics import accumulator

RIGHTWARDS, LEFTWARDS = (1, 1), (1, -1)


class DiagonalParams(NamedTuple):
  """Of both directions."""

  rightwards: mdlstm.Params
  leftwards: mdlstm.Params


class DiagonalCache(NamedTuple):
  """Of generation; two rows each."""

  inputs: jax.Array
  rightwards: mdlstm.State
  leftwards: mdlstm.State


def diagonal_bilstm_layer(hidden_size: int, channels: int) -> Layer:
  r"""Two LSTMs over the grid, from the upper left and the upper right corner.

  .. math:: h(i, j) = h_\rightarrow(i, j) + h_\leftarrow(i - 1, j)

  (section 3.3): what the second one says of a pixel depends on pixels to its
  right, and so it is heard one row below only.  It may read the pixels
  themselves, then, and does: in the paper it reads what is known before them
  only, and nothing tells the start of a row of the last pixel of the row above.

  The cells are `mdlstm`'s stable ones: the memory comes from the left and from
  above, in learned shares, where the paper's comes along the row only.

  Args:
    hidden_size: F.
    channels: groups of features.
  """
  gate_groups = np.tile(groups(hidden_size, channels), 5)

  def init(key, input_size, dtype):
    return DiagonalParams(
      *(
        mdlstm.init(key, size, hidden_size, cell="stable", dtype=dtype)
        for key, size in zip(
          jax.random.split(key),
          (input_size, input_size + channels),
          strict=True,
        )
      )
    )

  def masked(params):
    weights = params.rightwards.input_weights
    mask = channel_mask(groups(len(weights), channels), gate_groups, False)
    weights = jnp.asarray(mask, weights.dtype) * weights
    rightwards = params.rightwards._replace(input_weights=weights)
    return params._replace(rightwards=rightwards)

  def forward(params, xs, pixels):
    here = mdlstm.apply(params.rightwards, xs, direction=RIGHTWARDS)
    read = jnp.concatenate([xs, pixels.astype(xs.dtype)], -1)
    above = mdlstm.apply(params.leftwards, read, direction=LEFTWARDS)
    return here + jnp.pad(above[:-1], ((1, 0), (0, 0), (0, 0), (0, 0)))

  def start(params, width, batch):
    weights = params.rightwards.input_weights
    dtype = accumulator(weights.dtype)
    like: Any = lambda size: jax.ShapeDtypeStruct((batch, size), dtype)
    state = mdlstm.State(like(hidden_size), like(hidden_size))
    return DiagonalCache(
      two_rows(width, batch, like(len(weights))),
      two_rows(width, batch, state),
      two_rows(width, batch, state),
    )

  def step(params, cache, place, x, images):
    leftwards = lax.cond(
      (place.column == 0) & (place.row > 0),
      lambda: _sweep_left(params.leftwards, cache, place, images),
      lambda: cache.leftwards,
    )
    neighbours = (
      get(cache.rightwards, place, 1, 0),
      get(cache.rightwards, place, 0, -1),
    )
    state = mdlstm.step(params.rightwards, x, neighbours)
    h = state.h + get(leftwards, place, 1, 0).h
    return h, DiagonalCache(
      put(cache.inputs, place, x),
      put(cache.rightwards, place, state),
      leftwards,
    )

  return Layer(init, masked, forward, start, step)


def _sweep_left(
  params: mdlstm.Params, cache: DiagonalCache, place: Place, images: jax.Array
) -> mdlstm.State:
  """Adds the row above a place, which is complete, to the rows leftwards."""
  before, last = place.row % 2, (place.row - 1) % 2
  features = cache.inputs[last, 1:-1]  # [W, B, D]
  pixels = jnp.swapaxes(images[:, place.row - 1], 0, 1)  # [W, B, C]
  read = jnp.concatenate([features, pixels.astype(features.dtype)], -1)
  above = jax.tree.map(lambda rows: rows[before, 1:-1], cache.leftwards)

  def step(state, now):
    x, above = now
    state = mdlstm.step(params, x, (above, state))
    return state, state

  zeros = jax.tree.map(lambda leaf: jnp.zeros_like(leaf[0]), above)
  _, states = lax.scan(step, zeros, (read, above), reverse=True)
  return jax.tree.map(
    lambda rows, states: rows.at[last, 1:-1].set(states),
    cache.leftwards,
    states,
  )
