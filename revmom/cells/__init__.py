"""Recurrences with hand-derived backward passes.

Each of `elman`, `lstm`, `gru`, `ugrnn` and `gated_input` is a cell with the
same names: `init`, `step`, `forward`, `backward` and `apply`; `mdrnn` and
`mdlstm` have them for grids; `multidirectional` and `stack` put layers
together.
`deferred` takes products out of the loop of any other cell; `conversion`
exchanges weights with PyTorch and Flax, and `revmom.cells.nnx` has layers for
Flax.
"""

from revmom.cells import (
  binary_adder,
  conversion,
  elman,
  gated_input,
  gru,
  lstm,
  mdlstm,
  mdrnn,
  multidirectional,
  stack,
  ugrnn,
)
from revmom.cells.deferred import defer_weights

__all__ = [
  "binary_adder",
  "conversion",
  "defer_weights",
  "elman",
  "gated_input",
  "gru",
  "lstm",
  "mdlstm",
  "mdrnn",
  "multidirectional",
  "stack",
  "ugrnn",
]
