"""Tunes the hyperparameters of your training by gradient descent on them.

  python scripts/tune.py --workdir=out/tune
  python scripts/tune.py --problem=mine.py --tune=learning_rate --per_array

A problem is a Python file; `scripts/example_problem.py` is the default and a
template.  It defines

  init(key) -> params                initial parameters, a pytree of floats
  batches(key, step) -> batch        key belongs to the run: fold the step in
  loss_fn(params, batch) -> scalar   the training loss
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
array.

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

import dataclasses
import functools
import math
import pathlib
import statistics
import time
from collections.abc import Callable
from typing import Any, NamedTuple

import experiment
import jax
import jax.numpy as jnp
import numpy as np
import optax
from absl import flags
from matplotlib.figure import Figure
from problem_file import EXAMPLE, Problem, pose
from tqdm import tqdm

import revmom

_PROBLEM = flags.DEFINE_string(
  "problem", None, "Python file that defines it; by default the example."
)
_TUNE = flags.DEFINE_list(
  "tune",
  ["learning_rate", "momentum"],
  "Hyperparameters of the optimizer, separated by commas.",
)
_PER_STEP = flags.DEFINE_bool(
  "per_step", False, "Tune a value for each training step."
)
_PER_ARRAY = flags.DEFINE_bool(
  "per_array", False, "Tune a value for each parameter array."
)
_STEPS = flags.DEFINE_integer(
  "steps", 100, "Steps of one training run.", lower_bound=1
)
_META_STEPS = flags.DEFINE_integer(
  "meta_steps", 40, "Training runs, each with a hypergradient.", lower_bound=1
)
_META_LEARNING_RATE = flags.DEFINE_float(
  "meta_learning_rate",
  0.1,
  "Of Adam, on logarithms and logits.",
  lower_bound=0.0,
)
_SEED = flags.DEFINE_integer("seed", 0, "Of the keys of init and batches.")
_FRESH_SEEDS = flags.DEFINE_bool(
  "fresh_seeds",
  True,
  "Draw init and batches anew in each meta iteration; --nofresh_seeds tunes "
  "one and the same run.",
)
_WORKDIR = flags.DEFINE_string("workdir", None, "Where results go.")

# Hyperparameters in (0, 1); all others are positive.
_FRACTIONS = "momentum", "decay", "average", "b1", "b2"
_EVALUATION_SEEDS = 10
# The smallest factor of a step that 32-bit integers can undo.
_SMALLEST_FACTOR = 2.0**-7
# May differ between a run and its resumption; of the problem, its text must
# be the same.
_LOCAL = ("problem", "meta_steps")


@dataclasses.dataclass(frozen=True)
class Config:
  """One experiment; see the flags of the same names."""

  problem: str | None = None
  tune: list[str] = dataclasses.field(
    default_factory=lambda: ["learning_rate", "momentum"]
  )
  per_step: bool = False
  per_array: bool = False
  steps: int = 100
  meta_steps: int = 40
  meta_learning_rate: float = 0.1
  seed: int = 0
  fresh_seeds: bool = True


# [arrays or 1, steps or 1]: logarithms or logits of the values tuned.
Tuned = dict[str, Any]


class State(NamedTuple):
  """The state of the meta optimisation: all that a checkpoint holds."""

  tuned: Tuned
  meta_state: Any  # of Adam
  rows: list[dict[str, float]]  # of metrics.csv, one a meta iteration


# The values that are tuned.


def transform(name: str, values: np.ndarray) -> np.ndarray:
  """The logits or logarithms of a hyperparameter; float64.

  Raises:
    ValueError: a value has none.
  """
  values = np.asarray(values, np.float64)
  fraction = name in _FRACTIONS
  bad = ~((values > 0) & (values < 1 if fraction else np.isfinite(values)))
  if bad.any():
    raise ValueError(
      f"{name} starts at {values[bad][0]:g}; tuning keeps it "
      f"{'between 0 and 1' if fraction else 'positive'}, so start it there."
    )
  return np.log(values) - np.log1p(-values) if fraction else np.log(values)


def values_of(name: str, tuned: jax.Array) -> jax.Array:
  """The hyperparameter with these logits or logarithms."""
  return jax.nn.sigmoid(tuned) if name in _FRACTIONS else jnp.exp(tuned)


def start(problem: Problem, config: Config) -> Tuned:
  """Where tuning starts: the values of the problem's optimizer.

  Raises:
    ValueError: a name is not one of the optimizer's hyperparameters, or its
      values can't be tuned with these flags.
  """
  optimizer = problem.optimizer
  available = list(optimizer.hyperparameters())
  if not config.tune or len(set(config.tune)) < len(config.tune):
    raise ValueError(
      f"--tune={','.join(config.tune)}: name each hyperparameter once, from "
      f"{', '.join(available)}."
    )
  for name in config.tune:
    if name in available:
      continue
    fields = [field.name for field in dataclasses.fields(optimizer)]
    reason = "is not one"
    if name in fields and getattr(optimizer, name) is None:
      reason = "is not in use: let optimizer() of the problem give it a value"
    raise ValueError(
      f"--tune={name}: the hyperparameters of {type(optimizer).__name__} are "
      f"{', '.join(available)}; {name} {reason}."
    )
  optimizer.resolve(problem.params, config.steps)  # or an error that says why
  chosen = {}
  for name in config.tune:
    table = table_of(name, getattr(optimizer, name), problem, config)
    values = transform(name, reduced(name, table, config))
    chosen[name] = jnp.asarray(values, jnp.result_type(float))
  return chosen


def table_of(
  name: str, value: Any, problem: Problem, config: Config
) -> np.ndarray:
  """A hyperparameter's values, [arrays, steps].

  Raises:
    ValueError: it has none of that shape.
  """
  # A function of the step is wrapped, so that it is one leaf of a pytree.
  wrapped = lambda leaf: callable(getattr(leaf, "function", None))
  params = jax.tree.map(lambda leaf: 0, problem.params)
  try:
    # A pytree may be a prefix of the parameters; a number is always one.
    leaves = jax.tree.leaves(
      jax.tree.broadcast(value, params, is_leaf=wrapped), is_leaf=wrapped
    )
  except ValueError as error:
    raise ValueError(
      f"{name} is not a number, an array over steps or a pytree like the "
      "parameters, so there is nothing to tune."
    ) from error
  rows = []
  for leaf in leaves:
    if wrapped(leaf):
      leaf = jax.vmap(leaf.function)(jnp.arange(config.steps, dtype=jnp.int32))
    row = np.asarray(leaf, np.float64)
    if row.ndim > 1:
      raise ValueError(
        f"{name} has a value for each element of a parameter array; tuning "
        "starts from one for the array."
      )
    rows.append(np.broadcast_to(row, config.steps))
  return np.stack(rows)


def reduced(name: str, table: np.ndarray, config: Config) -> np.ndarray:
  """A table [arrays, steps] without the axes that are not tuned.

  Raises:
    ValueError: values differ along one of them.
  """
  axes = ("per_array", "parameter array"), ("per_step", "step")
  for axis, (flag, what) in enumerate(axes):
    if getattr(config, flag):
      continue
    first = table.take([0], axis)
    if (table != first).any():
      raise ValueError(
        f"{name} of the problem's optimizer varies with the {what}; give "
        f"--{flag}, or start from a constant."
      )
    table = first
  return table


def optimizer_of(
  problem: Problem, config: Config, tuned: Tuned, floors: tuple | None = None
) -> Any:
  """The problem's optimizer with the tuned values in place."""
  structure: Any = jax.tree.structure(problem.params)
  chosen: dict[str, Any] = {}
  for name, table in tuned.items():
    rows = [row if config.per_step else row[0] for row in table]
    rows = [values_of(name, row) for row in rows]
    chosen[name] = structure.unflatten(rows) if config.per_array else rows[0]
  if floors is not None:
    chosen["floors"] = floors
  return problem.optimizer.replace(**chosen)


def smallest_factors(problem: Problem, config: Config) -> Callable:
  """tuned -> for every role of the state its smallest factor in a run."""

  @jax.jit
  def most_forgotten(tuned):
    optimizer = optimizer_of(problem, config, tuned)
    dynamics = optimizer.resolve(problem.params, config.steps)
    most: dict[str, Any] = {}
    for i in range(len(problem.arrays)):
      for role, forgotten in dynamics.forgetting(i).items():
        most[role] = jnp.maximum(most.get(role, 0.0), jnp.max(forgotten))
    return most

  return lambda tuned: {
    role: 1 - float(most) for role, most in most_forgotten(tuned).items()
  }


def floors_for(optimizer: Any, factors: dict[str, float]) -> tuple:
  """Floors for which buffers have room for these factors.

  Where the optimizer's own are too high, the next power of four of bits a
  step.  Values that move on so need few compilations, and a resumed run needs
  the same ones, because nothing but the values decides.
  """
  floors = dict(optimizer.floors)
  for role, factor in factors.items():
    if 0 < factor < floors.get(role, 1.0):
      bits = -math.log2(factor) * 1.001  # for the rounding of float32
      room = 4.0 ** math.ceil(math.log(bits, 4))
      floors[role] = max(_SMALLEST_FACTOR, 2.0**-room)
  return tuple(floors.items())


# Tuning.


def train(
  problem: Problem, config: Config, tuned: Tuned, floors: tuple, key: jax.Array
) -> revmom.Run:
  """One training run, with the initial parameters and batches of `key`."""
  init_key, batch_key = jax.random.split(key)
  return revmom.train(
    problem.loss_fn,
    optimizer_of(problem, config, tuned, floors),
    problem.init(init_key),
    functools.partial(problem.batches, batch_key),
    num_steps=config.steps,
  )


def run_key(config: Config, number: Any) -> jax.Array:
  """The key of the training run of a meta iteration."""
  tuning_key, _ = jax.random.split(jax.random.key(config.seed))
  return jax.random.fold_in(tuning_key, number if config.fresh_seeds else 0)


def evaluation_keys(config: Config) -> jax.Array:
  """Of runs that no meta iteration sees."""
  _, key = jax.random.split(jax.random.key(config.seed))
  return jax.random.split(key, _EVALUATION_SEEDS)


def meta_optimizer(config: Config) -> optax.GradientTransformation:
  """Adam, on logarithms and logits."""
  return optax.adam(config.meta_learning_rate)


def meta_iteration(problem: Problem, config: Config) -> Callable:
  """(tuned, meta state, number, floors) -> the next ones, and figures."""

  def objective(tuned, floors, key):
    run = train(problem, config, tuned, floors, key)
    return problem.validation_loss(run.params), run.losses[-1]

  @functools.partial(jax.jit, static_argnames="floors")
  def step(tuned, meta_state, number, floors):
    key = run_key(config, number)
    (loss, last_loss), gradient = jax.value_and_grad(objective, has_aux=True)(
      tuned, floors, key
    )
    updates, meta_state = meta_optimizer(config).update(gradient, meta_state)
    figures = {
      "validation_loss": loss,
      "last_train_loss": last_loss,
      "hypergradient_norm": optax.global_norm(gradient),
    }
    return optax.apply_updates(tuned, updates), meta_state, figures

  return step


def learn(
  problem: Problem,
  config: Config,
  state: State,
  save: Callable[[State], None],
) -> State:
  """Goes on to `config.meta_steps`, and saves after each meta iteration.

  Raises:
    FloatingPointError: a loss or a hypergradient was not finite.
  """
  step = meta_iteration(problem, config)
  factors = smallest_factors(problem, config)
  bar = tqdm(
    range(len(state.rows), config.meta_steps),
    initial=len(state.rows),
    total=config.meta_steps,
    desc="tuning",
    disable=None,
  )
  for number in bar:
    begun = time.perf_counter()
    tuned, meta_state, rows = state
    floors = floors_for(problem.optimizer, factors(tuned))
    after, meta_state, figures = step(
      tuned, meta_state, np.int32(number), floors
    )
    figures = {name: float(value) for name, value in figures.items()}
    bad = [f"{k}={v}" for k, v in figures.items() if not math.isfinite(v)]
    if bad:
      what = f"meta iteration {number} has {', '.join(bad)}"
      key = run_key(config, number)
      explain(problem, config, tuned, floors, key, what)
    seconds = time.perf_counter() - begun
    # The values that this iteration's losses belong to.
    row = {"meta_step": number, **figures, **columns(problem, config, tuned)}
    state = State(after, meta_state, [*rows, {**row, "seconds": seconds}])
    save(state)
    bar.set_postfix_str(f"validation loss {figures['validation_loss']:.4f}")
  return state


def explain(
  problem: Problem,
  config: Config,
  tuned: Tuned,
  floors: tuple,
  key: jax.Array,
  what: str,
) -> None:
  """Raises FloatingPointError: what is not finite, and why."""
  run = jax.jit(lambda: train(problem, config, tuned, floors, key))()
  losses = np.asarray(run.losses)
  values = columns(problem, config, tuned)
  at = ", ".join(f"{name} {value:g}" for name, value in values.items())
  try:
    optimizer_of(problem, config, tuned, floors).check(run.state)
    infinite = np.flatnonzero(~np.isfinite(losses))
    if infinite.size:
      step = infinite[0]
      reason = f"the training loss of step {step} is {losses[step]}."
    else:
      reason = (
        "the training went well, so validation_loss, or a derivative of a "
        "loss, is to blame (look for a division, root or logarithm at zero), "
        "unless an error above says that the reversal was not exact."
      )
  except ValueError as error:
    reason = (
      f"{error}  Here: change optimizer() of the problem, or, once values have "
      "moved, lower --meta_learning_rate."
    )
  raise FloatingPointError(f"{what}, at {at}: {reason}")


def evaluation(problem: Problem, config: Config) -> Callable:
  """tuned -> losses after training, for each of fresh seeds.

  The function raises FloatingPointError if one is not finite.
  """

  @functools.partial(jax.jit, static_argnames="floors")
  def evaluate(tuned, floors):
    def one(key):
      params = train(problem, config, tuned, floors, key).params
      losses = {"validation_loss": problem.validation_loss(params)}
      if problem.test_loss is not None:
        losses["test_loss"] = problem.test_loss(params)
      return losses

    return jax.lax.map(one, evaluation_keys(config))

  factors = smallest_factors(problem, config)

  def checked(tuned):
    floors = floors_for(problem.optimizer, factors(tuned))
    losses = jax.tree.map(np.asarray, evaluate(tuned, floors))
    finite = np.logical_and.reduce([*map(np.isfinite, losses.values())])
    if not finite.all():
      bad = np.argmin(finite)
      what = f"evaluation {bad} of {_EVALUATION_SEEDS} is not finite"
      key = evaluation_keys(config)[bad]
      explain(problem, config, tuned, floors, key, what)
    return losses

  return checked


# Files.


def columns(problem: Problem, config: Config, tuned: Tuned) -> dict[str, float]:
  """Means over steps: a number for each hyperparameter, and array if so."""
  means = {}
  for name, table in tuned.items():
    rows = np.asarray(values_of(name, table), np.float64).mean(-1)
    labels = problem.arrays if config.per_array else [""]
    for label, mean in zip(labels, rows, strict=True):
      means[name + label] = float(mean)
  return means


def resume(
  checkpoints: experiment.Checkpoints,
  problem: Problem,
  config: Config,
  start: State,
) -> State:
  """The latest state, or `start` if there is none.

  Raises:
    ValueError: it belongs to other flags or another problem, or is beyond
      --meta_steps.
  """
  latest = checkpoints.latest()
  if latest is None:
    return start
  number, saved = latest
  if saved["about"]["digest"] != problem.digest:
    raise ValueError(
      f"{checkpoints.workdir} holds a run of another problem (the text of the "
      "file has changed); give the same one, or another --workdir."
    )
  if number > config.meta_steps:
    raise ValueError(
      f"{checkpoints.workdir} holds {number} meta iterations, more than "
      f"--meta_steps={config.meta_steps}; raise it, or give another --workdir."
    )
  state = start.tuned, start.meta_state
  tuned, meta_state = checkpoints.restore(number, state)
  return State(tuned, meta_state, saved["about"]["rows"])


def write(
  workdir: pathlib.Path,
  problem: Problem,
  config: Config,
  initial: Tuned,
  state: State,
  result: dict[str, Any],
) -> None:
  """result.json, metrics.csv, hyperparameters.npz and the figures."""
  experiment.write_csv(workdir / "metrics.csv", state.rows)
  arrays = {}
  for name, table in state.tuned.items():
    rows = np.asarray(values_of(name, table))
    labels = problem.arrays if config.per_array else [""]
    for label, row in zip(labels, rows, strict=True):
      arrays[name + label] = row if config.per_step else row[0]
  np.savez(workdir / "hyperparameters.npz", **arrays)
  loss_figure(problem, config, state.rows, result).savefig(
    workdir / "validation_loss.png", dpi=150
  )
  for name in config.tune:
    figure = value_figure(problem, config, name, initial[name], state)
    figure.savefig(workdir / f"{name}.png", dpi=150)
  experiment.write_json(workdir / "result.json", result)


def loss_figure(
  problem: Problem, config: Config, rows: list[dict], result: dict[str, Any]
) -> Figure:
  """The validation loss over meta iterations."""
  figure = Figure(figsize=(6, 4), layout="constrained")
  axes = figure.subplots()
  numbers = [row["meta_step"] for row in rows]
  seeds = "fresh seeds each" if config.fresh_seeds else "the same seed"
  losses = [row["validation_loss"] for row in rows]
  axes.plot(numbers, losses, ".-", label=f"one run, {seeds}")
  for when, style in (("before", ":"), ("after", "--")):
    axes.axhline(
      result[f"validation_loss_{when}"],
      color="black",
      linestyle=style,
      linewidth=1,
      label=f"{when}, mean of {_EVALUATION_SEEDS} fresh seeds",
    )
  axes.set_title(f"Tuning {', '.join(config.tune)} of {problem.name}")
  axes.set_xlabel("meta iteration")
  axes.set_ylabel(f"validation loss after {config.steps} steps")
  if min(losses) > 0:
    axes.set_yscale("log")
  axes.grid(alpha=0.3)
  axes.legend()
  return figure


def value_figure(
  problem: Problem, config: Config, name: str, initial: Any, state: State
) -> Figure:
  """A tuned hyperparameter: over steps, or else over meta iterations."""
  figure = Figure(figsize=(6, 4), layout="constrained")
  axes = figure.subplots()
  before = np.asarray(values_of(name, initial), np.float64)
  after = np.asarray(values_of(name, state.tuned[name]), np.float64)
  labels = problem.arrays if config.per_array else [""]
  for i, label in enumerate(labels):
    shown = f"array {label}" if label else "the array"
    shown = shown if config.per_array else "all arrays"
    if config.per_step:
      (line,) = axes.plot(after[i], label=f"after, {shown}")
      axes.plot(before[i], ":", color=line.get_color())
    else:
      path = [row[name + label] for row in state.rows] + [after[i, 0]]
      axes.plot(path, label=shown)
  if config.per_step:
    axes.plot([], [], ":", color="black", label="before")
    axes.set_xlabel("training step")
  else:
    axes.set_xlabel("meta iteration")
  title = name.replace("_", " ")
  axes.set_title(f"Tuned {title} of {problem.name}")
  axes.set_ylabel(title)
  if name not in _FRACTIONS:
    axes.set_yscale("log")
  axes.grid(alpha=0.3)
  if len(labels) <= 12:
    axes.legend(fontsize="small")
  return figure


def summarise(losses: dict[str, np.ndarray], when: str) -> dict[str, float]:
  """Means over seeds, and the standard deviation of the validation loss."""
  means = {
    f"{name}_{when}": float(each.mean()) for name, each in losses.items()
  }
  spread = float(losses["validation_loss"].std(ddof=1))
  return {**means, f"validation_loss_std_{when}": spread}


def summarise_values(tuned: Tuned, when: str) -> dict[str, float]:
  """Means, and where there are several values also their range."""
  summary = {}
  for name, table in tuned.items():
    values = np.asarray(values_of(name, table), np.float64)
    summary[f"{name}_{when}"] = float(values.mean())
    if values.size > 1:
      summary[f"{name}_{when}_smallest"] = float(values.min())
      summary[f"{name}_{when}_largest"] = float(values.max())
  return summary


def run(config: Config, workdir: str | None = None) -> dict[str, Any]:
  """The experiment: evaluate, tune, evaluate again, write.

  Raises:
    FileNotFoundError: there is no such problem file.
    ValueError: the problem or the workdir don't go with the flags.
    FloatingPointError: a loss or a hypergradient was not finite.
  """
  begun = time.perf_counter()
  problem = pose(pathlib.Path(config.problem) if config.problem else EXAMPLE)
  initial = start(problem, config)
  state = State(initial, meta_optimizer(config).init(initial), [])
  path = experiment.folder(workdir)
  save = lambda state: None
  if path is not None:
    checkpoints = experiment.Checkpoints(path, config, _LOCAL)
    state = resume(checkpoints, problem, config, state)

    def save(state: State) -> None:
      about = {"digest": problem.digest, "rows": state.rows}
      checkpoints.save(len(state.rows), state[:2], about)
      experiment.write_csv(path / "metrics.csv", state.rows)

  evaluate = evaluation(problem, config)
  before = evaluate(initial)
  done_before = len(state.rows)
  state = learn(problem, config, state, save)
  if path is not None:
    checkpoints.close()

  after = evaluate(state.tuned)
  result = {
    "problem": problem.name,
    "tuned": ",".join(config.tune),
    "tuned_values": sum(table.size for table in state.tuned.values()),
    "steps": config.steps,
    "meta_steps": config.meta_steps,
    "seed": config.seed,
    "fresh_seeds": config.fresh_seeds,
    "evaluation_seeds": _EVALUATION_SEEDS,
    "parameters": sum(
      math.prod(leaf.shape) for leaf in jax.tree.leaves(problem.params)
    ),
    **summarise(before, "before"),
    **summarise(after, "after"),
    **summarise_values(initial, "before"),
    **summarise_values(state.tuned, "after"),
    "resumed_from": done_before,
    "seconds_per_meta_step": statistics.median(
      row["seconds"] for row in state.rows
    ),
    "seconds": time.perf_counter() - begun,
  }
  if path is not None:
    write(path, problem, config, initial, state, result)
  return result


def report(result: dict[str, Any]) -> str:
  """The result for people."""
  r = result
  resumed = r["resumed_from"]
  origin = f" ({resumed} of them done before)" if resumed else ""
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
  for name in r["tuned"].split(","):
    label = name.replace("_", " ")
    line = f"{label:<18} {r[name + '_before']:.4g} -> {r[name + '_after']:.4g}"
    if f"{name}_after_smallest" in r:
      line += (
        f" (means; from {r[name + '_after_smallest']:.4g} to "
        f"{r[name + '_after_largest']:.4g})"
      )
    lines.append(line)
  lines.append(
    f"time               {r['seconds']:.1f} s, "
    f"{r['seconds_per_meta_step']:.3f} s each meta iteration"
  )
  return "\n".join(lines)


if __name__ == "__main__":
  experiment.start(
    lambda: report(run(experiment.settings(Config), _WORKDIR.value))
  )
