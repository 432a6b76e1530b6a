"""The gradient of a validation loss by the weights of training examples."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.stages import Wrapped

import revmom
from attribution.problem import (
  B1,
  B2,
  EPS,
  Config,
  Problem,
  batch_loss,
  optimizer_of,
  train,
  validation,
)
from shared.checkpointing import Checkpoints
from shared.progress_bar import Lines
from shared.runs import check_run, timed

# Beyond this, differentiation by checkpoints is compiled but not run.
_CHECKPOINTS_LIMIT = 2 * 2**30


class Attribution(NamedTuple):
  """What one training run and its reversal say."""

  gradient: np.ndarray  # [examples], of the validation loss
  losses: np.ndarray  # [steps], of the batches
  validation_losses: np.ndarray  # [validation examples]


def reversible_gradient(problem: Problem, config: Config) -> Wrapped:
  """weights -> gradient of the validation loss, validation losses, run."""

  def objective(weights):
    run = train(problem, config, weights)
    losses = validation(run.params, problem, config)
    return losses.mean(), (losses, run)

  return jax.jit(jax.grad(objective, has_aux=True))


def checkpointed_gradient(problem: Problem, config: Config) -> Wrapped:
  """The same gradient by JAX alone, of floats, with each step checkpointed."""
  optimizer = optax.chain(
    optax.clip_by_global_norm(config.clip),
    optax.adamw(
      lambda step: jnp.asarray(problem.rates)[step],
      b1=B1,
      b2=B2,
      eps=EPS,
      eps_root=config.eps_root,
      weight_decay=config.weight_decay,
    ),
  )

  def objective(weights):
    def step(carry, indices):
      params, state = carry
      gradients = jax.grad(batch_loss)(params, indices, weights, problem.train)
      updates, state = optimizer.update(gradients, state, params)
      return (optax.apply_updates(params, updates), state), None

    start = problem.params, optimizer.init(problem.params)
    # A scan is a loop, so nothing can be shared between the two passes.
    body = jax.checkpoint(step, prevent_cse=False)
    (params, _), _ = jax.lax.scan(body, start, problem.indices)
    return validation(params, problem, config).mean()

  return jax.jit(jax.grad(objective))


def attribute(
  problem: Problem, config: Config, bar: Lines
) -> tuple[Attribution, dict[str, Any]]:
  """The gradient, and what it costs beside checkpointing.

  Raises:
    FloatingPointError: a loss or the gradient was not finite.
  """
  weights = jnp.ones(config.examples, jnp.float32)
  bar.set_description("compiling the gradient")
  ours = reversible_gradient(problem, config).lower(weights).compile()
  bar.update()
  bar.set_description("training and back")
  (gradient, (losses, run)), seconds = timed(ours, weights)
  check_finite(problem, config, run, gradient)
  bar.update()
  figures = {
    "gradient_seconds_per_step": seconds / config.steps,
    "gradient_temporary_bytes": temporary_bytes(ours),
  }
  figures |= checkpointing(problem, config, gradient, figures, bar)
  arrays = gradient, run.losses, losses
  return Attribution(*map(np.asarray, arrays)), figures


def checkpointing(
  problem: Problem,
  config: Config,
  gradient: jax.Array,
  ours: dict[str, Any],
  bar: Lines,
) -> dict[str, Any]:
  """What checkpointing costs, relative to ours, and how the gradients agree."""
  weights = jnp.ones(config.examples, jnp.float32)
  bar.set_description("compiling checkpoints")
  compiled = checkpointed_gradient(problem, config).lower(weights).compile()
  bar.update()
  size = temporary_bytes(compiled)
  figures: dict[str, Any] = {
    "checkpoints_temporary_bytes": size,
    "memory_ratio": size / ours["gradient_temporary_bytes"],
    "checkpoints_seconds_per_step": None,
    "time_ratio": None,
    "gradient_correlation_with_optax": None,
  }
  if size <= _CHECKPOINTS_LIMIT:
    bar.set_description("training with checkpoints")
    theirs, seconds = timed(compiled, weights)
    per_step = seconds / config.steps
    figures |= {
      "checkpoints_seconds_per_step": per_step,
      "time_ratio": ours["gradient_seconds_per_step"] / per_step,
      "gradient_correlation_with_optax": float(
        np.corrcoef(gradient, theirs)[0, 1]
      ),
    }
  bar.update()
  return figures


def check_finite(
  problem: Problem, config: Config, run: revmom.Run, gradient: jax.Array
) -> None:
  """Raises FloatingPointError, with the reason if it is known."""
  check_run(run, optimizer_of(problem, config), "lower --learning_rate")
  if not np.isfinite(gradient).all():
    raise FloatingPointError(
      "the gradient is not finite: the reversal was not exact (see above), or "
      "training is chaotic; lower --learning_rate or raise --eps_root."
    )


def temporary_bytes(compiled: Any) -> int:
  """Memory beside arguments and results."""
  return compiled.memory_analysis().temp_size_in_bytes


def attributed(
  checkpoints: Checkpoints,
  problem: Problem,
  config: Config,
  bar: Lines,
) -> tuple[Attribution, dict[str, Any]]:
  """The attribution, restored if it can be, with its figures and changes.

  Raises:
    ValueError: the checkpoint belongs to other flags.
    FloatingPointError: a loss or the gradient was not finite.
  """
  sizes = config.examples, config.steps, config.validation_examples
  like: Any = [jax.ShapeDtypeStruct((n,), jnp.float32) for n in sizes]
  restored, about = checkpoints.resume(Attribution(*like))
  if about is None:
    attribution, figures = attribute(problem, config, bar)
    about = {"figures": figures, "changes": []}
    checkpoints.save(0, attribution, about)
    return attribution, about
  about["changes"] = about["changes"][: config.leave_out]
  bar.update(4 + len(about["changes"]))
  return Attribution(*map(np.asarray, restored)), about
