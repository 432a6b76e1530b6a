"""Recurrences with hand-derived backward passes.

Each module is a cell with the same names: `init`, `step`, `forward`,
`backward` and `apply`.
"""

from revmom.cells import elman, gated_input, gru, lstm, ugrnn

__all__ = ["elman", "gated_input", "gru", "lstm", "ugrnn"]
