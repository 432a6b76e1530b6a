"""Flows learn densities: RealNVP, Glow and NICE on points and on images.

  python scripts/density.py --workdir=out/density
  python scripts/density.py --data=digits --model=glow --workdir=out/digits
  python scripts/density.py --data=mnist --data_dir=DIR --steps=2000 \
    --workdir=out/mnist

Half a minute on 2 CPU cores for points.  Expect 2.427 nats on test points of
two_moons, where the true density has 2.397: KL(p || q) = 0.030 (initial weights
that differ in the last bit gave 0.016), and an integral of 1.0000.  The digits
take a minute with RealNVP: 2.16 bits per dimension of their 17 grey levels, and
2.26 with Glow.
MNIST needs patience: the third command takes 10 minutes and reaches, with
25,648 parameters and 8334 of its images, 1.78 bits per dimension of 256 levels,
while 1.06 is published; samples are strokes, not yet digits.

Of points the density itself is known, so what the flow lacks is measured:
KL(p || q) = E_p[log p - log q] over test points.  The integral of q over the
plane, which should be 1, checks the log-determinants from outside.  Images are
dequantised (Theis, van den Oord & Bethge 2016), and the bits per dimension of
test images stand beside published ones where there are any; those are of larger
models, trained on all of MNIST.

Last it inverts: max |x - f^-1(f(x))| over test data, max |z - f(f^-1(z))| over
noise, and how far the log-determinants of both directions are from cancelling.

With --workdir it writes result.json, metrics.csv (loss by step), loss.png,
density.png or samples.png, inversion.png and checkpoints.  Running it again
there goes on from the last one and ends in the same weights as a run that was
never interrupted.
"""

import statistics
import time
from typing import Any, NamedTuple

import jax
import numpy as np
from matplotlib.figure import Figure

from densities import measures, models, plots
from densities.measures import Inversion
from densities.models import Data
from densities.training import CHUNK, Config, build, evaluation, start, train
from revmom.models import Flow
from shared import output
from shared.checkpointing import Checkpoints, done_before
from shared.settings import launch
from shared.training_loop import Rows


class Measured(NamedTuple):
  """What is known of a trained flow."""

  losses: np.ndarray  # of each of the test data
  inversion: Inversion
  samples: np.ndarray
  on_grid: plots.Map | None  # of the plane, if data are points


def measure(flow: Flow, data: Data, config: Config, params: Any) -> Measured:
  """Evaluates, inverts and samples.

  Raises:
    RuntimeError: a round trip was not finite.
  """
  return Measured(
    evaluation(flow, data, config)(params, data.test),
    measures.invert(flow, data, config, params),
    measures.samples(flow, data, config, params),
    measures.density_map(flow, data, config, params) if config.points else None,
  )


def result_of(
  data: Data, config: Config, params: Any, rows: Rows, measured: Measured
) -> dict[str, Any]:
  """Flat keys: what was measured, and what is published."""
  losses = measured.losses
  result = {
    "data": config.data,
    "model": config.model,
    "parameters": sum(leaf.size for leaf in jax.tree.leaves(params)),
    "steps": config.steps,
    "unit": data.unit,
    "test_loss": float(losses.mean()),
    "test_loss_stderr": measures.standard_error(losses),
    "validation_loss": rows[-1]["validation_loss"],
    "final_train_loss": statistics.mean(row["loss"] for row in rows[-20:]),
    **measures.inversion_errors(measured.inversion),
    "published_test_loss": models.PUBLISHED.get((config.data, config.model)),
    "seconds_per_step": statistics.median(row["seconds"] for row in rows),
  }
  if measured.on_grid is not None:
    result |= measures.against_truth(config, data.test, losses)
    result["integral"] = measured.on_grid.integral
  return result


def drawings(
  data: Data, rows: Rows, measured: Measured, result: dict[str, Any]
) -> dict[str, Figure]:
  """All figures, by name."""
  drawn = {"loss": plots.losses(rows, result)}
  inversion, samples = measured.inversion, measured.samples
  if measured.on_grid is not None:
    drawn["density"] = plots.density(
      measured.on_grid, samples, data.test, result
    )
    drawn["inversion"] = plots.points_inversion(inversion, result)
  else:
    drawn["samples"] = plots.samples(samples, data, result)
    drawn["inversion"] = plots.images_inversion(inversion, data, result)
  return drawn


def run(config: Config, workdir: str | None = None) -> dict[str, Any]:
  """The experiment: train, evaluate, invert, sample, write.

  Raises:
    ValueError: the data, the model or the workdir don't go with the flags.
    FloatingPointError: a loss was not finite.
    RuntimeError: a round trip was not finite.
  """
  begin = time.perf_counter()
  config = config.with_defaults()
  data = models.load(config.data, config.data_dir, config.model, config.seed)
  flow = build(config)
  training = start(flow, data, config)
  path = output.folder(workdir)
  with Checkpoints(path, config, data) as checkpoints:
    training, rows, done_before = train(
      flow, data, config, training, checkpoints
    )
  measured = measure(flow, data, config, training.params)
  result = result_of(data, config, training.params, rows, measured)
  result["resumed_from"] = done_before
  result["seconds"] = time.perf_counter() - begin
  if path is not None:
    drawn = drawings(data, rows, measured, result)
    output.write_results(path, rows, drawn, result)
  return result


def report(result: dict[str, Any]) -> str:
  """The result for people."""
  r = result
  origin = done_before(r)
  lines = [
    f"model      {r['model']}, {r['parameters']:,} parameters, {r['steps']} "
    f"Adam steps{origin}",
    f"test       {r['test_loss']:.4f} +- {r['test_loss_stderr']:.4f} "
    f"{r['unit']}",
  ]
  if "kl" in r:
    lines += [
      f"truth      {r['true_entropy']:.4f} nats on the same points, so KL(p || "
      f"q) = {r['kl']:.4f} +- {r['kl_stderr']:.4f}",
      f"integral   {r['integral']:.5f} of q over the plane",
    ]
  if r["published_test_loss"] is not None:
    lines.append(
      f"published  {r['published_test_loss']:.2f} bits/dim, a larger model "
      "trained on 60 000 images"
    )
  lost = ""
  if r["noise_lost"]:
    lost = (
      f" ({r['noise_lost']} of {CHUNK} samples are beyond what a sigmoid "
      "keeps in float32)"
    )
  lines += [
    f"inversion  max |x - f^-1(f(x))| = {r['inversion_error']:.1e}, max |z - "
    f"f(f^-1(z))| = {r['noise_inversion_error']:.1e}{lost}",
    f"log|det|   cancels to {r['log_det_error']:.1e} between both directions",
    f"time       {r['seconds']:.1f} s, {1e3 * r['seconds_per_step']:.1f} ms a "
    "step",
  ]
  return "\n".join(lines)


if __name__ == "__main__":
  launch(Config, run, report)
