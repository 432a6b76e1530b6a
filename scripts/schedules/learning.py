"""How a schedule of training is learned, evaluated and described."""

import dataclasses
import functools
import math
from collections.abc import Callable

from shared.checkpointing import Checkpoints
import jax
from shared import meta_training
import numpy as np
import optax
from schedules.elementary import elementary
from shared.meta_training import EVALUATION_SEEDS, Learned


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


def meta_iteration(problem: elementary.Problem, config: Config) -> Callable:
  """(hypers, meta state, number) -> the next ones, and figures."""

  def losses_of(hypers, key):
    run = elementary.train(problem, config.batch_size, hypers, key)
    losses = {
      "training": elementary.mean_loss(run.params, *problem.train),
      "validation": elementary.mean_loss(run.params, *problem.validation),
    }
    return losses[config.objective], losses

  @jax.jit
  def step(hypers, meta_state, number):
    key = jax.random.fold_in(problem.meta_key, number)
    gradient, losses = jax.grad(losses_of, has_aux=True)(hypers, key)
    after, meta_state = meta_training.update(
      config.meta_learning_rate, hypers, meta_state, gradient
    )
    figures = {
      "train_loss": losses["training"],
      "validation_loss": losses["validation"],
      "hypergradient_norm": optax.global_norm(gradient),
    }
    return after, meta_state, figures

  return step


def evaluation(problem: elementary.Problem, config: Config) -> Callable:
  """hypers -> losses after and during training, for each of fresh seeds."""

  @jax.jit
  def evaluate(hypers):
    def one(key):
      run = elementary.train(problem, config.batch_size, hypers, key)
      return {
        "train_loss": elementary.mean_loss(run.params, *problem.train),
        "validation_loss": elementary.mean_loss(run.params, *problem.validation),
        "test_loss": elementary.mean_loss(run.params, *problem.test),
        "curve": run.losses,
      }

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
    lambda hypers, number, what: explain(problem, config, hypers, number, what),
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
  config: Config,
  hypers: elementary.Hypers,
  number: int,
  what: str,
) -> None:
  """Raises FloatingPointError, with the reason if it is known."""
  key = jax.random.fold_in(problem.meta_key, number)
  run = jax.jit(functools.partial(elementary.train, problem, config.batch_size))(
    hypers, key
  )
  reason = "lower --meta_learning_rate."
  try:
    elementary.optimizer_of(hypers).check(run.state)
  except ValueError as error:
    reason = f"{error}  Here: lower --meta_learning_rate."
  raise FloatingPointError(f"{what}: {reason}")


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
  buffers = [
    buffer for leaf in run.state.leaves for buffer in leaf.buffers.values()
  ]
  arrays = jax.tree.leaves(buffers)
  size = sum(math.prod(shape) for shape in problem.shapes)
  return (
    8 * sum(a.size * a.dtype.itemsize for a in arrays) / (size * config.steps)
  )


def resume(
  checkpoints: Checkpoints, config: Config, start: Learned
) -> Learned:
  """The latest state, or `start` if there is none.

  Raises:
    ValueError: it belongs to other flags, or is beyond --meta_steps.
  """
  state, rows = checkpoints.resume(
    start[:2],
    lambda number, _: meta_training.check_number(
      checkpoints, number, config.meta_steps
    ),
  )
  return Learned(*state, rows or [])
