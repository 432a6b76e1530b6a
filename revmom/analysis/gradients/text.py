"""Names and tables of reports."""

import math
from collections.abc import Sequence
from typing import Any

import jax


@jax.tree_util.register_static
class Names(tuple):
  """Names of rows: a pytree without leaves, so that `jit` can return them."""

  __slots__ = ()


def number(value: Any, log: bool = False) -> str:
  """Three digits of a number, or of one whose natural logarithm is given.

  >>> number(0.00012345), number(-276.3, log=True), number(float("nan"))
  ('0.000123', '1.01e-120', 'nan')
  """
  value = float(value)
  if not log:
    return f"{value:.3g}"
  if not math.isfinite(value):
    return f"{math.exp(value):.3g}" if value < 0 else f"{value:.3g}"
  exponent = math.floor(value / math.log(10))
  if abs(exponent) < 4:
    return f"{math.exp(value):.3g}"
  mantissa = math.exp(value - exponent * math.log(10))
  return f"{mantissa:.2f}e{exponent:+03d}"


def table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
  """Columns of the width of their longest entry, the first to the left.

  >>> print(table(["", "norm"], [["input", "1"], ["layer 0", "0.25"]]))
           norm
  input       1
  layer 0  0.25
  """
  lines = [header, *rows]
  widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
  return "\n".join(
    "  ".join(
      entry.ljust(width) if i == 0 else entry.rjust(width)
      for i, (entry, width) in enumerate(zip(line, widths, strict=True))
    ).rstrip()
    for line in lines
  )
