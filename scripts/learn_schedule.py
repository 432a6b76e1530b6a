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

import dataclasses
import functools
import math
import pathlib
import statistics
import time
from collections.abc import Callable
from typing import Any, NamedTuple

import datasets
import experiment
import jax
import numpy as np
import optax
import schedule_figures
import schedules
from absl import flags
from tqdm import tqdm

_DATASET = flags.DEFINE_enum(
  "dataset", "digits", datasets.NAMES, "Images; all but digits in --data_dir."
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

_EVALUATION_SEEDS = 10
# May differ between a run and its resumption.
_LOCAL = ("data_dir", "meta_steps")


@dataclasses.dataclass(frozen=True)
class Config:
  """One experiment; see the flags of the same names."""

  dataset: str = "digits"
  data_dir: str | None = None
  objective: str = "training"
  steps: int = 100
  meta_steps: int = 50
  batch_size: int = 200
  meta_learning_rate: float = 0.04
  seed: int = 0


class Learned(NamedTuple):
  """The state of the meta optimisation: all that a checkpoint holds."""

  hypers: schedules.Hypers
  meta_state: Any  # of Adam
  rows: list[dict[str, float]]  # of metrics.csv, one a meta iteration


def meta_optimizer(config: Config) -> optax.GradientTransformation:
  """Adam with its usual averages, unlike the authors' own variant."""
  return optax.adam(config.meta_learning_rate)


def meta_iteration(problem: schedules.Problem, config: Config) -> Callable:
  """(hypers, meta state, number) -> the next ones, and figures."""

  def losses_of(hypers, key):
    run = schedules.train(problem, config.batch_size, hypers, key)
    losses = {
      "training": schedules.mean_loss(run.params, *problem.train),
      "validation": schedules.mean_loss(run.params, *problem.validation),
    }
    return losses[config.objective], losses

  @jax.jit
  def step(hypers, meta_state, number):
    key = jax.random.fold_in(problem.meta_key, number)
    gradient, losses = jax.grad(losses_of, has_aux=True)(hypers, key)
    updates, meta_state = meta_optimizer(config).update(gradient, meta_state)
    figures = {
      "train_loss": losses["training"],
      "validation_loss": losses["validation"],
      "hypergradient_norm": optax.global_norm(gradient),
    }
    return optax.apply_updates(hypers, updates), meta_state, figures

  return step


def evaluation(problem: schedules.Problem, config: Config) -> Callable:
  """hypers -> losses after and during training, for each of fresh seeds."""

  @jax.jit
  def evaluate(hypers):
    def one(key):
      run = schedules.train(problem, config.batch_size, hypers, key)
      return {
        "train_loss": schedules.mean_loss(run.params, *problem.train),
        "validation_loss": schedules.mean_loss(run.params, *problem.validation),
        "test_loss": schedules.mean_loss(run.params, *problem.test),
        "curve": run.losses,
      }

    keys = jax.random.split(problem.evaluation_key, _EVALUATION_SEEDS)
    return jax.lax.map(one, keys)

  return evaluate


def learn(
  problem: schedules.Problem,
  config: Config,
  learned: Learned,
  save: Callable[[Learned], None],
) -> Learned:
  """Goes on to `config.meta_steps`, and saves after each meta iteration.

  Raises:
    FloatingPointError: a loss or a hypergradient was not finite.
  """
  step = meta_iteration(problem, config)
  hypers, meta_state, rows = learned
  bar = tqdm(
    range(len(rows), config.meta_steps),
    initial=len(rows),
    total=config.meta_steps,
    desc="learning",
    disable=None,
  )
  for number in bar:
    start = time.perf_counter()
    after, meta_state, figures = step(hypers, meta_state, np.int32(number))
    figures = {name: float(value) for name, value in figures.items()}
    check_finite(problem, config, hypers, number, figures)
    seconds = time.perf_counter() - start
    # The scales that this iteration's losses belong to.
    scales = dict(
      zip(
        schedules.scale_columns(problem),
        map(float, hypers.log_scale),
        strict=True,
      )
    )
    rows = [*rows, {"meta_step": number, **figures, **scales}]
    rows[-1]["seconds"] = seconds
    hypers = after
    save(Learned(hypers, meta_state, rows))
    bar.set_postfix_str(f"validation loss {figures['validation_loss']:.4f}")
  return Learned(hypers, meta_state, rows)


def check_finite(
  problem: schedules.Problem,
  config: Config,
  hypers: schedules.Hypers,
  number: int,
  figures: dict[str, float],
) -> None:
  """Raises FloatingPointError, with the reason if it is known."""
  bad = [f"{k}={v}" for k, v in figures.items() if not math.isfinite(v)]
  if not bad:
    return
  key = jax.random.fold_in(problem.meta_key, number)
  run = jax.jit(functools.partial(schedules.train, problem, config.batch_size))(
    hypers, key
  )
  reason = "lower --meta_learning_rate."
  try:
    schedules.optimizer_of(hypers).check(run.state)
  except ValueError as error:
    reason = f"{error}  Here: lower --meta_learning_rate."
  raise FloatingPointError(
    f"meta iteration {number} has {', '.join(bad)}: {reason}"
  )


def forgotten_bits(
  problem: schedules.Problem, hypers: schedules.Hypers
) -> float:
  """The bits that momentum forgets a step and parameter: mean log2(1/b)."""
  sizes = [math.prod(shape) for shape in problem.shapes]
  momenta = np.asarray(jax.nn.sigmoid(hypers.logit_momentum), np.float64)
  bits = -np.log2(momenta).mean(0)
  return float(np.average(bits, weights=sizes))


def buffer_bits(
  problem: schedules.Problem, config: Config, hypers: schedules.Hypers
) -> float:
  """The bits that a run's buffers have room for, per parameter and step."""
  run = jax.eval_shape(
    functools.partial(schedules.train, problem, config.batch_size),
    hypers,
    problem.meta_key,
  )
  buffers = [
    buffer for leaf in run.state.leaves for buffer in leaf.buffers.values()
  ]
  arrays = jax.tree.leaves(buffers)
  size = sum(math.prod(shape) for shape in problem.shapes)
  return (
    8 * sum(a.size * a.dtype.itemsize for a in arrays) / (size * config.steps)
  )


def resume(
  checkpoints: experiment.Checkpoints, config: Config, start: Learned
) -> Learned:
  """The latest state, or `start` if there is none.

  Raises:
    ValueError: it belongs to other flags, or is beyond --meta_steps.
  """
  latest = checkpoints.latest()
  if latest is None:
    return start
  number, saved = latest
  if number > config.meta_steps:
    raise ValueError(
      f"{checkpoints.workdir} holds {number} meta iterations, more than "
      f"--meta_steps={config.meta_steps}; raise it, or give another --workdir."
    )
  state = start.hypers, start.meta_state
  hypers, meta_state = checkpoints.restore(number, state)
  return Learned(hypers, meta_state, saved["about"])


def write(
  workdir: pathlib.Path,
  problem: schedules.Problem,
  config: Config,
  learned: Learned,
  evaluations: tuple[dict, dict],
  result: dict[str, Any],
) -> None:
  """result.json, metrics.csv and the figures."""
  experiment.write_csv(workdir / "metrics.csv", learned.rows)
  hypers = learned.hypers
  rates = np.exp(np.asarray(hypers.log_rate))
  momenta = np.asarray(jax.nn.sigmoid(hypers.logit_momentum))
  figures = {
    "meta_training": schedule_figures.meta_training(
      learned.rows,
      evaluations[0]["curve"],
      evaluations[1]["curve"],
      config.objective,
    ),
    "learning_rates": schedule_figures.schedules(
      rates, math.exp(schedules.LOG_RATE), "learning rate"
    ),
    "momenta": schedule_figures.schedules(momenta, 0.5, "momentum", 1),
    "scales": schedule_figures.scales(
      np.array(
        [
          [row[name] for name in schedules.scale_columns(problem)]
          for row in learned.rows
        ]
        + [np.asarray(hypers.log_scale)]
      ),
      [shape[0] for shape in problem.shapes[::2]],
    ),
  }
  for name, figure in figures.items():
    figure.savefig(workdir / f"{name}.png", dpi=150)
  experiment.write_json(workdir / "result.json", result)


def summarise(evaluated: dict[str, np.ndarray], name: str) -> dict[str, float]:
  """Means over seeds, and the standard deviation of the validation loss."""
  losses = ("train_loss", "validation_loss", "test_loss")
  means = {f"{loss}_{name}": float(evaluated[loss].mean()) for loss in losses}
  spread = float(evaluated["validation_loss"].std(ddof=1))
  return {**means, f"validation_loss_std_{name}": spread}


def run(config: Config, workdir: str | None = None) -> dict[str, Any]:
  """The experiment: evaluate, learn, evaluate again, write.

  Raises:
    ValueError: the data or the workdir don't go with the flags.
    FloatingPointError: a loss or a hypergradient was not finite.
  """
  start_time = time.perf_counter()
  data = datasets.load(config.dataset, config.data_dir)
  problem = schedules.pose(data, config.seed)
  initial = schedules.initial_hypers(problem, config.steps)
  learned = Learned(initial, meta_optimizer(config).init(initial), [])
  path = experiment.folder(workdir)
  save = lambda learned: None
  if path is not None:
    checkpoints = experiment.Checkpoints(path, config, _LOCAL)
    learned = resume(checkpoints, config, learned)

    def save(learned: Learned) -> None:
      state = learned.hypers, learned.meta_state
      checkpoints.save(len(learned.rows), state, learned.rows)
      experiment.write_csv(path / "metrics.csv", learned.rows)

  done_before = len(learned.rows)
  learned = learn(problem, config, learned, save)
  if path is not None:
    checkpoints.close()

  evaluate = evaluation(problem, config)
  before, after = (
    jax.tree.map(np.asarray, evaluate(hypers))
    for hypers in (initial, learned.hypers)
  )
  if not np.isfinite(after["validation_loss"]).all():
    raise FloatingPointError(
      "the learned schedule diverges from fresh weights (validation losses "
      f"{after['validation_loss']}); lower --meta_learning_rate."
    )
  seconds = [row["seconds"] for row in learned.rows]
  scales = map(float, learned.hypers.log_scale)
  result = {
    "dataset": config.dataset,
    "objective": config.objective,
    "steps": config.steps,
    "meta_steps": config.meta_steps,
    "seed": config.seed,
    "evaluation_seeds": _EVALUATION_SEEDS,
    "parameters": sum(math.prod(shape) for shape in problem.shapes),
    **summarise(before, "before"),
    **summarise(after, "after"),
    "bits_per_parameter_step_before": forgotten_bits(problem, initial),
    "bits_per_parameter_step_after": forgotten_bits(problem, learned.hypers),
    "buffer_bits_per_parameter_step": buffer_bits(problem, config, initial),
    **dict(zip(schedules.scale_columns(problem), scales, strict=True)),
    "resumed_from": done_before,
    "seconds_per_meta_step": statistics.median(seconds),
    "seconds": time.perf_counter() - start_time,
  }
  if path is not None:
    write(path, problem, config, learned, (before, after), result)
  return result


def report(result: dict[str, Any]) -> str:
  """The result for people."""
  r = result
  arrow = lambda name: f"{r[name + '_before']:.4f} -> {r[name + '_after']:.4f}"
  resumed = r["resumed_from"]
  origin = f" ({resumed} of them done before)" if resumed else ""
  return f"""\
meta iterations    {r["meta_steps"]}{origin}, each through {r["steps"]} steps \
of {r["parameters"]:,} parameters
validation loss    {arrow("validation_loss")} nats (mean of \
{r["evaluation_seeds"]} fresh seeds)
test loss          {arrow("test_loss")} nats
train loss         {arrow("train_loss")} nats
bits/param/step    {arrow("bits_per_parameter_step")} forgotten; buffers hold \
{r["buffer_bits_per_parameter_step"]:.4f}
time               {r["seconds"]:.1f} s, {r["seconds_per_meta_step"]:.3f} s \
each meta iteration"""


if __name__ == "__main__":
  experiment.start(
    lambda: report(run(experiment.settings(Config), _WORKDIR.value))
  )
