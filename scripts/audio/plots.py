"""Figures of a model of sound."""

from typing import Any

import numpy as np
from matplotlib.figure import Figure

from shared import plots
from shared.training_loop import Rows


def losses(rows: Rows, result: dict[str, Any]) -> Figure:
  """Bits a sample by step, beside those without a model of time."""
  figure, axes = plots.losses(rows, "test_bits", "test clips", loss="bits")
  axes.axhline(
    result["unigram_bits"], color="gray", ls="--", label="unigram, test clips"
  )
  if "least_bits" in result:
    axes.axhline(
      result["least_bits"], color="black", ls=":", label="the noise alone"
    )
  axes.set_title(f"WaveNet: {result['test_bits']:.2f} bits a sample")
  axes.set_ylabel("bits a sample")
  axes.legend()
  return figure


def spectrograms(kinds: dict[str, np.ndarray], rate: int) -> Figure:
  """Spectrograms of clips of all classes, a row for each kind.

  Args:
    kinds: sounds [classes, T] by what they are.
    rate: samples a second.
  """
  classes = len(next(iter(kinds.values())))
  figure = Figure(figsize=(1.7 * classes, 7), layout="constrained")
  grid = figure.subplots(len(kinds), classes, sharex=True, sharey=True)
  for row, (kind, sounds) in zip(grid, kinds.items(), strict=True):
    row[0].set_ylabel(f"{kind}\nHz")
    for axes, sound in zip(row, sounds, strict=True):
      # A trace of noise, because the logarithm of silence is infinite.
      heard = sound + np.random.default_rng(0).normal(size=len(sound)) * 1e-4
      span = min(256, len(sound) // 2)
      axes.specgram(
        heard, NFFT=span, Fs=rate, noverlap=3 * span // 4, vmin=-110, vmax=-30
      )
  for label, axes in enumerate(grid[0]):
    axes.set_title(f"class {label}")
  for axes in grid[-1]:
    axes.set_xlabel("s")
  return figure
