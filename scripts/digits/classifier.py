"""Digits by two levels of multidimensional LSTMs from all four corners.

Between the levels blocks of 2 x 2 positions become one (Graves & Schmidhuber
2009, "Offline handwriting recognition with multidimensional recurrent neural
networks", section 3.2), and the mean over all positions decides.
"""

import functools
import math
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp

from revmom.cells import mdlstm, multidirectional

BLOCK = 2  # positions that become one between levels, along each axis
# One for each corner to start from.
DIRECTIONS = (1, 1), (1, -1), (-1, 1), (-1, -1)


class Params(NamedTuple):
  """The classifier; a level has parameters for each of four directions."""

  first: tuple[mdlstm.Params, ...]
  blocks: jax.Array  # [4 positions x 4 directions x H_1, H_2]
  blocks_bias: jax.Array  # [H_2]
  second: tuple[mdlstm.Params, ...]
  read_out: jax.Array  # [4 directions x H_2, classes]
  read_out_bias: jax.Array  # [classes]


def init(key: jax.Array, classes: int, sizes: tuple[int, int]) -> Params:
  """Random weights."""
  keys = jax.random.split(key, 4)
  first, second = sizes
  directions = len(DIRECTIONS)
  level = functools.partial(multidirectional.init_directions, mdlstm.init)
  dense = lambda key, rows, columns: (
    jax.random.normal(key, (rows, columns)) / math.sqrt(rows)
  )
  return Params(
    first=level(keys[0], 1, first),
    blocks=dense(keys[1], BLOCK**2 * directions * first, second),
    blocks_bias=jnp.zeros(second),
    second=level(keys[2], second, second),
    read_out=dense(keys[3], directions * second, classes),
    read_out_bias=jnp.zeros(classes),
  )


def positions(images: jax.Array) -> jax.Array:
  """Images [B, H, W] as a grid [H, W, B, 1] of whole blocks."""
  edges = [(0, -length % BLOCK) for length in images.shape[1:]]
  padded = jnp.pad(images, [(0, 0), *edges])
  return padded.transpose(1, 2, 0)[..., None]


def sweep(level: tuple[mdlstm.Params, ...], xs: jax.Array) -> jax.Array:
  """From all corners: [H, W, B, D] -> [H, W, B, 4 directions x units]."""
  return multidirectional.apply_directions(mdlstm.apply, level, xs)


def merge_blocks(params: Params, ys: jax.Array) -> jax.Array:
  """[H, W, B, D] -> [H / 2, W / 2, B, H_2]."""
  height, width, batch, size = ys.shape
  split = ys.reshape(height // BLOCK, BLOCK, width // BLOCK, BLOCK, batch, size)
  blocks = split.transpose(0, 2, 4, 1, 3, 5).reshape(
    height // BLOCK, width // BLOCK, batch, -1
  )
  return jnp.tanh(blocks @ params.blocks + params.blocks_bias)


def decide(params: Params, ys: jax.Array) -> jax.Array:
  """The outputs of the second level -> logits [B, classes]."""
  return ys.mean((0, 1)) @ params.read_out + params.read_out_bias


def logits(params: Params, images: jax.Array) -> jax.Array:
  """[B, H, W] -> [B, classes]."""
  ys = sweep(params.first, positions(images))
  return decide(params, sweep(params.second, merge_blocks(params, ys)))


def cell_adjoints(
  level: tuple[mdlstm.Params, ...], xs: jax.Array, rest: Callable
) -> tuple[jax.Array, jax.Array]:
  """dlogit/dc of each cell of a level, and what the level puts out.

  Args:
    level: parameters, for each direction.
    xs: inputs of the level [H, W, B, D].
    rest: outputs of the level -> the sum of one logit of each image.

  Returns:
    [directions, H, W, B, units], and the outputs.
  """
  outputs, residuals = zip(
    *(
      mdlstm.forward(params, xs, direction=direction)
      for params, direction in zip(level, DIRECTIONS, strict=True)
    ),
    strict=True,
  )
  ys = jnp.concatenate(outputs, -1)
  bars = jnp.split(jax.grad(rest)(ys), len(level), -1)
  of_directions = [
    mdlstm.backward(*args, adjoints=True).adjoints.c
    for args in zip(level, residuals, bars, strict=True)
  ]
  return jnp.stack(of_directions), ys


class Adjoints(NamedTuple):
  """dlogit/dc of both levels, [directions, H, W, B, units]."""

  first: jax.Array
  second: jax.Array


def adjoints(params: Params, images: jax.Array, labels: jax.Array) -> Adjoints:
  """How the logit of its label depends on every cell of an image."""
  own_logit = lambda scores: jnp.take_along_axis(
    scores, labels[:, None], axis=1
  ).sum()
  second = lambda xs: own_logit(decide(params, sweep(params.second, xs)))
  of_first, ys = cell_adjoints(
    params.first,
    positions(images),
    lambda ys: second(merge_blocks(params, ys)),
  )
  of_second, _ = cell_adjoints(
    params.second,
    merge_blocks(params, ys),
    lambda ys: own_logit(decide(params, ys)),
  )
  return Adjoints(of_first, of_second)
