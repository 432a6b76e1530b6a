"""Trains an image classifier, then runs the training backward, bit for bit.

  python scripts/train.py
  python scripts/train.py --model=conv --dataset=mnist --data_dir=DIR \
    --workdir=out/train

Under half a minute on 2 cores.  Expect a test accuracy of 98.0 % on digits
(conv 96.3 %, lstm 97.0 %, attention 96.3 %, in about a minute each), log|det|
-933494 nats, and a receipt that says OK: each weight is again what it was.

With --workdir it writes result.json, metrics.csv (loss by step), loss.png and
a checkpoint of the final state.  Running it again there skips the training
and rewinds from the checkpoint; the environment has to be the same, because
another one may round gradients differently.
"""

import dataclasses
import math
import pathlib
import statistics
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.stages import Wrapped
from matplotlib.figure import Figure

import revmom
from shared import image_data, output
from shared.checkpointing import Checkpoints
from shared.progress_bar import progress
from shared.runs import check_run, held, timed
from shared.settings import flag, launch
from training.classifiers import MODELS


@dataclasses.dataclass(frozen=True)
class Config:
  """One experiment."""

  model: str = flag("mlp", "The classifier.", choices=sorted(MODELS))
  dataset: str = flag(
    "digits",
    "Images; all but digits need --data_dir.",
    choices=image_data.NAMES,
  )
  data_dir: str | None = flag(None, "Folder of idx files.", may_change=True)
  steps: int = flag(1000, "SGD steps.", at_least=1)
  batch_size: int = flag(
    200, "Images a step, drawn with replacement.", at_least=1
  )
  learning_rate: float = flag(0.1, "Learning rate.", at_least=0.0)
  momentum: float = flag(0.9, "Momentum, in (0, 1].")
  weight_decay: float = flag(
    0.0, "Decoupled weight decay; 0 is none.", at_least=0.0
  )
  clip: float = flag(
    0.0, "Largest global norm of a gradient; 0 is none.", at_least=0.0
  )
  seed: int = flag(0, "Of initial weights and batches.")
  memory_budget: int | None = flag(
    None,
    "Bytes on the device for integers and buffers; none is no limit.",
    at_least=1,
  )
  dtype: str = flag(
    "float32", "Of weights and activations.", choices=["float32", "bfloat16"]
  )


class Problem(NamedTuple):
  """What is trained, on what, and by what."""

  params: Any
  loss_fn: Callable  # (params, indices, images, labels) -> scalar
  batches: Callable  # step -> indices of its images
  args: tuple[jax.Array, jax.Array]  # images and labels, for training
  test: tuple[jax.Array, jax.Array]
  logits: Callable  # (params, images) -> [batch, classes]
  optimizer: Any


class Trained(NamedTuple):
  """A finished run, fresh or from a checkpoint."""

  state: Any  # revmom's, of integers
  losses: np.ndarray  # [steps]
  plain_losses: np.ndarray  # [steps], of optax
  figures: dict[str, float]


def pose(config: Config) -> Problem:
  """Loads the data and draws the initial weights."""
  data = image_data.load(config.dataset, config.data_dir)
  dtype = jnp.dtype(config.dtype)
  to_device = lambda images, labels: (
    jnp.asarray(images, dtype),
    jnp.asarray(labels, jnp.int32),
  )
  images, labels = to_device(data.train_images, data.train_labels)
  model = MODELS[config.model](int(labels.max()) + 1, dtype)
  weights_key, batch_key = jax.random.split(jax.random.key(config.seed))

  def logits(params, images):
    return jnp.asarray(model.apply(params, images))

  def loss_fn(params, indices, images, labels):
    scores = logits(params, images[indices]).astype(jnp.float32)
    losses = optax.softmax_cross_entropy_with_integer_labels
    return losses(scores, labels[indices]).mean()

  def batches(step):
    key = jax.random.fold_in(batch_key, step)
    return jax.random.randint(key, (config.batch_size,), 0, len(labels))

  params = jax.jit(model.init)(weights_key, images[:1])
  optimizer = revmom.sgd(
    config.learning_rate,
    config.momentum,
    weight_decay=config.weight_decay or None,
  )
  if config.clip:
    optimizer = revmom.clipped(optimizer, config.clip)
  return Problem(
    params=jax.tree.map(lambda weights: weights.astype(dtype), params),
    loss_fn=loss_fn,
    batches=batches,
    args=(images, labels),
    test=to_device(data.test_images, data.test_labels),
    logits=logits,
    optimizer=optimizer,
  )


def reversible_training(problem: Problem, config: Config) -> Wrapped:
  """(params, images, labels) -> Run."""
  plan = revmom.plans.keep()
  if config.memory_budget is not None:
    plan = revmom.plans.recompute(config.memory_budget)

  def run(params, *args):
    return revmom.train(
      problem.loss_fn,
      problem.optimizer,
      params,
      problem.batches,
      *args,
      num_steps=config.steps,
      plan=plan,
    )

  return jax.jit(run)


def plain_training(problem: Problem, config: Config) -> Wrapped:
  """The same in floats, by optax: (params, images, labels) -> losses."""
  rate, decay = config.learning_rate, config.weight_decay
  optimizer = optax.chain(
    problem.optimizer.preprocess or optax.identity(),
    optax.sgd(rate, config.momentum),
    optax.add_decayed_weights(-rate * decay) if decay else optax.identity(),
  )

  def run(params, *args):
    def step(carry, t):
      params, state = carry
      loss, gradients = jax.value_and_grad(problem.loss_fn)(
        params, problem.batches(t), *args
      )
      updates, state = optimizer.update(gradients, state, params)
      return (optax.apply_updates(params, updates), state), loss

    start = params, optimizer.init(params)
    (params, _), losses = jax.lax.scan(step, start, jnp.arange(config.steps))
    return params, losses

  return jax.jit(run)


def reversal(problem: Problem) -> Wrapped:
  """(state, images, labels) -> Rewound."""
  return jax.jit(
    lambda state, *args: revmom.rewind(
      problem.loss_fn, problem.optimizer, state, problem.batches, *args
    )
  )


def train(problem: Problem, config: Config) -> Trained:
  """Trains with revmom and with optax, in turns.

  Raises:
    FloatingPointError: a loss was not finite.
  """
  bar = progress(total=4, desc="compiling")
  args = problem.params, *problem.args
  ours = reversible_training(problem, config).lower(*args).compile()
  bar.update()
  plain = plain_training(problem, config).lower(*args).compile()
  bar.update()
  bar.set_description("training")
  run, seconds = timed(ours, *args)
  remedy = "lower --learning_rate or set --clip"
  check_run(run, problem.optimizer, remedy)
  bar.update()
  (_, plain_losses), plain_seconds = timed(plain, *args)
  times = [(seconds, plain_seconds)]
  # Again while that takes no longer than seconds.
  for _ in range(min(6, int(6 / (seconds + plain_seconds)))):
    _, seconds = timed(ours, *args)
    _, plain_seconds = timed(plain, *args)
    times.append((seconds, plain_seconds))
  bar.update()
  bar.close()
  of_step = [statistics.median(t) / config.steps for t in zip(*times)]  # noqa: B905
  accuracy, test_loss = evaluate(problem, run.params)
  figures = {
    "test_accuracy": accuracy,
    "test_loss": test_loss,
    "final_train_loss": float(run.losses[-1]),
    "train_seconds_per_step": of_step[0],
    "optax_seconds_per_step": of_step[1],
    "train_time_over_optax": statistics.median(a / b for a, b in times),
    "train_peak_bytes": peak_bytes(ours),
    "optax_peak_bytes": peak_bytes(plain),
  }
  return Trained(
    run.state, np.asarray(run.losses), np.asarray(plain_losses), figures
  )


def rewind(problem: Problem, state: Any) -> dict[str, Any]:
  """Reverses a run: what its receipt says, time and memory.

  Raises:
    RuntimeError: the reversal was not exact.
  """
  compiled = reversal(problem).lower(state, *problem.args).compile()
  rewound, seconds = timed(compiled, state, *problem.args)
  receipt = rewound.receipt
  receipt.check(state.checksum_every, state.steps)
  # Beside the receipt, the weights themselves: drawn anew from the seed.
  optimizer = problem.optimizer
  drawn = optimizer.params(optimizer.init(problem.params, state.steps))
  same = jax.tree.map(np.array_equal, rewound.params, drawn)
  return {
    "receipt_ok": bool(receipt.ok),
    "receipt_params_restored": bool(receipt.params_restored),
    "receipt_slots_restored": bool(receipt.slots_restored),
    "receipt_buffers_empty": bool(receipt.buffers_empty),
    "receipt_in_range": bool(receipt.in_range),
    "receipt_diverged_at": int(receipt.diverged_at),
    "weights_equal_those_drawn": all(jax.tree.leaves(same)),
    "rewind_seconds_per_step": seconds / state.steps,
    "rewind_peak_bytes": peak_bytes(compiled),
  }


def information(problem: Problem, state: Any) -> dict[str, Any]:
  """What the run's contraction costs: log|det| and the bits kept for it."""
  size = sum(leaf.size for leaf in jax.tree.leaves(problem.params))
  log_det = float(problem.optimizer.log_det(state))
  bytes_held = held(state)
  per_step = size * state.steps
  return {
    "parameters": size,
    "steps": state.steps,
    "log_det": log_det,
    "bits_bound": -log_det / math.log(2) / per_step,
    "bits_spilled": 8 * bytes_held.spilled / per_step,
    "bits_kept": 8 * bytes_held.total / per_step,
    "buffer_bytes": bytes_held.total,
    "plan": state.plan.describe(),
  }


def evaluate(problem: Problem, params: Any) -> tuple[float, float]:
  """Accuracy and mean loss on the test images, in chunks."""

  @jax.jit
  def scores(params, images, labels):
    logits = jax.lax.map(
      lambda image: problem.logits(params, image[None])[0],
      images,
      batch_size=500,
    ).astype(jnp.float32)
    losses = optax.softmax_cross_entropy_with_integer_labels(logits, labels)
    return (logits.argmax(-1) == labels).mean(), losses.mean()

  accuracy, loss = scores(params, *problem.test)
  return float(accuracy), float(loss)


def peak_bytes(compiled: Any) -> int:
  """Temporary memory and results; the arguments come on top."""
  analysis = compiled.memory_analysis()
  return analysis.temp_size_in_bytes + analysis.output_size_in_bytes


def save(checkpoints: Checkpoints, trained: Trained) -> None:
  """The whole outcome of the training, under the number of its last step."""
  checkpoints.save(trained.state.steps, trained[:-1], trained.figures)


def restore(
  checkpoints: Checkpoints, config: Config, problem: Problem
) -> Trained | None:
  """A finished training; None if there is none.

  Raises:
    ValueError: it belongs to other flags, or to another environment.
  """
  latest = checkpoints.latest()
  if latest is None:
    return None
  number, saved = latest
  run = jax.eval_shape(
    reversible_training(problem, config), problem.params, *problem.args
  )
  fingerprint = run.state.fingerprint._replace(**saved["fingerprint"])
  state = run.state.replace(fingerprint=fingerprint)
  # Before arrays are read into an environment that can't reverse them.
  try:
    jax.eval_shape(reversal(problem), state, *problem.args)
  except ValueError as error:
    raise ValueError(
      f"can't rewind from {checkpoints.workdir}: {error}.  Rerun in that "
      "environment, or train again with another --workdir."
    ) from error
  losses = jax.ShapeDtypeStruct((config.steps,), jnp.float32)
  state, ours, plain = checkpoints.restore(number, (state, losses, losses))
  return Trained(state, np.asarray(ours), np.asarray(plain), saved["about"])


def write(
  workdir: pathlib.Path, config: Config, trained: Trained, result: dict
) -> None:
  """result.json, metrics.csv and loss.png."""
  columns = trained.losses, trained.plain_losses
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
  output.write_results(workdir, rows, {"loss": figure}, result)


def report(result: dict) -> str:
  """The result for people."""
  r = result
  micro = lambda name: f"{1e6 * r[name + '_seconds_per_step']:.1f}"
  mega = lambda name: f"{r[name + '_peak_bytes'] / 1e6:.2f}"
  origin = " (training skipped: from the checkpoint)" if r["resumed"] else ""
  return f"""\
model              {r["model"]}, {r["parameters"]:,} parameters, {r["dtype"]}
run                {r["steps"]} steps{origin}
test               accuracy {r["test_accuracy"]:.2%}, loss \
{r["test_loss"]:.4f} nats
receipt            {"OK" if r["receipt_ok"] else "FAILED"}: parameters \
restored {r["receipt_params_restored"]}, velocities zero \
{r["receipt_slots_restored"]}, buffers empty {r["receipt_buffers_empty"]}
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
    "resumed": resumed,
    **trained.figures,
    **information(problem, trained.state),
    **rewind(problem, trained.state),
  }
  if path is not None:
    write(path, config, trained, result)
  return result


def main(config: Config, workdir: str | None) -> str:
  print(f"jax {jax.__version__}, {jax.devices()}")
  return report(run(config, workdir))


if __name__ == "__main__":
  launch(Config, main)
