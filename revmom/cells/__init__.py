"""Recurrences with hand-derived backward passes.

Each of `elman`, `lstm`, `gru`, `ugrnn` and `gated_input` is a cell with the
same names: `init`, `step`, `forward`, `backward` and `apply`; `mdrnn` and
`mdlstm` have them for grids; `stack` and `multidirectional` put layers
together.
`defer_weights` takes products out of the loop of any other cell; `conversion`
exchanges weights with PyTorch and Flax, and `nnx` has layers for Flax.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from revmom.cells.exchange import conversion
from revmom.cells.grids import grid, mdlstm, mdrnn, multidirectional
from revmom.cells.sequences import (
  binary_adder,
  elman,
  gated_input,
  gru,
  lstm,
  stack,
  ugrnn,
)
from revmom.cells.sequences.cell import Cell
from revmom.cells.sequences.deferred import defer_weights

if TYPE_CHECKING:
  from revmom.cells.exchange import nnx

__all__ = [
  "Cell",
  "binary_adder",
  "conversion",
  "defer_weights",
  "elman",
  "gated_input",
  "grid",
  "gru",
  "lstm",
  "mdlstm",
  "mdrnn",
  "multidirectional",
  "nnx",
  "stack",
  "ugrnn",
]


def __getattr__(name: str) -> Any:
  """`nnx`, which imports Flax, and only when it is used."""
  if name != "nnx":
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
  return import_module("revmom.cells.exchange.nnx")


def __dir__() -> list[str]:
  return sorted({*globals(), *__all__})
