"""Tunes the hyperparameters of your training by gradient descent on them.

  python scripts/tune.py --workdir=out/tune
  python scripts/tune.py --problem=mine.py --tune=learning_rate --per_array

A problem is a Python file; `scripts/tuning/example_problem.py` is the default
and a template.  It defines

  init(key) -> params                initial parameters, a pytree of floats
  batches(key, step) -> batch        key belongs to the run: fold the step in
  loss_fn(params, batch) -> scalar   the training loss; arguments that are
                                     numbers by default can be tuned, too, as
                                     in loss_fn(params, batch, l2=1e-4)
  validation_loss(params) -> scalar  what is lowered, or else
  validation_batch                   a batch, on which loss_fn is lowered
  optimizer() -> optimizer           optional; revmom.sgd(0.01, 0.9) otherwise
  test_loss(params) -> scalar        optional, only reported

all of JAX functions; a loss may use module-level arrays.  Each meta iteration
trains for --steps steps, runs the training backward bit for bit to find the
derivative of the final validation loss with respect to each value in --tune,
and takes a step of Adam: on the logits of values that lie between 0 and 1
(momentum, b1, b2, decay, average) and on the logarithms of all others.
--per_step tunes a value for each step, --per_array one for each parameter
array.  Hyperparameters of a partition's optimizers are named after their
labels, as in --tune=matrices.learning_rate.  Zeros of a schedule, such as the
first step of a warm-up, stay zero.

Half a minute on 2 CPU cores, most of it compilation.  Expect means over 10
fresh seeds of 0.794 -> 0.173 nats of validation loss and 0.795 -> 0.117 of
test loss, at a learning rate of 0.01 -> 0.048 and a momentum of 0.9 -> 0.971;
with --per_step 0.144 and 0.095.

With --workdir it writes result.json, metrics.csv (a row for each meta
iteration), hyperparameters.npz (the tuned values), validation_loss.png, a
figure for each hyperparameter, and a checkpoint after every meta iteration.
Running it again there goes on from the last one and ends in the same bits as
a run that was never interrupted; a larger --meta_steps goes on further.
"""

import functools
import math
import pathlib
import time
from typing import Any

import jax
import numpy as np
import optax

from shared import meta_training, output
from shared.checkpointing import Checkpoints, done_before
from shared.meta_training import EVALUATION_SEEDS, Learned
from shared.settings import launch
from tuning import plots
from tuning.problem_file import EXAMPLE, Problem, pose
from tuning.runs import evaluation, learn
from tuning.values import Config, Tuned, arrays_of, start, summarise_values


def write(
  workdir: pathlib.Path,
  problem: Problem,
  config: Config,
  initial: Tuned,
  learned: Learned,
  result: dict[str, Any],
) -> None:
  """result.json, metrics.csv, hyperparameters.npz and the figures."""
  tuned, rows = learned.values, learned.rows
  np.savez(workdir / "hyperparameters.npz", **arrays_of(problem, config, tuned))
  drawn = {"validation_loss": plots.loss(problem, config, rows, result)}
  for name in config.tune:
    drawn[name] = plots.values(
      problem, config, name, initial[name], tuned[name], rows
    )
  output.write_results(workdir, rows, drawn, result)


def result_of(
  problem: Problem,
  config: Config,
  initial: Tuned,
  learned: Learned,
  losses: dict[str, dict[str, np.ndarray]],
) -> dict[str, Any]:
  """Flat keys: the experiment, and what was there before and after it."""
  return {
    "problem": problem.name,
    "tuned": ",".join(config.tune),
    "tuned_values": sum(table.size for table in learned.values.values()),
    "steps": config.steps,
    "meta_steps": config.meta_steps,
    "seed": config.seed,
    "fresh_seeds": config.fresh_seeds,
    "evaluation_seeds": EVALUATION_SEEDS,
    "parameters": sum(
      math.prod(leaf.shape) for leaf in jax.tree.leaves(problem.params)
    ),
    **meta_training.summarise(losses["before"], "before"),
    **meta_training.summarise(losses["after"], "after"),
    **summarise_values(initial, "before"),
    **summarise_values(learned.values, "after"),
  }


def run(config: Config, workdir: str | None = None) -> dict[str, Any]:
  """The experiment: evaluate, tune, evaluate again, write.

  Raises:
    FileNotFoundError: there is no such problem file.
    ValueError: the problem or the workdir don't go with the flags.
    FloatingPointError: a loss or a hypergradient was not finite.
  """
  begin = time.perf_counter()
  problem = pose(
    EXAMPLE if config.problem is None else pathlib.Path(config.problem)
  )
  initial = start(problem, config)
  learned = meta_training.start(initial, optax.adam(config.meta_learning_rate))
  path = output.folder(workdir)
  with Checkpoints(path, config, problem.digest) as checkpoints:
    learned = meta_training.resume(checkpoints, learned, config.meta_steps)
    done_before = len(learned.rows)
    save = functools.partial(meta_training.save, checkpoints)
    evaluate = evaluation(problem, config)
    losses = {"before": evaluate(initial)}
    learned = learn(problem, config, learned, save)
  losses["after"] = evaluate(learned.values)
  result = result_of(problem, config, initial, learned, losses)
  result |= {
    "resumed_from": done_before,
    **meta_training.seconds(learned),
    "seconds": time.perf_counter() - begin,
  }
  if path is not None:
    write(path, problem, config, initial, learned, result)
  return result


def report(result: dict[str, Any]) -> str:
  """The result for people."""
  r = result
  origin = done_before(r)
  lines = [
    f"problem            {r['problem']}, {r['parameters']:,} parameters",
    f"meta iterations    {r['meta_steps']}{origin}, each through {r['steps']} "
    "steps",
  ]
  for name in ("validation_loss", "test_loss"):
    if f"{name}_before" in r:
      label = name.replace("_", " ")
      lines.append(
        f"{label:<18} {r[name + '_before']:.4g} -> {r[name + '_after']:.4g} "
        f"(means of {r['evaluation_seeds']} fresh seeds)"
      )
  names = r["tuned"].split(",")
  width = max(18, *map(len, names))
  for name in names:
    label = name.replace("_", " ")
    line = (
      f"{label:<{width}} {r[name + '_before']:.4g} -> {r[name + '_after']:.4g}"
    )
    if f"{name}_after_smallest" in r:
      line += (
        f" (means; from {r[name + '_after_smallest']:.4g} to "
        f"{r[name + '_after_largest']:.4g})"
      )
    lines.append(line)
  lines.append(
    f"time               {r['seconds']:.1f} s, {meta_training.pace(r)}"
  )
  return "\n".join(lines)


if __name__ == "__main__":
  launch(Config, run, report)
