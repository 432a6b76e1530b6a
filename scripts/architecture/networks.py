"""The networks of scripts/architecture_costs.py, and what textbooks say.

Sizes are named as there: t steps or height H and width W, d layers, k units or
features of each.
"""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from revmom.cells import elman, lstm
from revmom.models import (
  causal_transformer,
  gated_pixelcnn,
  pixel_mdrnn,
  pixelcnn,
  row_lstm,
  wavenet,
)

OUTPUTS = 2  # parameters of a conditional distribution
Sizes = Mapping[str, int]


class Program(NamedTuple):
  """A function of parameters and data, and the shapes of both."""

  function: Callable[..., Any]
  params: Any
  data: Any
  feature_axes: int = 1  # of the data


class Network(NamedTuple):
  """How to make a network of some sizes, and how its costs should grow."""

  build: Callable[[Sizes], Program]
  data: tuple[str, ...]  # sizes of the data
  connections: str
  rounds: str
  exponents: Mapping[str, int]  # of connections


def floats(*shape: int) -> jax.ShapeDtypeStruct:
  return jax.ShapeDtypeStruct(shape, jnp.float32)


def model(network: Any, data: Any, feature_axes: int = 1) -> Program:
  """An autoregressive network on one event."""
  params = jax.eval_shape(
    lambda key, x: network.init(key, x, OUTPUTS), jax.random.key(0), data
  )
  function = lambda params, x: network.forward(params, x, None)
  return Program(function, params, data, feature_axes)


def image(sizes: Sizes) -> jax.ShapeDtypeStruct:
  return floats(1, sizes["H"], sizes["W"], 1)


def sequence(sizes: Sizes) -> jax.ShapeDtypeStruct:
  return floats(1, sizes["t"], 1)


def recurrent(cell: Any) -> Callable[[Sizes], Program]:
  """Layers of a cell, one on top of the other."""

  def build(sizes: Sizes) -> Program:
    k = sizes["k"]
    params = jax.eval_shape(
      lambda key: [
        cell.init(key, k if layer else 1, k) for layer in range(sizes["d"])
      ],
      jax.random.key(0),
    )

    def run(params, xs):
      for own in params:
        xs = cell.apply(own, xs)[0]
      return xs

    return Program(run, params, floats(sizes["t"], 1, 1), 2)

  return build


def wave(sizes: Sizes) -> Program:
  dilations = [2 ** (layer % 5) for layer in range(sizes["d"])]
  network = wavenet(dilations, residual=sizes["k"], skip=sizes["k"])
  return model(network, sequence(sizes))


def convolutional(make: Callable[..., Any]) -> Callable[[Sizes], Program]:
  def build(sizes: Sizes) -> Program:
    return model(make((3,) * sizes["d"], sizes["k"]), image(sizes))

  return build


def pixel_lstm(make: Callable[..., Any]) -> Callable[[Sizes], Program]:
  return lambda sizes: model(make(sizes["k"], sizes["d"], 3), image(sizes))


def grid(schedule: str) -> Callable[[Sizes], Program]:
  def build(sizes: Sizes) -> Program:
    network = pixel_mdrnn(sizes["k"], sizes["d"], schedule=schedule)
    return model(network, image(sizes))

  return build


def attention(sizes: Sizes) -> Program:
  network = causal_transformer(sizes["k"], sizes["d"], 4)
  return model(network, floats(1, sizes["t"]), 0)


LINES = {"t": 1, "d": 1, "k": 2}
IMAGES = {"H": 1, "W": 1, "d": 1, "k": 2}

NETWORKS = {
  "wavenet": Network(
    wave,
    ("t",),
    "t d k^2",
    "d",
    LINES,
  ),
  "transformer": Network(attention, ("t",), "t d k^2", "d", LINES),
  "elman": Network(recurrent(elman), ("t",), "t d k^2", "t + d", LINES),
  "lstm": Network(recurrent(lstm), ("t",), "t d k^2", "t + d", LINES),
  "pixelcnn": Network(
    convolutional(pixelcnn),
    ("H", "W"),
    "H W d k^2",
    "d",
    IMAGES,
  ),
  "gated_pixelcnn": Network(
    convolutional(gated_pixelcnn),
    ("H", "W"),
    "H W d k^2",
    "d",
    IMAGES,
  ),
  "row_lstm": Network(
    pixel_lstm(row_lstm),
    ("H", "W"),
    "H W d k^2",
    "H + d",
    IMAGES,
  ),
  "mdrnn": Network(
    grid("rows"),
    ("H", "W"),
    "H W d k^2",
    "H + W + d",
    IMAGES,
  ),
  "mdrnn_wavefront": Network(
    grid("wavefront"),
    ("H", "W"),
    "H W d k^2",
    "H + W + d",
    {"d": 1, "k": 2},  # on the diagonals there are cells outside of the grid
  ),
}
