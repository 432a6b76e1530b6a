"""Trains an image classifier, then runs the training backward, bit for bit.

  python scripts/train.py
  python scripts/train.py --model=conv --dataset=mnist --data_dir=DIR \
    --workdir=out/train
  python scripts/train.py --residue_bits=2 --reverse_microbatches=4 \
    --reverse_devices=2

Under half a minute on 2 cores.  Expect a test accuracy of 98.0 % on digits
(conv 96.3 %, lstm 97.0 %, attention 96.3 %, in about a minute each), log|det|
-933494 nats, and a receipt that says OK: each weight is again what it was.

The last command reverses the run with gradients of batches in four parts,
spread over two devices, which round otherwise; two bits kept of each gradient
restore every weight.  The receipt says how near that came to what they forgive,
and bits.png, with --workdir, which bits of gradients differed.

With --workdir it writes result.json, metrics.csv (loss by step), loss.png and
a checkpoint of the final state.  Running it again there skips the training
and rewinds from the checkpoint; the environment has to be the same, because
another one may round gradients differently, unless --residue_bits forgives it.
"""

import pathlib
from typing import Any

import jax
import numpy as np
from matplotlib.figure import Figure

from shared import output
from shared.checkpointing import Checkpoints
from shared.settings import launch
from training.problem import Config, Problem, pose
from training.reversal import (
  Trained,
  differing_bits,
  information,
  provide_devices,
  restore,
  rewind,
  save,
  train,
)


def write(
  workdir: pathlib.Path,
  config: Config,
  problem: Problem,
  trained: Trained,
  result: dict,
) -> None:
  """result.json, metrics.csv, loss.png and maybe bits.png."""
  columns = trained.losses, trained.plain_losses
  figures: dict[str, Figure] = {}
  if config.is_otherwise and config.residues:
    share, each = differing_bits(problem, config, trained.state)
    result["gradients_differ_share"] = share
    figures["bits"] = bits_figure(each, result)
  rows = [
    {"step": step, "loss": float(loss), "optax_loss": float(plain)}
    for step, (loss, plain) in enumerate(zip(*columns, strict=True))
  ]
  figure = Figure(figsize=(6, 4), layout="constrained")
  axes = figure.subplots()
  axes.plot(trained.losses, label="revmom.sgd, reversible")
  axes.plot(trained.plain_losses, "--", linewidth=1, label="optax.sgd")
  axes.set_title(f"Training loss, {config.model} on {config.dataset}")
  axes.set_xlabel("step")
  axes.set_ylabel("cross-entropy of the batch (nats)")
  axes.set_yscale("log")
  axes.legend()
  output.write_results(workdir, rows, {"loss": figure, **figures}, result)


def bits_figure(each: np.ndarray, result: dict) -> Figure:
  """Which bits of gradients the way back computed otherwise."""
  figure = Figure(figsize=(6, 4), layout="constrained")
  axes = figure.subplots()
  places = np.arange(len(each))
  axes.bar(places, each, label="gradients: going back, beside the run's")
  if result["weights_equal_those_drawn"]:
    label = "initial weights: restored, beside those drawn"
    axes.plot(places, np.zeros(len(each)), "k_", label=label)
  axes.set_title(
    f"residue_bits={result['residue_bits']} restored every bit: "
    f"{result['margin_distance']:.2g} of {result['margin_bound']:.2g} units"
  )
  axes.set_xlabel("bit: sign, exponent, then fraction")
  axes.set_ylabel("share of elements in which it differs")
  axes.legend()
  return figure


def report(result: dict) -> str:
  """The result for people."""
  r = result
  micro = lambda name: f"{1e6 * r[name + '_seconds_per_step']:.1f}"
  mega = lambda name: f"{r[name + '_peak_bytes'] / 1e6:.2f}"
  margin = ""
  if "margin_in_words" in r:
    margin = f"\nmargin             {r['margin_in_words']}"
  origin = " (training skipped: from the checkpoint)" if r["resumed"] else ""
  return f"""\
model              {r["model"]}, {r["parameters"]:,} parameters, {r["dtype"]}
run                {r["steps"]} steps{origin}
test               accuracy {r["test_accuracy"]:.2%}, loss \
{r["test_loss"]:.4f} nats
receipt            {"OK" if r["receipt_ok"] else "FAILED"}: parameters \
restored {r["receipt_params_restored"]}, velocities zero \
{r["receipt_slots_restored"]}, buffers empty \
{r["receipt_buffers_empty"]}{margin}
initial weights    {"equal" if r["weights_equal_those_drawn"] else "NOT"} \
those drawn from the seed, bit for bit
log|det|           {r["log_det"]:.6g} nats
bits/param/step    {r["bits_spilled"]:.4f} spilled, {r["bits_kept"]:.4f} with \
the heads; bound {r["bits_bound"]:.4f}
kept               {r["buffer_bytes"]:,} bytes ({r["plan"]})
time per step      train {micro("train")} us, rewind {micro("rewind")} us, \
optax.sgd {micro("optax")} us (train / optax {r["train_time_over_optax"]:.3f})
peak memory        train {mega("train")} MB, rewind {mega("rewind")} MB, \
optax.sgd {mega("optax")} MB"""


def run(config: Config, workdir: str | None = None) -> dict[str, Any]:
  """The experiment: train (or restore), rewind, write.

  Raises:
    ValueError: the workdir belongs to other flags or another environment.
    FloatingPointError: a loss was not finite.
    RuntimeError: the reversal was not exact.
  """
  problem = pose(config)
  path = output.folder(workdir)
  trained = None
  if path is not None:
    data = problem.args, problem.test
    checkpoints = Checkpoints(path, config, data)
    trained = restore(checkpoints, config, problem)
  resumed = trained is not None
  if trained is None:
    trained = train(problem, config)
    if path is not None:
      save(checkpoints, trained)
  result = {
    "model": config.model,
    "dataset": config.dataset,
    "dtype": config.dtype,
    "residue_bits": config.residue_bits,
    "resumed": resumed,
    **trained.figures,
    **information(problem, trained.state),
    **rewind(problem, config, trained.state),
  }
  if path is not None:
    write(path, config, problem, trained, result)
  return result


def main(config: Config, workdir: str | None) -> str:
  provide_devices(config)
  print(f"jax {jax.__version__}, {jax.devices()}")
  return report(run(config, workdir))


if __name__ == "__main__":
  launch(Config, main)
