"""Layers on top of each other, all of which work at once on a grid.

With l the number of a layer, p a position, and p - d_a e_a its neighbour along
axis a, each of m layers computes

  h_l(p) = cell_l(h_{l-1}(p), h_l(p - d_1 e_1), ..., h_l(p - d_n e_n)).

The layers are thus a grid of n + 1 axes, of which the first is that of the
layers and has other weights at every place.  The wavefront of that grid is a
pipeline: in round k layer l works on its diagonal k - l.  It takes

  S_1 + ... + S_n - n + m  rounds,  H + W + m - 2 in two dimensions,

where one layer after the other takes m (S_1 + ... + S_n - n + 1).  Adjoints
take as many on their way back, from the last layer to the first.  All layers
must start at the same corner and have the same size.  The layers of a round
make one product, and what all layers compute is in memory at once.
"""

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp

from revmom.cells.grids import grid, grid_weights
from revmom.cells.grids.sweep import Recurrence, sweep
from revmom.numerics import accumulator

OfLayer = Callable[[Any], Recurrence]


def check(layers: Sequence[Any]) -> None:
  """Raises ValueError unless layers can work at once, each on the one below."""
  if not layers:
    raise ValueError("params have no layer; give at least one.")
  first = _without_inputs(layers[0])
  for number, layer in enumerate(layers):
    if number and layer.input_weights.shape[0] != _hidden_size(layer):
      raise ValueError(
        f"layer {number} has {layer.input_weights.shape[0]} inputs and "
        f"{_hidden_size(layer)} outputs; in a pipeline every layer but the "
        "first has as many inputs as outputs."
      )
    if _described(_without_inputs(layer)) != _described(first):
      raise ValueError(
        f"layer {number} has other parameters than layer 0, "
        f"{_described(_without_inputs(layer))} and {_described(first)}: the "
        "layers of a pipeline are the same cell, of the same size and type. "
        "Use another schedule for layers that differ."
      )


def _hidden_size(layer: Any) -> int:
  return layer.recurrent_weights.shape[1]


def _without_inputs(layer: Any) -> Any:
  return layer._replace(input_weights=None)


def _described(layer: Any) -> str:
  return str(jax.tree.map(lambda leaf: f"{leaf.dtype}{leaf.shape}", layer))


def forward(
  of_layer: OfLayer,
  layers: Sequence[Any],
  xs: jax.Array,
  valid: jax.Array | None,
  plan: grid.Plan,
  keep: Callable[..., Any],
) -> Any:
  """What is kept of the states of all layers [m, S_1, ..., S_n, ...].

  Args:
    of_layer: the forward pass of a layer with some parameters.
    layers: their parameters.
    xs: the inputs of the first, zero outside of the valid cells.
    valid: bool [S_1, ..., S_n, B, 1], or None.
    plan: of every layer.
    keep: chooses what to return.
  """
  drives = [grid_weights.drive(layers[0], xs)]
  for layer in layers[1:]:
    zeros = jnp.zeros_like(drives[0])
    bias = 0 if layer.bias is None else layer.bias.astype(zeros.dtype)
    drives.append(zeros + bias)
  onwards = [layer.input_weights for layer in layers[1:]]
  local = _everywhere(valid, len(layers))
  return _sweep(of_layer, layers, onwards, drives, local, plan, keep)


def backward(
  of_layer: OfLayer,
  layers: Sequence[Any],
  output_bars: jax.Array,
  seen: Any,
  valid: jax.Array | None,
  plan: grid.Plan,
  keep: Callable[..., Any],
) -> Any:
  """What is kept of the adjoints of all layers.

  Args:
    of_layer: the backward pass of a layer with some parameters.
    layers: their parameters.
    output_bars: the adjoints of the outputs of the last layer, zero outside
      of the valid cells.
    seen: what it reads of the forward pass, for all layers.
    valid, plan: of `forward`.
    keep: chooses what to return.
  """
  dtype = accumulator(layers[0].input_weights.dtype)
  last = output_bars.astype(dtype)
  bars = [last, *(jnp.zeros_like(last) for _ in layers[1:])]
  onwards = [layer.input_weights.T for layer in layers[:0:-1]]
  local = _reversed(seen), _everywhere(valid, len(layers))
  kept = _sweep(
    of_layer, layers[::-1], onwards, bars, local, plan.reversed(), keep
  )
  return _reversed(kept)


def _reversed(tree: Any) -> Any:
  return jax.tree.map(lambda values: jnp.flip(values, 0), tree)


def _everywhere(valid: jax.Array | None, layers: int) -> jax.Array | None:
  return (
    None if valid is None else jnp.broadcast_to(valid, (layers, *valid.shape))
  )


def _sweep(
  of_layer: OfLayer,
  layers: Sequence[Any],
  onwards: Sequence[jax.Array],
  received: Sequence[jax.Array],
  local: Any,
  plan: grid.Plan,
  keep: Callable[..., Any],
) -> Any:
  """The wavefront through layers, in the order in which they work.

  Args:
    of_layer: as above.
    layers: the parameters.
    onwards: what the message of each layer but the last is multiplied with
      for the next layer.
    received: what each layer gets from elsewhere.
    local: further inputs [m, S_1, ..., S_n, ...].
    plan, keep: as above.
  """
  stacked = _stack([_without_inputs(layer) for layer in layers])
  weights = jax.vmap(lambda params: of_layer(params).weights)(stacked)
  # The last layer's message goes nowhere.
  to_next = jnp.stack([*onwards, jnp.zeros_like(weights[0][0])])

  def cell(received, memories, local):
    def one(params, received, memories, local):
      return of_layer(params).cell(received, memories, local)

    return jax.vmap(one)(stacked, received, memories[1:], local)

  def memory(state, axis):
    return single.memory(state, axis - 1) if axis else None

  single = of_layer(layers[0])
  return sweep(
    single._replace(weights=(to_next, *weights), cell=cell, memory=memory),
    jnp.stack(received),
    local,
    grid.Plan((1, *plan.direction), "wavefront"),
    keep,
  )


def _stack(trees: Sequence[Any]) -> Any:
  return jax.tree.map(lambda *leaves: jnp.stack(leaves), *trees)


def each(
  gradients: Callable[..., tuple[Any, jax.Array]],
  layers: Sequence[Any],
  xs: jax.Array,
  hidden: jax.Array,
  *others: Any,
) -> tuple[Any, jax.Array]:
  """Gradients of every layer's parameters, and of the first one's inputs.

  Args:
    gradients: (params, inputs, outputs, ...) -> those of one layer.
    layers: the parameters.
    xs: the inputs of the first layer.
    hidden: the outputs of all [m, ...].
    *others: of all layers.
  """
  results = [
    gradients(
      layer,
      hidden[number - 1] if number else xs,
      hidden[number],
      *jax.tree.map(lambda values, number=number: values[number], others),
    )
    for number, layer in enumerate(layers)
  ]
  params_bars = (list if isinstance(layers, list) else tuple)(
    params_bar for params_bar, _ in results
  )
  return params_bars, results[0][1]
