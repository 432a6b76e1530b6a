"""Training as a function of its hyperparameters, and how they are tuned."""

import functools
import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

import revmom
from shared import meta_training
from shared.meta_training import EVALUATION_SEEDS, Learned
from tuning.problem_file import Problem
from tuning.values import (
  Config,
  Tuned,
  columns,
  loss_arguments,
  optimizer_of,
)

# The smallest factor of a step that 32-bit integers can undo.
_SMALLEST_FACTOR = 2.0**-7


def smallest_factors(problem: Problem, config: Config) -> Callable:
  """tuned -> for every role of the state its smallest factor in a run."""

  @jax.jit
  def most_forgotten(tuned):
    optimizer = optimizer_of(problem, config, tuned)
    dynamics = optimizer.resolve(problem.params, config.steps)
    most: dict[str, Any] = {}
    for leaf in range(len(dynamics.part)):
      for role, forgotten in dynamics.forgetting(leaf).items():
        most[role] = jnp.maximum(most.get(role, 0.0), jnp.max(forgotten))
    return most

  return lambda tuned: {
    role: 1 - float(most) for role, most in most_forgotten(tuned).items()
  }


def floors_for(optimizer: Any, factors: dict[str, float]) -> tuple:
  """Floors for which buffers have room for these smallest factors.

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


def buffer_floors(problem: Problem, config: Config) -> Callable:
  """tuned -> floors for which buffers have room for these values."""
  factors = smallest_factors(problem, config)
  return lambda tuned: floors_for(problem.optimizer, factors(tuned))


def train(
  problem: Problem, config: Config, tuned: Tuned, floors: tuple, key: jax.Array
) -> revmom.Run:
  """One training run, with the initial parameters and batches of `key`."""
  init_key, batch_key = jax.random.split(key)

  def loss(params, batch_and_step, values):
    batch, step = batch_and_step
    now = {name: value[step] for name, value in values.items()}
    return problem.loss_fn(params, batch, **now)

  return revmom.train(
    loss,
    optimizer_of(problem, config, tuned, floors),
    problem.init(init_key),
    lambda step: (problem.batches(batch_key, step), step),
    loss_arguments(problem, config, tuned),
    num_steps=config.steps,
  )


def run_key(config: Config, number: Any) -> jax.Array:
  """The key of the training run of a meta iteration."""
  tuning_key, _ = jax.random.split(jax.random.key(config.seed))
  return jax.random.fold_in(tuning_key, number if config.fresh_seeds else 0)


def evaluation_keys(config: Config) -> jax.Array:
  """Of runs that no meta iteration sees."""
  _, key = jax.random.split(jax.random.key(config.seed))
  return jax.random.split(key, EVALUATION_SEEDS)


def meta_iteration(problem: Problem, config: Config) -> Callable:
  """(tuned, meta state, number) -> the next ones, and figures."""
  floors_of = buffer_floors(problem, config)

  def objective(tuned, floors, key):
    run = train(problem, config, tuned, floors, key)
    return problem.validation_loss(run.params), run.losses[-1]

  @functools.partial(jax.jit, static_argnames="floors")
  def step(tuned, meta_state, number, floors):
    key = run_key(config, number)
    (loss, last_loss), gradient = jax.value_and_grad(objective, has_aux=True)(
      tuned, floors, key
    )
    after, meta_state = meta_training.update(
      optax.adam(config.meta_learning_rate), tuned, meta_state, gradient
    )
    figures = {
      "validation_loss": loss,
      "last_train_loss": last_loss,
      "hypergradient_norm": optax.global_norm(gradient),
    }
    return after, meta_state, figures

  return lambda tuned, meta_state, number: step(
    tuned, meta_state, number, floors_of(tuned)
  )


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
  return meta_training.learn(
    meta_iteration(problem, config),
    learned,
    config.meta_steps,
    lambda tuned: columns(problem, config, tuned),
    lambda tuned, number, what: explain(
      problem, config, tuned, run_key(config, number), what
    ),
    save,
    description="tuning",
  )


def explain(
  problem: Problem, config: Config, tuned: Tuned, key: jax.Array, what: str
) -> None:
  """Raises FloatingPointError: what is not finite, and why."""
  floors = buffer_floors(problem, config)(tuned)
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

  floors_of = buffer_floors(problem, config)

  def checked(tuned):
    losses = jax.tree.map(np.asarray, evaluate(tuned, floors_of(tuned)))
    finite = np.logical_and.reduce([*map(np.isfinite, losses.values())])
    if not finite.all():
      bad = np.argmin(finite)
      what = f"evaluation {bad} of {EVALUATION_SEEDS} is not finite"
      key = evaluation_keys(config)[bad]
      explain(problem, config, tuned, key, what)
    return losses

  return checked
