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

import csv
import dataclasses
import functools
import json
import math
import os
import pathlib
import statistics
import sys
import time
from collections.abc import Callable
from typing import Any, NamedTuple

import datasets
import jax
import jax.numpy as jnp
import numpy as np
import optax
import orbax.checkpoint as ocp
from absl import app, flags, logging
from matplotlib.figure import Figure
from tqdm import tqdm

import revmom

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

_HIDDEN = 50, 50, 50
# Where learning starts, from the paper.
_LOG_SCALE, _LOG_RATE, _LOGIT_MOMENTUM = -3.0, -1.0, 0.0
# Buffers leave room for momenta whose geometric mean over the steps is this.
_MOMENTUM_FLOOR = 0.1
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


class Hypers(NamedTuple):
  """What is learned; arrays are weights 1, biases 1, weights 2, ..."""

  log_scale: Any  # [arrays]
  log_rate: Any  # [steps, arrays]
  logit_momentum: Any  # [steps, arrays]


class Problem(NamedTuple):
  """The network, its data and the keys of all randomness."""

  shapes: list[tuple[int, ...]]  # of the arrays
  train: tuple[jax.Array, jax.Array]  # images [N, pixels] and labels
  validation: tuple[jax.Array, jax.Array]
  test: tuple[jax.Array, jax.Array]
  meta_key: jax.Array
  evaluation_key: jax.Array


class Learned(NamedTuple):
  """The state of the meta optimisation: all that a checkpoint holds."""

  hypers: Hypers
  meta_state: Any  # of Adam
  rows: list[dict[str, float]]  # of metrics.csv, one a meta iteration


def pose(config: Config) -> Problem:
  """Loads the data; the mean training image is subtracted everywhere."""
  data = datasets.load(config.dataset, config.data_dir)
  mean = data.train_images.mean(0)
  prepare = lambda images, labels: (
    jnp.asarray((images - mean).reshape(len(images), -1)),
    jnp.asarray(labels),
  )
  sizes = mean.size, *_HIDDEN, int(data.train_labels.max()) + 1
  shapes: list[tuple[int, ...]] = []
  for fan_in, fan_out in zip(sizes[:-1], sizes[1:], strict=True):
    shapes += [(fan_in, fan_out), (fan_out,)]
  meta_key, evaluation_key = jax.random.split(jax.random.key(config.seed))
  return Problem(
    shapes,
    prepare(data.train_images, data.train_labels),
    prepare(data.validation_images, data.validation_labels),
    prepare(data.test_images, data.test_labels),
    meta_key,
    evaluation_key,
  )


def initial_hypers(problem: Problem, config: Config) -> Hypers:
  """The paper's: scales e^-3, learning rates e^-1, momenta 1/2."""
  arrays = len(problem.shapes)
  # With a dtype, or they would be weakly typed and the step compiled twice.
  fill = lambda shape, value: jnp.full(shape, value, jnp.float32)
  return Hypers(
    fill(arrays, _LOG_SCALE),
    fill((config.steps, arrays), _LOG_RATE),
    fill((config.steps, arrays), _LOGIT_MOMENTUM),
  )


def mean_loss(params: list, images: jax.Array, labels: jax.Array) -> jax.Array:
  """Cross-entropy of the network, in nats."""
  x = images
  for weights, biases in zip(params[0::2], params[1::2], strict=True):
    scores = x @ weights + biases
    x = jnp.tanh(scores)
  losses = optax.softmax_cross_entropy_with_integer_labels(scores, labels)
  return losses.mean()


def batch_loss(params, indices, images, labels):
  """The loss of one SGD step."""
  return mean_loss(params, images[indices], labels[indices])


def optimizer_of(hypers: Hypers) -> Any:
  """SGD v' = b v - (1 - b) g, x' = x + a v' with all a and b learned."""
  columns = lambda table: list(table.T)
  return revmom.sgd(
    learning_rate=columns(jnp.exp(hypers.log_rate)),
    momentum=columns(jax.nn.sigmoid(hypers.logit_momentum)),
    form="ema",
    floors={"velocity": _MOMENTUM_FLOOR},
  )


def train(
  problem: Problem, config: Config, hypers: Hypers, key: jax.Array
) -> revmom.Run:
  """One training run, from weights and biases that `key` draws."""
  weights_key, batch_key = jax.random.split(key)
  keys = jax.random.split(weights_key, len(problem.shapes))
  params = [
    scale * jax.random.normal(k, shape)
    for scale, k, shape in zip(
      jnp.exp(hypers.log_scale), keys, problem.shapes, strict=True
    )
  ]
  indices = jax.random.randint(
    batch_key,
    (config.steps, config.batch_size),
    0,
    problem.train[1].shape[0],
  )
  return revmom.train(
    batch_loss, optimizer_of(hypers), params, indices, *problem.train
  )


def meta_optimizer(config: Config) -> optax.GradientTransformation:
  """Adam with its usual averages, unlike the authors' own variant."""
  return optax.adam(config.meta_learning_rate)


def meta_iteration(problem: Problem, config: Config) -> Callable:
  """(hypers, meta state, number) -> the next ones, and figures."""

  def losses_of(hypers, key):
    run = train(problem, config, hypers, key)
    losses = {
      "training": mean_loss(run.params, *problem.train),
      "validation": mean_loss(run.params, *problem.validation),
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


def evaluation(problem: Problem, config: Config) -> Callable:
  """hypers -> losses after and during training, for each of fresh seeds."""

  @jax.jit
  def evaluate(hypers):
    def one(key):
      run = train(problem, config, hypers, key)
      return {
        "train_loss": mean_loss(run.params, *problem.train),
        "validation_loss": mean_loss(run.params, *problem.validation),
        "test_loss": mean_loss(run.params, *problem.test),
        "curve": run.losses,
      }

    keys = jax.random.split(problem.evaluation_key, _EVALUATION_SEEDS)
    return jax.lax.map(one, keys)

  return evaluate


def learn(
  problem: Problem,
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
      zip(scale_columns(problem), map(float, hypers.log_scale), strict=True)
    )
    rows = [*rows, {"meta_step": number, **figures, **scales}]
    rows[-1]["seconds"] = seconds
    hypers = after
    save(Learned(hypers, meta_state, rows))
    bar.set_postfix_str(f"validation loss {figures['validation_loss']:.4f}")
  return Learned(hypers, meta_state, rows)


def check_finite(
  problem: Problem,
  config: Config,
  hypers: Hypers,
  number: int,
  figures: dict[str, float],
) -> None:
  """Raises FloatingPointError, with the reason if it is known."""
  bad = [f"{k}={v}" for k, v in figures.items() if not math.isfinite(v)]
  if not bad:
    return
  key = jax.random.fold_in(problem.meta_key, number)
  run = jax.jit(functools.partial(train, problem, config))(hypers, key)
  reason = "lower --meta_learning_rate."
  try:
    optimizer_of(hypers).check(run.state)
  except ValueError as error:
    reason = f"{error}  Here: lower --meta_learning_rate."
  raise FloatingPointError(
    f"meta iteration {number} has {', '.join(bad)}: {reason}"
  )


def forgotten_bits(problem: Problem, hypers: Hypers) -> float:
  """The bits that momentum forgets a step and parameter: mean log2(1/b)."""
  sizes = [math.prod(shape) for shape in problem.shapes]
  momenta = np.asarray(jax.nn.sigmoid(hypers.logit_momentum), np.float64)
  bits = -np.log2(momenta).mean(0)
  return float(np.average(bits, weights=sizes))


def buffer_bits(problem: Problem, config: Config, hypers: Hypers) -> float:
  """The bits that a run's buffers have room for, per parameter and step."""
  run = jax.eval_shape(
    functools.partial(train, problem, config), hypers, problem.meta_key
  )
  buffers = [
    buffer for leaf in run.state.leaves for buffer in leaf.buffers.values()
  ]
  arrays = jax.tree.leaves(buffers)
  size = sum(math.prod(shape) for shape in problem.shapes)
  return (
    8 * sum(a.size * a.dtype.itemsize for a in arrays) / (size * config.steps)
  )


def scale_columns(problem: Problem) -> list[str]:
  """Names of the 8 log scales."""
  return [
    f"log_scale_{kind}_{layer}"
    for layer in range(1, len(problem.shapes) // 2 + 1)
    for kind in ("weights", "biases")
  ]


class Checkpoints:
  """After every meta iteration, all that follows from it can be repeated."""

  def __init__(self, workdir: pathlib.Path, config: Config):
    self.workdir, self.config = workdir, config
    # Synchronous: what is saved is on disk before the next iteration.
    # A save is a rename, so a process that is killed leaves all of it or none.
    self.manager = ocp.CheckpointManager(
      workdir / "checkpoint",
      options=ocp.CheckpointManagerOptions(
        max_to_keep=2, enable_async_checkpointing=False
      ),
    )

  def save(self, learned: Learned) -> None:
    about = {
      "config": dataclasses.asdict(self.config),
      "fingerprint": revmom.fingerprint()._asdict(),
      "rows": learned.rows,
    }
    arrays = dict(enumerate_leaves(learned))
    self.manager.save(
      len(learned.rows),
      args=ocp.args.Composite(
        arrays=ocp.args.StandardSave(arrays), about=ocp.args.JsonSave(about)
      ),
    )
    write_metrics(self.workdir, learned.rows)

  def restore(self, start: Learned) -> Learned:
    """The latest state, or `start` if there is none.

    Raises:
      ValueError: it belongs to other flags.
    """
    number = self.manager.latest_step()
    if number is None:
      return start
    about = self.manager.restore(
      number, args=ocp.args.Composite(about=ocp.args.JsonRestore())
    )["about"]
    check_config(self.workdir, self.config, about["config"])
    if number > self.config.meta_steps:
      raise ValueError(
        f"{self.workdir} holds {number} meta iterations, more than "
        f"--meta_steps={self.config.meta_steps}; raise it, or give another "
        "--workdir."
      )
    if about["fingerprint"] != json_like(revmom.fingerprint()._asdict()):
      logging.warning(
        "%s was begun in another environment (%s), so its bits may not be "
        "those of an uninterrupted run.",
        self.workdir,
        about["fingerprint"],
      )
    abstract = jax.tree.map(
      lambda a: jax.ShapeDtypeStruct(a.shape, a.dtype),
      dict(enumerate_leaves(start)),
    )
    arrays = self.manager.restore(
      number,
      args=ocp.args.Composite(arrays=ocp.args.StandardRestore(abstract)),
    )["arrays"]
    state = start.hypers, start.meta_state
    leaves = [jnp.asarray(arrays[name]) for name, _ in enumerate_leaves(start)]
    hypers, meta_state = jax.tree.unflatten(jax.tree.structure(state), leaves)
    return Learned(hypers, meta_state, about["rows"])

  def close(self) -> None:
    self.manager.close()


def enumerate_leaves(learned: Learned) -> list[tuple[str, jax.Array]]:
  leaves = jax.tree.leaves((learned.hypers, learned.meta_state))
  return [(str(number), leaf) for number, leaf in enumerate(leaves)]


def json_like(value: Any) -> Any:
  return json.loads(json.dumps(value))


def check_config(workdir: pathlib.Path, config: Config, saved: dict) -> None:
  """Raises ValueError if a checkpoint belongs to other flags."""
  changed = [
    f"--{name}={saved.get(name)} there, --{name}={value} now"
    for name, value in dataclasses.asdict(config).items()
    if name not in _LOCAL and saved.get(name) != value
  ]
  if changed:
    raise ValueError(
      f"{workdir} holds a run with other flags ({'; '.join(changed)}); give "
      "the same ones, or another --workdir."
    )


def write_metrics(workdir: pathlib.Path, rows: list[dict]) -> None:
  """All rows so far; the file is replaced, so that none is half written."""
  temporary = workdir / "metrics.csv.tmp"
  with open(temporary, "w", newline="") as file:
    writer = csv.DictWriter(file, rows[0])
    writer.writeheader()
    writer.writerows(rows)
  os.replace(temporary, workdir / "metrics.csv")


def plot_meta_training(
  rows: list[dict], before: dict, after: dict, config: Config
) -> Figure:
  """Losses over meta iterations; training curves before and after."""
  figure = Figure(figsize=(10, 4), layout="constrained")
  left, right = figure.subplots(1, 2)
  numbers = [row["meta_step"] for row in rows]
  for name, label in (
    ("train_loss", "training"),
    ("validation_loss", "validation"),
  ):
    left.plot(numbers, [row[name] for row in rows], label=f"{label} images")
  left.set_title(f"Meta-training: {config.objective} loss is minimised")
  left.set_xlabel("meta iteration")
  left.set_ylabel(f"cross-entropy after {config.steps} steps (nats)")
  for curves, label in ((before, "before"), (after, "after meta-training")):
    mean = curves["curve"].mean(0)
    (line,) = right.plot(mean, label=label)
    right.fill_between(
      np.arange(len(mean)),
      curves["curve"].min(0),
      curves["curve"].max(0),
      color=line.get_color(),
      alpha=0.2,
      linewidth=0,
    )
  right.set_title(f"Training, mean and range of {_EVALUATION_SEEDS} seeds")
  right.set_xlabel("SGD step")
  right.set_ylabel("cross-entropy of the batch (nats)")
  for axes in (left, right):
    axes.set_yscale("log")
    axes.grid(alpha=0.3)
    axes.legend()
  return figure


def plot_schedules(
  table: np.ndarray, initial: float, name: str, top: float | None = None
) -> Figure:
  """A panel for weights and one for biases, a line for each layer."""
  figure = Figure(figsize=(10, 4), layout="constrained")
  panels = figure.subplots(1, 2, sharey=True)
  for offset, (kind, axes) in enumerate(
    zip(("weights", "biases"), panels, strict=True)
  ):
    columns = table[:, offset::2]
    for layer, (column, color) in enumerate(
      zip(columns.T, layer_colors(columns.shape[1]), strict=True), 1
    ):
      axes.plot(column, color=color, label=f"layer {layer}")
    axes.axhline(initial, color="gray", linestyle=":", label="at the start")
    axes.set_title(f"Learned {name} of {kind}")
    axes.set_xlabel("SGD step")
    axes.grid(alpha=0.3)
  panels[0].set_ylim(0, top)  # shared, so after all lines
  panels[0].set_ylabel(f"{name} (dimensionless)")
  figure.legend(
    *panels[0].get_legend_handles_labels(), loc="outside right center"
  )
  return figure


def plot_scales(rows: list[dict], hypers: Hypers, problem: Problem) -> Figure:
  """Log scales over meta iterations, beside the usual heuristic."""
  figure = Figure(figsize=(10, 4), layout="constrained")
  panels = figure.subplots(1, 2, sharey=True)
  table = np.array(
    [[row[name] for name in scale_columns(problem)] for row in rows]
    + [np.asarray(hypers.log_scale)]
  )
  fan_ins = [shape[0] for shape in problem.shapes[::2]]
  colors = layer_colors(len(fan_ins))
  for offset, (kind, axes) in enumerate(
    zip(("weights", "biases"), panels, strict=True)
  ):
    for layer, color in enumerate(colors):
      axes.plot(
        table[:, 2 * layer + offset], color=color, label=f"layer {layer + 1}"
      )
    axes.set_title(f"Learned initial scale of {kind}")
    axes.set_xlabel("meta iteration")
    axes.grid(alpha=0.3)
  for fan_in, style in zip(dict.fromkeys(fan_ins), ("--", ":"), strict=False):
    panels[0].axhline(
      -math.log(fan_in) / 2,
      color="gray",
      linestyle=style,
      label=f"1/sqrt({fan_in}), fan-in",
    )
  panels[0].set_ylabel("log of the standard deviation")
  figure.legend(
    *panels[0].get_legend_handles_labels(), loc="outside right center"
  )
  return figure


def layer_colors(layers: int) -> list:
  from matplotlib import colormaps

  return list(colormaps["viridis"](np.linspace(0, 0.9, layers)))


def write(
  workdir: pathlib.Path,
  problem: Problem,
  config: Config,
  learned: Learned,
  evaluations: tuple[dict, dict],
  result: dict[str, Any],
) -> None:
  """result.json, metrics.csv and the figures."""
  write_metrics(workdir, learned.rows)
  hypers = learned.hypers
  rates = np.exp(np.asarray(hypers.log_rate))
  momenta = np.asarray(jax.nn.sigmoid(hypers.logit_momentum))
  figures = {
    "meta_training": plot_meta_training(learned.rows, *evaluations, config),
    "learning_rates": plot_schedules(
      rates, math.exp(_LOG_RATE), "learning rate"
    ),
    "momenta": plot_schedules(momenta, 0.5, "momentum", 1),
    "scales": plot_scales(learned.rows, hypers, problem),
  }
  for name, figure in figures.items():
    figure.savefig(workdir / f"{name}.png", dpi=150)
  temporary = workdir / "result.json.tmp"
  temporary.write_text(json.dumps(result, indent=2) + "\n")
  os.replace(temporary, workdir / "result.json")


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
  problem = pose(config)
  initial = initial_hypers(problem, config)
  learned = Learned(initial, meta_optimizer(config).init(initial), [])
  checkpoints = None
  if workdir is not None:
    path = pathlib.Path(workdir).absolute()
    path.mkdir(parents=True, exist_ok=True)
    checkpoints = Checkpoints(path, config)
    learned = checkpoints.restore(learned)
  done_before = len(learned.rows)
  save = checkpoints.save if checkpoints else lambda learned: None
  learned = learn(problem, config, learned, save)
  if checkpoints:
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
    **dict(zip(scale_columns(problem), scales, strict=True)),
    "resumed_from": done_before,
    "seconds_per_meta_step": statistics.median(seconds),
    "seconds": time.perf_counter() - start_time,
  }
  if workdir is not None:
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


def main(argv: list[str]) -> None:
  if len(argv) > 1:
    raise app.UsageError(f"Unexpected arguments {argv[1:]}; flags begin --.")
  # absl's default is INFO, at which orbax reports every file.
  if flags.FLAGS.verbosity == logging.INFO:
    logging.set_verbosity(logging.WARNING)
  values: dict[str, Any] = {
    field.name: flags.FLAGS[field.name].value
    for field in dataclasses.fields(Config)
  }
  try:
    print(report(run(Config(**values), _WORKDIR.value)))
  except (OSError, ValueError, ArithmeticError, RuntimeError) as error:
    logging.debug("traceback:", exc_info=True)  # --verbosity=1 shows it
    sys.exit(f"error: {error}")


if __name__ == "__main__":
  jax.config.config_with_absl()
  app.run(main)
