"""Weights of PyTorch's and Flax's recurrent layers, to and from this library's.

Arrays go in and come out; neither package is imported.  What differs:

- Order of gates: an LSTM has i, f, g, o there, and i, f, o, g here.
- A GRU has h_t = z h_{t-1} + (1 - z) n there and (1 - z) h_{t-1} + z n here.
  As 1 - sigmoid(a) = sigmoid(-a), all weights of z change their sign.
- PyTorch has [rows, columns] for W x, where the rest has x W, and two biases.
  They are summed; only that of the candidate of a GRU, which is inside the
  reset gate, is a parameter of its own.  Exported, the others are zero.
- A GRU of NNX has no such bias.

The conversion is exact but for the rounding of sums of biases, and JAX makes
float32 of float64 unless 64-bit types are on.  Parameters that the other
package lacks (peepholes, layer normalisation, a learned carry, a reset gate
before the product) are an error.  Weights do not tell which activations a cell
has: they must be the usual ones.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from revmom.cells.exchange.gate_order import (
  SHARED,
  Gates,
  biases_of,
  build,
  checked,
  exportable,
  gates_of,
  or_zeros,
  rows,
)
from revmom.cells.sequences.cell import Cell

Arrays = Mapping[str, Any]
LAYOUTS = ("linen", "nnx", "nnx_split")


def from_torch(cell: Cell, weights: Arrays) -> tuple[tuple[Any, ...], ...]:
  """Parameters for `stack.apply` from a `torch.nn.LSTM`, `GRU` or `RNN`.

  Args:
    cell: `lstm.cell`, `gru.cell` or `elman.cell`.
    weights: the layer's `state_dict()` as arrays: weight_ih_l0 [GH, D],
      weight_hh_l0 [GH, P], bias_ih_l0 and bias_hh_l0 [GH] unless without bias,
      weight_hr_l0 [P, H] of a projection; the same with _l1 and so on for
      further layers, and with _reverse for the reverse direction.

  Returns:
    Parameters for each layer and direction. A single cell's are `params[0][0]`.

  Raises:
    ValueError: if the cell, a name or a shape does not fit.

  >>> from revmom.cells import elman
  >>> weights = {
  ...   "weight_ih_l0": np.ones((5, 3)),
  ...   "weight_hh_l0": np.ones((5, 5)),
  ...   "bias_ih_l0": np.ones(5),
  ...   "bias_hh_l0": np.ones(5),
  ... }
  >>> from_torch(elman.cell, weights)[0][0].bias
  Array([2., 2., 2., 2., 2.], dtype=float32)
  """
  gates = gates_of(cell)
  remaining = dict(weights)
  reverse = ["", "_reverse"] if "weight_ih_l0_reverse" in weights else [""]
  layers: list[tuple[Any, ...]] = []
  while not layers or remaining:
    place = f"_l{len(layers)}"
    if f"weight_ih{place}" not in remaining:
      raise ValueError(
        f"weights have {sorted(remaining)}, and no weight_ih{place}: give the "
        f"state_dict of one layer, without prefixes, for the {cell.name} cell."
      )
    layers.append(
      tuple(_from_torch(cell, gates, remaining, place + r) for r in reverse)
    )
  return tuple(layers)


def _from_torch(
  cell: Cell, gates: Gates, remaining: dict[str, Any], place: str
) -> Any:
  """Takes one cell's arrays out of those that remain."""

  def take(name: str, *shape: int | None) -> jax.Array:
    array = remaining.pop(name + place, None)
    return checked(cell, name + place, array, shape)

  columns = len(gates.order)
  size = rows(remaining.get(f"weight_hh{place}")) // columns
  projected = cell.name == "lstm" and f"weight_hr{place}" in remaining
  output_size = None if projected else size
  recurrent = take("weight_hh", columns * size, output_size).T
  kernel = take("weight_ih", columns * size, None).T
  projection = None
  if projected:
    projection = take("weight_hr", recurrent.shape[0], size).T
  outer, inner = None, None
  if f"bias_ih{place}" in remaining:
    outer = take("bias_ih", columns * size)
    inner = take("bias_hh", columns * size)
  return build(gates, kernel, recurrent, outer, inner, projection)


def to_torch(params: Sequence[Sequence[Any]]) -> dict[str, np.ndarray]:
  """The weights of a `torch.nn.LSTM`, `GRU` or `RNN` of the same function.

  Args:
    params: for each layer and direction, as for `stack.apply`; a single cell's
      as ((params,),).

  Returns:
    Arrays with the names of its `state_dict()`; `torch.from_numpy` takes them.

  Raises:
    ValueError: if PyTorch has no such cell or layers.

  >>> from revmom.cells import lstm
  >>> params = lstm.init(jax.random.key(0), 3, 5)
  >>> {name: a.shape for name, a in to_torch(((params,),)).items()}
  {'weight_ih_l0': (20, 3), 'weight_hh_l0': (20, 5),
   'bias_ih_l0': (20,), 'bias_hh_l0': (20,)}
  """
  directions = {len(layer) for layer in params}
  if directions not in ({1}, {2}):
    raise ValueError(
      f"Layers have {sorted(directions)} directions; PyTorch has 1 or 2, the "
      "same for all layers."
    )
  weights = {}
  for number, layer in enumerate(params):
    for suffix, cell in zip(("", "_reverse"), layer, strict=False):
      gates = exportable(cell, "PyTorch", SHARED)
      arrays = {
        "weight_ih": gates.regroup(cell.input_weights).T,
        "weight_hh": gates.regroup(cell.recurrent_weights).T,
      }
      if any(bias is not None for bias in biases_of(cell)):
        outer, inner = (or_zeros(bias, cell) for bias in biases_of(cell))
        arrays |= {"bias_ih": gates.regroup(outer), "bias_hh": inner}
      if getattr(cell, "projection", None) is not None:
        arrays["weight_hr"] = cell.projection.T
      for name, array in arrays.items():
        # A copy, as PyTorch wants memory that it may write to.
        weights[f"{name}_l{number}{suffix}"] = np.array(array)
  return weights


def from_flax(cell: Cell, weights: Mapping[str, Arrays]) -> Any:
  """Parameters from an LSTM, GRU or simple cell of Flax, Linen or NNX.

  Args:
    cell: `lstm.cell`, `gru.cell` or `elman.cell`.
    weights: arrays by the names of Dense layers, then "kernel" and "bias":
      `variables["params"]` of Linen's LSTMCell, OptimizedLSTMCell, GRUCell and
      SimpleCell, or `nnx.to_pure_dict(nnx.state(cell, nnx.Param))` of NNX's.

  Returns:
    Parameters for the cell. The candidate of NNX's GRU has no bias of its own,
    and candidate_bias is None.

  Raises:
    ValueError: if the cell, a name or a shape does not fit.

  >>> from revmom.cells import elman
  >>> kernel = {"kernel": np.ones((5, 5))}
  >>> weights = {"i": {**kernel, "bias": np.zeros(5)}, "h": kernel}
  >>> from_flax(elman.cell, weights).recurrent_weights.shape
  (5, 5)
  """
  gates = gates_of(cell)
  layers = gates.layers(_layout(weights))
  remaining = {
    f"{layer}/{name}": array
    for layer, arrays in weights.items()
    for name, array in arrays.items()
  }
  hidden_name = f"{layers['h'][0][0]}/kernel"
  size = rows(remaining.get(hidden_name))

  def take(name: str, *shape: int | None) -> jax.Array:
    return checked(cell, name, remaining.pop(name, None), shape)

  def side(name: str, inputs: int | None) -> tuple[jax.Array, jax.Array | None]:
    """The kernel [inputs, GH] and the bias [GH] of the inputs or the state."""
    width = size * len(gates.order) // len(layers[name])
    kernels = [take(f"{n}/kernel", inputs, width) for n, _ in layers[name]]
    if not any(biased for _, biased in layers[name]):
      return jnp.concatenate(kernels, -1), None
    biases = [
      take(f"{n}/bias", width) if biased else jnp.zeros(width, kernels[0].dtype)
      for n, biased in layers[name]
    ]
    return jnp.concatenate(kernels, -1), jnp.concatenate(biases)

  (recurrent, inner), (kernel, outer) = side("h", size), side("i", None)
  if remaining:
    raise ValueError(
      f"{sorted(remaining)} do not belong to the {cell.name} cell of Flax."
    )
  return build(gates, kernel, recurrent, outer, inner)


def to_flax(params: Any, layout: str) -> dict[str, dict[str, jax.Array]]:
  """The weights of a cell of Flax of the same function.

  Args:
    params: of the cells `lstm`, `gru` or `elman`.
    layout: "linen" for all cells of Linen; "nnx" for nnx.OptimizedLSTMCell,
      GRUCell and SimpleCell; "nnx_split" for nnx.LSTMCell.

  Returns:
    Arrays by the names of Dense layers, then "kernel" and "bias": Linen's
    `{"params": weights}`, or what `nnx.update(cell, weights)` takes. A bias
    that params do not have is zero.

  Raises:
    ValueError: if Flax has no such cell, or an unknown layout.

  >>> from revmom.cells import gru
  >>> params = gru.init(jax.random.key(0), 3, 5)
  >>> sorted(to_flax(params, "linen"))
  ['hn', 'hr', 'hz', 'in', 'ir', 'iz']
  """
  shared = [name for name in SHARED if name != "projection"]
  if layout == "nnx":
    shared.remove("candidate_bias")
  gates = exportable(params, f"Flax ({layout})", shared)
  if layout not in LAYOUTS or (layout == "nnx_split" and len(gates.names) != 4):
    raise ValueError(
      f"layout={layout!r} for {type(params).__name__}; choose one of {LAYOUTS},"
      " of which nnx_split is for LSTMs only."
    )
  outer, inner = (or_zeros(bias, params) for bias in biases_of(params))
  outer = gates.regroup(outer)
  sides = {
    "i": (gates.regroup(params.input_weights), outer),
    "h": (gates.regroup(params.recurrent_weights), inner),
  }
  layers = gates.layers(layout)
  if not any(biased for _, biased in layers["i"]):
    sides["h"] = (sides["h"][0], outer + inner)
  weights: dict[str, dict[str, jax.Array]] = {}
  for side, (kernel, bias) in sides.items():
    count = len(layers[side])
    kernels, biases = jnp.split(kernel, count, -1), jnp.split(bias, count)
    for (name, biased), kernel, bias in zip(
      layers[side], kernels, biases, strict=True
    ):
      weights[name] = {"kernel": kernel} | ({"bias": bias} if biased else {})
  return weights


def _layout(weights: Mapping[str, Any]) -> str:
  if "dense_i" in weights:
    return "nnx"
  return "nnx_split" if "if_" in weights else "linen"
