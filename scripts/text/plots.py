"""The figures of a language model."""

import math
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from shared import plots
from shared.training_loop import Rows

_SMOOTH = 20  # steps


def losses(rows: Rows, result: dict[str, Any]) -> Figure:
  """Training and validation losses by step."""
  bit = math.log(2)
  figure, axes = plots.losses(rows, label="validation text", unit=bit)
  values = np.array([row["loss"] for row in rows]) / bit
  if len(values) > 2 * _SMOOTH:
    means = np.convolve(values, np.full(_SMOOTH, 1 / _SMOOTH), "valid")
    steps = np.arange(len(means)) + (_SMOOTH - 1) / 2
    axes.plot(steps, means, label=f"means of {_SMOOTH} batches")
  axes.set_title(
    f"An LSTM with tied embeddings, {result['parameters']:,} parameters\n"
    f"test text: {result['test_bits_per_character']:.3f} bits per character"
  )
  axes.set_ylabel(f"cross-entropy (bits per {result['level']})")
  axes.legend()
  return figure


def pass_times(rows: list[dict[str, float]], result: dict[str, Any]) -> Figure:
  """Seconds of both passes, in total and per token, by length of sentence."""
  figure = Figure(figsize=(10, 4), layout="constrained")
  total, per_token = figure.subplots(1, 2)
  lengths = np.array([row["tokens"] for row in rows])
  for name, marker in (("forward", "s--"), ("backward", "o-")):
    seconds = np.array([row[f"{name}_seconds"] for row in rows])
    total.plot(lengths, 1e3 * seconds, marker, label=f"{name} pass")
    per_token.plot(
      lengths, 1e6 * seconds / lengths, marker, label=f"{name} pass"
    )
  line = 1e3 * rows[-1]["backward_seconds"] * lengths / lengths[-1]
  total.plot(lengths, line, ":", color="gray", label="proportional to T")
  total.set_yscale("log")
  total.set_ylabel("time (ms)")
  total.set_title(
    f"A sentence of T {result['level']}s: O(T) to differentiate\n"
    f"fitted to the backward pass: T^{result['backward_exponent']:.2f}"
  )
  per_token.set_ylim(bottom=0)
  per_token.set_ylabel(f"time per {result['level']} (microseconds)")
  per_token.set_title("The same, divided by T")
  for axes in (total, per_token):
    axes.set_xscale("log", base=2)
    axes.set_xlabel(f"T ({result['level']}s)")
    axes.grid(alpha=0.3)
    axes.legend()
  return figure
