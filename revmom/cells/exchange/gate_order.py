"""How PyTorch and Flax arrange the weights of cells that all of them have."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from revmom.cells.sequences import elman, gru, lstm
from revmom.cells.sequences.cell import Cell


class Gates(NamedTuple):
  """What differs, of one cell."""

  params: Any  # the type
  order: tuple[int, ...]  # of there and here, each in terms of the other
  signs: tuple[int, ...]
  names: tuple[str, ...]  # Flax's
  biased: tuple[str, ...]  # the Dense layers that have a bias in Linen

  def regroup(self, array: Any) -> jax.Array:
    """Exchanges the order of there and that of here; twice is the identity."""
    parts = jnp.split(jnp.asarray(array), len(self.order), -1)
    return jnp.concatenate(
      [
        parts[k] if sign > 0 else -parts[k]
        for k, sign in zip(self.order, self.signs, strict=True)
      ],
      -1,
    )

  def layers(self, layout: str) -> dict[str, list[tuple[str, bool]]]:
    """For inputs "i" and state "h": Flax's Dense layers, if they are biased."""
    if layout == "nnx":
      # One layer for all gates, biased where those of the first gate are.
      first = self.biased[0][0]
      return {side: [(f"dense_{side}", side == first)] for side in "ih"}
    layers = {
      side: [(side + name, side + name in self.biased) for name in self.names]
      for side in "ih"
    }
    if layout == "nnx_split":  # `if` is no name of an attribute
      layers["i"][1] = ("if_", False)
    return layers


GATES = {
  "lstm": Gates(
    lstm.LSTMParams,
    order=(0, 1, 3, 2),
    signs=(1, 1, 1, 1),
    names=("i", "f", "g", "o"),
    biased=("hi", "hf", "hg", "ho"),
  ),
  "gru": Gates(
    gru.GRUParams,
    order=(0, 1, 2),
    signs=(1, -1, 1),
    names=("r", "z", "n"),
    biased=("ir", "iz", "in", "hn"),
  ),
  "elman": Gates(
    elman.ElmanParams, order=(0,), signs=(1,), names=("",), biased=("i",)
  ),
}

# What PyTorch and Flax have as well, if some of it only PyTorch.
SHARED = (
  "input_weights",
  "recurrent_weights",
  "bias",
  "candidate_bias",
  "projection",
)


def gates_of(cell: Cell) -> Gates:
  """The arrangement of a cell's weights."""
  if cell.name not in GATES:
    raise ValueError(
      f"PyTorch and Flax have no {cell.name} cell; those that can be converted "
      f"are {sorted(GATES)}."
    )
  return GATES[cell.name]


def checked(
  cell: Cell, name: str, array: Any, shape: tuple[int | None, ...]
) -> jax.Array:
  """An array with the shape that it must have, where None is any size."""
  if array is None:
    raise ValueError(f"The weights of the {cell.name} cell have no {name}.")
  got = np.shape(array)
  if len(got) != len(shape) or any(
    size not in (None, actual) for size, actual in zip(shape, got, strict=True)
  ):
    expected = ", ".join("any" if n is None else str(n) for n in shape)
    raise ValueError(
      f"{name} has the shape {got}, but must have ({expected}) in the "
      f"{cell.name} cell."
    )
  return jnp.asarray(array)


def rows(array: Any) -> int:
  """The length of an array's first axis; 0 if there is none."""
  shape = () if array is None else np.shape(array)
  return shape[0] if shape else 0


def build(
  gates: Gates,
  kernel: jax.Array,
  recurrent: jax.Array,
  outer: jax.Array | None,
  inner: jax.Array | None,
  projection: jax.Array | None = None,
) -> Any:
  """Parameters of this library, from arrays in the others' order.

  Args:
    gates: of the cell.
    kernel, recurrent: [D, GH] and [P, GH].
    outer: bias of the inputs [GH].
    inner: bias of the state [GH].
    projection: [H, P].
  """
  fields: dict[str, Any] = dict.fromkeys(gates.params._fields)
  fields["input_weights"] = gates.regroup(kernel)
  fields["recurrent_weights"] = gates.regroup(recurrent)
  if "candidate_bias" in fields and inner is not None:
    size = inner.size // 3
    fields["candidate_bias"] = inner[2 * size :]
    inner = inner.at[2 * size :].set(0)
  if "projection" in fields:
    fields["projection"] = projection
  biases = [bias for bias in (outer, inner) if bias is not None]
  if biases:
    fields["bias"] = gates.regroup(sum(biases[1:], biases[0]))
  return gates.params(**fields)


def exportable(params: Any, to: str, shared: Sequence[str]) -> Gates:
  """The gates of a cell, all of whose parameters the other package has."""
  for gates in GATES.values():
    if isinstance(params, gates.params):
      break
  else:
    raise ValueError(
      f"{to} has no cell for {type(params).__name__}; those that can be "
      f"converted are {[gates.params.__name__ for gates in GATES.values()]}."
    )
  own = [
    name
    for name, value in params._asdict().items()
    if value is not None and name not in shared
  ]
  if own:
    raise ValueError(
      f"{type(params).__name__} has {own}, for which {to} has no place: only a "
      "cell without them (None) can be exported. Pass a learned carry to the "
      "layer yourself."
    )
  return gates


def biases_of(params: Any) -> tuple[jax.Array | None, jax.Array | None]:
  """Of the inputs and of the state, which is only the candidate's of a GRU."""
  inner = getattr(params, "candidate_bias", None)
  if inner is not None:
    inner = jnp.concatenate([jnp.zeros(2 * inner.size, inner.dtype), inner])
  return params.bias, inner


def or_zeros(bias: jax.Array | None, params: Any) -> jax.Array:
  """A bias [GH]."""
  weights = params.input_weights
  return jnp.zeros(weights.shape[1], weights.dtype) if bias is None else bias
