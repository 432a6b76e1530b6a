"""The figure of three edits."""

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from editing.edits import Bisected, Spike, Unlearned


def edits(spike: Spike, unlearned: Unlearned, bisected: Bisected) -> Figure:
  """A spike taken back, an example unlearned, a break found."""
  figure = Figure(figsize=(13, 4), layout="constrained")
  axes = figure.subplots(1, 3)
  _spike(axes[0], spike)
  _unlearned(axes[1], unlearned)
  _bisected(axes[2], bisected)
  for own in axes:
    own.grid(alpha=0.3)
    own.legend(fontsize="small")
    own.set_xlabel("step")
  return figure


def _spike(axes: Axes, spike: Spike) -> None:
  steps = np.arange(len(spike.losses))
  axes.plot(steps, spike.losses, color="C3", label="with the broken batch")
  after = spike.step + np.arange(len(spike.edited))
  axes.plot(after, spike.edited, color="C0", label="rolled back, and on")
  axes.set_yscale("log")
  axes.set_xlim(max(0, 2 * spike.step - len(steps)), len(steps))
  axes.set_ylabel("loss of the batch (nats)")
  axes.set_title(f"A spike, {len(steps) - spike.step} steps taken back")


def _unlearned(axes: Axes, unlearned: Unlearned) -> None:
  apart = np.abs(unlearned.edited - unlearned.losses)
  steps = np.arange(len(apart))
  axes.semilogy(steps, np.where(apart > 0, apart, np.nan), ".", markersize=4,
                label="without the example")  # fmt: skip
  axes.axvline(
    unlearned.first_seen, color="gray", linestyle="--", label="first seen"
  )
  axes.set_xlim(0, len(steps))
  axes.set_ylabel("change of the loss of the batch (nats)")
  axes.set_title(f"Example {unlearned.example} unlearned")


def _bisected(axes: Axes, bisected: Bisected) -> None:
  axes.plot(bisected.metric, color="C0", alpha=0.5, label="every step")
  steps, values = zip(*bisected.probes, strict=True)
  axes.plot(steps, values, "o", color="C1", label="looked at")
  for number, (step, value) in enumerate(bisected.probes[:4], 1):
    axes.annotate(str(number), (step, value), (4, 4),
                  textcoords="offset points")  # fmt: skip
  axes.axhline(
    bisected.bound, color="gray", linestyle=":", label="broken below"
  )
  axes.axvline(
    bisected.broken_at, color="gray", linestyle="--", label="labels wrong"
  )
  axes.set_ylabel("accuracy on one class")
  axes.set_title(f"A break found at step {bisected.found}")
