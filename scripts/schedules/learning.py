"""How a schedule of training is learned, evaluated and described."""

import dataclasses
import functools
import math
from collections.abc import Callable
from typing import NamedTuple

import jax
import numpy as np
import optax

from schedules import elementary
from shared import image_data, meta_training
from shared.meta_training import EVALUATION_SEEDS, Learned
from shared.runs import held
from shared.settings import flag


@dataclasses.dataclass(frozen=True)
class Config:
  """One experiment."""

  dataset: str = flag(
    "digits", "Images; all but digits in --data_dir.", choices=image_data.NAMES
  )
  data_dir: str | None = flag(None, "Folder of idx files.", may_change=True)
  objective: str = flag(
    "training",
    "The images whose loss after training is minimised; the authors' code "
    "takes the training images.",
    choices=["training", "validation"],
  )
  steps: int = flag(100, "SGD steps of one training run.", at_least=1)
  meta_steps: int = flag(
    50, "Training runs, each with a hypergradient.", at_least=1, may_change=True
  )
  batch_size: int = flag(
    200, "Images a step, drawn with replacement.", at_least=1
  )
  meta_learning_rate: float = flag(
    0.04,
    "Of Adam, on log scales, log learning rates and logit momenta; by default"
    " the paper's.  0.1 learns the digits faster but diverges on MNIST.",
    at_least=0.0,
  )
  seed: int = flag(0, "Of initial weights and batches.")


class Measured(NamedTuple):
  """A training run and its gradient."""

  gradient: elementary.Hypers  # of the objective
  losses: dict[str, jax.Array]  # of "train", "validation" and "test" images
  curve: jax.Array  # losses of the batches [steps]


def measure(
  problem: elementary.Problem,
  batch_size: int,
  objective: str,
  hypers: elementary.Hypers,
  key: jax.Array,
) -> Measured:
  """Trains, and differentiates the loss of the `objective` images."""

  def losses_of(hypers):
    run = elementary.train(problem, batch_size, hypers, key)
    losses = elementary.losses(problem, run.params)
    return losses[objective], (losses, run.losses)

  gradient, (losses, curve) = jax.grad(losses_of, has_aux=True)(hypers)
  return Measured(gradient, losses, curve)


def meta_step(
  problem: elementary.Problem,
  batch_size: int,
  objective: str,
  optimizer: optax.GradientTransformation,
) -> Callable:
  """(hypers, meta state, number) -> the next ones, and what was measured."""

  def step(hypers, meta_state, number):
    key = jax.random.fold_in(problem.meta_key, number)
    measured = measure(problem, batch_size, objective, hypers, key)
    after, meta_state = meta_training.update(
      optimizer, hypers, meta_state, measured.gradient
    )
    return after, meta_state, measured

  return step


def optimizer_of(config: Config) -> optax.GradientTransformation:
  """Adam with its usual averages."""
  return optax.adam(config.meta_learning_rate)


def meta_iteration(problem: elementary.Problem, config: Config) -> Callable:
  """(hypers, meta state, number) -> the next ones, and figures."""
  objective = {"training": "train"}.get(config.objective, config.objective)
  step = meta_step(problem, config.batch_size, objective, optimizer_of(config))

  @jax.jit
  def with_figures(hypers, meta_state, number):
    after, meta_state, measured = step(hypers, meta_state, number)
    figures = {
      "train_loss": measured.losses["train"],
      "validation_loss": measured.losses["validation"],
      "hypergradient_norm": optax.global_norm(measured.gradient),
    }
    return after, meta_state, figures

  return with_figures


def evaluation(problem: elementary.Problem, config: Config) -> Callable:
  """hypers -> losses after and during training, for each of fresh seeds."""

  @jax.jit
  def evaluate(hypers):
    def one(key):
      run = elementary.train(problem, config.batch_size, hypers, key)
      losses = elementary.losses(problem, run.params)
      named = {f"{name}_loss": loss for name, loss in losses.items()}
      return {**named, "curve": run.losses}

    keys = jax.random.split(problem.evaluation_key, EVALUATION_SEEDS)
    return jax.lax.map(one, keys)

  return evaluate


def learn(
  problem: elementary.Problem,
  config: Config,
  learned: Learned,
  save: Callable[[Learned], None],
) -> Learned:
  """Goes on to `config.meta_steps`, and saves after each meta iteration.

  Raises:
    FloatingPointError: a loss or a hypergradient was not finite.
  """
  return meta_training.learn(
    meta_iteration(problem, config),
    learned,
    config.meta_steps,
    lambda hypers: scales_of(problem, hypers),
    lambda hypers, number, what: explain(
      problem,
      config.batch_size,
      hypers,
      number,
      f"{what}: lower --meta_learning_rate.",
    ),
    save,
    description="learning",
  )


def scales_of(
  problem: elementary.Problem, hypers: elementary.Hypers
) -> dict[str, float]:
  """The log scales, by name."""
  names = elementary.scale_columns(problem)
  return dict(zip(names, map(float, hypers.log_scale), strict=True))


def explain(
  problem: elementary.Problem,
  batch_size: int,
  hypers: elementary.Hypers,
  number: int,
  what: str,
) -> None:
  """Raises FloatingPointError, with the reason if it is known."""
  key = jax.random.fold_in(problem.meta_key, number)
  train = jax.jit(functools.partial(elementary.train, problem, batch_size))
  try:
    elementary.optimizer_of(hypers).check(train(hypers, key).state)
  except ValueError as error:
    what += f"  The training failed: {error}"
  raise FloatingPointError(what)


def forgotten_bits(
  problem: elementary.Problem, hypers: elementary.Hypers
) -> float:
  """The bits that momentum forgets a step and parameter: mean log2(1/b)."""
  sizes = [math.prod(shape) for shape in problem.shapes]
  momenta = np.asarray(jax.nn.sigmoid(hypers.logit_momentum), np.float64)
  bits = -np.log2(momenta).mean(0)
  return float(np.average(bits, weights=sizes))


def buffer_bits(
  problem: elementary.Problem, config: Config, hypers: elementary.Hypers
) -> float:
  """The bits that a run's buffers have room for, per parameter and step."""
  run = jax.eval_shape(
    functools.partial(elementary.train, problem, config.batch_size),
    hypers,
    problem.meta_key,
  )
  size = sum(math.prod(shape) for shape in problem.shapes)
  bytes_held = held(run.state)
  return 8 * (bytes_held.spilled + bytes_held.heads) / (size * config.steps)
