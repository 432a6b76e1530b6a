"""Several layers of a cell, which read in one direction or in both.

Parameters and carries are tuples over layers of tuples over directions: of one
element, or of two, forward and reverse (Schuster & Paliwal 1997).  Each is what
the cell itself takes, so that layers can be taken out and put together freely.
"""

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp

from revmom.cells.sequences.cell import Cell, swapped

Merge = Callable[[jax.Array, jax.Array], jax.Array]


def concatenate(forward: jax.Array, reverse: jax.Array) -> jax.Array:
  """The outputs of both directions side by side, [..., 2H]."""
  return jnp.concatenate([forward, reverse], -1)


def init(
  cell: Cell,
  key: jax.Array,
  input_size: int,
  hidden_size: int,
  num_layers: int = 1,
  *,
  bidirectional: bool = False,
  merge: Merge = concatenate,
  **options: Any,
) -> tuple[tuple[Any, ...], ...]:
  """Parameters of every layer and direction.

  Args:
    cell: such as `lstm.cell`.
    key: of the random weights.
    input_size: D, of the first layer.
    hidden_size: H, of every layer and direction.
    num_layers: how many.
    bidirectional: whether each layer also reads from the end.
    merge: of the outputs of two directions: the next layer's input size is its
      result's.
    **options: of the cell's `init`.

  Raises:
    ValueError: if there is no layer.

  >>> from revmom.cells import lstm
  >>> params = init(lstm.cell, jax.random.key(0), 3, 5, 2, bidirectional=True)
  >>> [[p.input_weights.shape for p in layer] for layer in params]
  [[(3, 20), (3, 20)], [(10, 20), (10, 20)]]
  """
  if num_layers < 1:
    raise ValueError(f"num_layers is {num_layers}, but must be at least 1.")
  layers = []
  for number in range(num_layers):
    layer = tuple(
      cell.init(
        _stream(key, number, direction), input_size, hidden_size, **options
      )
      for direction in range(2 if bidirectional else 1)
    )
    layers.append(layer)
    input_size = _output_size(cell, layer, merge)
  return tuple(layers)


def apply(
  cell: Cell,
  params: Sequence[Sequence[Any]],
  xs: jax.Array,
  initial_carries: Sequence[Sequence[Any]] | None = None,
  *,
  lengths: jax.Array | None = None,
  batch_major: bool = False,
  merge: Merge = concatenate,
  zoneout: float | tuple[float, ...] = 0.0,
  dropout: float = 0.0,
  layer_dropout: float = 0.0,
  key: jax.Array | None = None,
  recompute: bool = False,
) -> tuple[jax.Array, tuple[tuple[Any, ...], ...]]:
  """The outputs of the last layer; every layer differentiates by `backward`.

  Args:
    cell: such as `lstm.cell`.
    params: from `init`, or any layers whose sizes fit.
    xs: [T, B, D], of the type of the parameters.
    initial_carries: for each layer and direction, of which any may be None:
      the learned one, or zeros.
    lengths: int32 [B]; the reverse direction starts at the end of each
      sequence, and outputs beyond it are zero (before they are merged).
    batch_major: xs [B, T, D], outputs [B, T, ...] instead.
    merge: of the outputs of two directions, [T, B, H] each, such as `jnp.add`.
    zoneout, dropout: within each layer, as for the cell.
    layer_dropout: probability that an output of a layer is left out of the
      inputs of the next, as `dropout` in PyTorch. The last layer has none.
    key: of zoneout and both dropouts; None evaluates.
    recompute: as for the cell.

  Returns:
    The outputs [T, B, H], or merged; and the carries of each layer and
    direction, after the last step of a sequence or, in reverse, its first.

  Raises:
    ValueError: if numbers of layers or directions, a rate, or what goes into a
      cell do not fit.

  >>> from revmom.cells import gru
  >>> params = init(gru.cell, jax.random.key(0), 3, 5, 2, bidirectional=True)
  >>> outputs, carries = apply(gru.cell, params, jnp.ones((7, 2, 3)))
  >>> outputs.shape, jax.tree.map(jnp.shape, carries)
  ((7, 2, 10), (((2, 5), (2, 5)), ((2, 5), (2, 5))))
  """
  if not 0 <= layer_dropout < 1:
    raise ValueError(f"layer_dropout is {layer_dropout}; must be in [0, 1).")
  if initial_carries is None:
    initial_carries = [[None] * len(layer) for layer in params]
  _check(params, initial_carries)
  xs = swapped(xs, batch_major)
  finals = []
  for number, layer in enumerate(params):
    if number and layer_dropout and key is not None:
      xs = _drop(_stream(key, number, 2), layer_dropout, xs)
    outputs, carries = [], []
    for direction, of_cell in enumerate(layer):
      output, carry = cell.apply(
        of_cell,
        xs,
        initial_carries[number][direction],
        lengths=lengths,
        reverse=direction == 1,
        zoneout=zoneout,
        dropout=dropout,
        key=None if key is None else _stream(key, number, direction),
        recompute=recompute,
      )
      outputs.append(output)
      carries.append(carry)
    xs = merge(*outputs) if len(layer) == 2 else outputs[0]
    finals.append(tuple(carries))
  return swapped(xs, batch_major), tuple(finals)


def _stream(key: jax.Array, layer: int, number: int) -> jax.Array:
  """A key for each layer and direction, and for the dropout before a layer."""
  return jax.random.fold_in(jax.random.fold_in(key, layer), number)


def _output_size(cell: Cell, layer: Sequence[Any], merge: Merge) -> int:
  sizes = jax.tree.leaves(cell.equations.sizes(layer[0]))
  if len(layer) == 1:
    return sizes[0]
  output = jax.ShapeDtypeStruct((1, 1, sizes[0]), layer[0].input_weights.dtype)
  return jax.eval_shape(merge, output, output).shape[-1]


def _check(
  params: Sequence[Sequence[Any]], carries: Sequence[Sequence[Any]]
) -> None:
  directions = [len(layer) for layer in params]
  if not directions or not set(directions) <= {1, 2}:
    raise ValueError(
      f"params have {directions} directions in their layers, but there must be "
      "a layer at least, and 1 or 2 in each: for a single cell's parameters "
      "write ((params,),)."
    )
  for layer in carries:
    if not isinstance(layer, list | tuple) or hasattr(layer, "_fields"):
      raise ValueError(
        f"initial_carries have a {type(layer).__name__} for a layer, but there "
        "must be a tuple with a carry, or None, for each direction: take "
        "arrays with an axis of layers, such as PyTorch's, apart."
      )
  given = [len(layer) for layer in carries]
  if given != directions:
    raise ValueError(
      f"initial_carries have {given} directions in their layers, and params "
      f"{directions}: give one for each, or None."
    )


def _drop(key: jax.Array, rate: float, xs: jax.Array) -> jax.Array:
  kept = jax.random.bernoulli(key, 1 - rate, xs.shape)
  return jnp.where(kept, xs / (1 - rate), 0)
