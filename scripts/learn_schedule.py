"""Learns how to train: a learning rate and a momentum for every step and array.

  python scripts/learn_schedule.py --workdir=out/learn_schedule
  python scripts/learn_schedule.py --dataset=mnist --data_dir=DIR \
    --workdir=out/mnist

Gradients through whole training runs, which `revmom.train` reverses bit for
bit, descend on 8 initial scales, 800 learning rates and 800 momenta of a tanh
network (Maclaurin, Duvenaud & Adams 2015, Figs 2, 6 and 7).

Half a minute each on 2 CPU cores.  Expect validation losses after 100 steps,
means over 10 fresh seeds, of 0.88 -> 0.12 nats on the digits.  On the first
10 000 images of MNIST, of which 1666 validate, expect 0.61 -> 0.29, and a
training loss of 0.53 -> 0.14; the paper has 0.60 -> 0.24 and 0.53 -> 0.12,
with a variant of Adam whose first steps are larger.

With --workdir it writes result.json, metrics.csv (a row for each meta
iteration), meta_training.png, learning_rates.png, momenta.png, scales.png and
a checkpoint after every meta iteration.  Running it again there goes on from
the last one and ends in the same bits as a run that was never interrupted; a
larger --meta_steps goes on further.
"""

import functools
import math
import pathlib
import time
from typing import Any

import jax
import numpy as np

from schedules import elementary, learning, plots
from schedules.learning import (
  Config,
  buffer_bits,
  evaluation,
  forgotten_bits,
  learn,
  scales_of,
)
from shared import image_data, meta_training, output
from shared.checkpointing import Checkpoints, done_before
from shared.meta_training import EVALUATION_SEEDS, Learned
from shared.settings import launch


def write(
  workdir: pathlib.Path,
  problem: elementary.Problem,
  config: Config,
  learned: Learned,
  evaluations: tuple[dict, dict],
  result: dict[str, Any],
) -> None:
  """result.json, metrics.csv and the figures."""
  before, after = evaluations
  names = elementary.scale_columns(problem)
  scales = [[row[name] for name in names] for row in learned.rows]
  figures = {
    "meta_training": plots.meta_training(
      learned.rows, before["curve"], after["curve"], config.objective
    ),
    **plots.learned(
      problem,
      learned.values,
      np.array([*scales, learned.values.log_scale]),
    ),
  }
  output.write_results(workdir, learned.rows, figures, result)


def summarise(evaluated: dict[str, np.ndarray], when: str) -> dict[str, float]:
  """Of the losses after training."""
  names = "train_loss", "validation_loss", "test_loss"
  return meta_training.summarise({n: evaluated[n] for n in names}, when)


def result_of(
  problem: elementary.Problem,
  config: Config,
  initial: elementary.Hypers,
  learned: elementary.Hypers,
  evaluations: tuple[dict, dict],
) -> dict[str, Any]:
  """Flat keys: the experiment, and what was there before and after it."""
  before, after = evaluations
  return {
    "dataset": config.dataset,
    "objective": config.objective,
    "steps": config.steps,
    "meta_steps": config.meta_steps,
    "seed": config.seed,
    "evaluation_seeds": EVALUATION_SEEDS,
    "parameters": sum(math.prod(shape) for shape in problem.shapes),
    **summarise(before, "before"),
    **summarise(after, "after"),
    "bits_per_parameter_step_before": forgotten_bits(problem, initial),
    "bits_per_parameter_step_after": forgotten_bits(problem, learned),
    "buffer_bits_per_parameter_step": buffer_bits(problem, config, initial),
    **scales_of(problem, learned),
  }


def run(config: Config, workdir: str | None = None) -> dict[str, Any]:
  """The experiment: evaluate, learn, evaluate again, write.

  Raises:
    ValueError: the data or the workdir don't go with the flags.
    FloatingPointError: a loss or a hypergradient was not finite.
  """
  begin = time.perf_counter()
  data = image_data.load(config.dataset, config.data_dir)
  problem = elementary.pose(data, config.seed)
  initial = elementary.initial_hypers(problem, config.steps)
  learned = meta_training.start(initial, learning.optimizer_of(config))
  path = output.folder(workdir)
  with Checkpoints(path, config, data) as checkpoints:
    learned = meta_training.resume(checkpoints, learned, config.meta_steps)
    done_before = len(learned.rows)
    save = functools.partial(meta_training.save, checkpoints)
    learned = learn(problem, config, learned, save)

  evaluate = evaluation(problem, config)
  before, after = (
    jax.tree.map(np.asarray, evaluate(hypers))
    for hypers in (initial, learned.values)
  )
  if not np.isfinite(after["validation_loss"]).all():
    raise FloatingPointError(
      "the learned schedule diverges from fresh weights (validation losses "
      f"{after['validation_loss']}); lower --meta_learning_rate."
    )
  result = result_of(problem, config, initial, learned.values, (before, after))
  result |= {
    "resumed_from": done_before,
    **meta_training.seconds(learned),
    "seconds": time.perf_counter() - begin,
  }
  if path is not None:
    write(path, problem, config, learned, (before, after), result)
  return result


def report(result: dict[str, Any]) -> str:
  """The result for people."""
  r = result
  arrow = lambda name: f"{r[name + '_before']:.4f} -> {r[name + '_after']:.4f}"
  origin = done_before(r)
  return f"""\
meta iterations    {r["meta_steps"]}{origin}, each through {r["steps"]} steps \
of {r["parameters"]:,} parameters
validation loss    {arrow("validation_loss")} nats (mean of \
{r["evaluation_seeds"]} fresh seeds)
test loss          {arrow("test_loss")} nats
train loss         {arrow("train_loss")} nats
bits/param/step    {arrow("bits_per_parameter_step")} forgotten; buffers hold \
{r["buffer_bits_per_parameter_step"]:.4f}
time               {r["seconds"]:.1f} s, {meta_training.pace(r)}"""


if __name__ == "__main__":
  launch(Config, run, report)
