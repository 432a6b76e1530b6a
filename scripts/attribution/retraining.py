"""Training again without an example, which tells what it did."""

import math
from collections.abc import Callable

import jax
import numpy as np
import scipy.stats
from jax.stages import Wrapped

from attribution.problem import Config, Problem, train, validation
from shared.progress_bar import Lines
from shared.runs import timed

_NOISE_RUNS, _NOISE_PERTURBATION = 3, 1e-5


def retraining(problem: Problem, config: Config) -> Wrapped:
  """weights -> validation losses, forward only."""

  def losses(weights):
    run = train(problem, config, weights)
    return validation(run.params, problem, config)

  return jax.jit(losses)


def perturbed_loss(
  problem: Problem, config: Config
) -> Callable[[int, float], float]:
  """(example, perturbation) -> the validation loss after training, compiled.

  The function raises FloatingPointError if it is not finite.
  """
  ones = np.ones(config.examples, np.float32)
  compiled = retraining(problem, config).lower(ones).compile()

  def loss(example: int, perturbation: float) -> float:
    weights = ones.copy()
    weights[example] -= perturbation
    # The mean in 64 bits: the changes are small.
    mean = float(np.asarray(compiled(weights), np.float64).mean())
    if not math.isfinite(mean):
      raise FloatingPointError(
        f"training without example {example} ends in a validation loss of "
        f"{mean}; lower --learning_rate."
      )
    return mean

  return loss


def leave_out(
  problem: Problem,
  config: Config,
  changes: list[float],
  save: Callable[[list[float]], None],
  bar: Lines,
) -> tuple[list[float], dict[str, float]]:
  """Goes on to a change of the validation loss for each chosen example.

  Also measures what is not due to an example: the changes for perturbations
  that are far too small to matter.

  Raises:
    FloatingPointError: a loss was not finite.
  """
  bar.set_description("compiling the training")
  loss = perturbed_loss(problem, config)
  bar.update()
  bar.set_description("leaving out")
  whole, seconds = timed(loss, 0, 0.0)
  small = [
    loss(example, _NOISE_PERTURBATION) - whole
    for example in problem.chosen[:_NOISE_RUNS]
  ]
  bar.update()
  for example in problem.chosen[len(changes) :]:
    changes = [*changes, loss(example, config.perturbation) - whole]
    save(changes)
    bar.update()
  return changes, {
    "validation_loss": whole,
    "rounding_noise": float(np.sqrt(np.mean(np.square(small)))),
    "training_seconds_per_step": seconds / config.steps,
  }


def correlations(
  predicted: np.ndarray, measured: np.ndarray
) -> dict[str, float]:
  """How well one predicts the other, and the line that fits best."""
  line = scipy.stats.linregress(predicted, measured)
  return {
    "spearman": float(scipy.stats.spearmanr(predicted, measured).statistic),
    "pearson": float(line.rvalue),
    "slope": float(line.slope),
    "offset": float(line.intercept),
    "predicted_std": float(predicted.std()),
    "measured_std": float(measured.std()),
  }
