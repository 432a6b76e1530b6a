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

import math
import pathlib
import time
from typing import Any

from shared import image_data
from shared import output
from shared.checkpointing import Checkpoints, done_before
import jax
from shared import meta_training
import numpy as np
from schedules.elementary import plots
from schedules.elementary import elementary
from absl import flags
from shared.meta_training import EVALUATION_SEEDS, Learned
from elementary.learning import (
  Config,
  buffer_bits,
  evaluation,
  forgotten_bits,
  learn,
  resume,
  scales_of,
)

_DATASET = flags.DEFINE_enum(
  "dataset", "digits", image_data.NAMES, "Images; all but digits in --data_dir."
)
_DATA_DIR = flags.DEFINE_string("data_dir", None, "Folder of idx files.")
_OBJECTIVE = flags.DEFINE_enum(
  "objective",
  "training",
  ["training", "validation"],
  "The images whose loss after training is minimised; the authors' code takes "
  "the training images.",
)
_STEPS = flags.DEFINE_integer(
  "steps", 100, "SGD steps of one training run.", lower_bound=1
)
_META_STEPS = flags.DEFINE_integer(
  "meta_steps", 50, "Training runs, each with a hypergradient.", lower_bound=1
)
_BATCH_SIZE = flags.DEFINE_integer(
  "batch_size", 200, "Images a step, drawn with replacement.", lower_bound=1
)
_META_LEARNING_RATE = flags.DEFINE_float(
  "meta_learning_rate",
  0.04,
  "Of Adam, on log scales, log learning rates and logit momenta; by default "
  "the paper's.  0.1 learns the digits faster but diverges on MNIST.",
  lower_bound=0.0,
)
_SEED = flags.DEFINE_integer("seed", 0, "Of initial weights and batches.")
_WORKDIR = flags.DEFINE_string("workdir", None, "Where results go.")

# May differ between a run and its resumption.
_LOCAL = ("data_dir", "meta_steps")


def write(
  workdir: pathlib.Path,
  problem: elementary.Problem,
  config: Config,
  learned: Learned,
  evaluations: tuple[dict, dict],
  result: dict[str, Any],
) -> None:
  """result.json, metrics.csv and the figures."""
  hypers = learned.values
  rates = np.exp(np.asarray(hypers.log_rate))
  momenta = np.asarray(jax.nn.sigmoid(hypers.logit_momentum))
  figures = {
    "meta_training": plots.meta_training(
      learned.rows,
      evaluations[0]["curve"],
      evaluations[1]["curve"],
      config.objective,
    ),
    "learning_rates": plots.schedules(
      rates, math.exp(elementary.LOG_RATE), "learning rate"
    ),
    "momenta": plots.schedules(momenta, 0.5, "momentum", 1),
    "scales": plots.scales(
      np.array(
        [
          [row[name] for name in elementary.scale_columns(problem)]
          for row in learned.rows
        ]
        + [np.asarray(hypers.log_scale)]
      ),
      [shape[0] for shape in problem.shapes[::2]],
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
  learned = meta_training.start(initial, config.meta_learning_rate)
  path = output.folder(workdir)
  with Checkpoints(path, config, _LOCAL, data) as checkpoints:
    learned = resume(checkpoints, config, learned)
    done_before = len(learned.rows)
    save = lambda state: meta_training.save(checkpoints, state, state.rows)
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
  output.start(
    lambda: report(run(output.settings(Config), _WORKDIR.value))
  )
