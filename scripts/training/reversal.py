"""The programs of a run: trained, beside optax, and run backward."""

import math
import statistics
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.stages import Wrapped

import revmom
from shared.checkpointing import Checkpoints
from shared.progress_bar import progress
from shared.runs import check_run, held, timed
from training.problem import Config, Problem, evaluate


class Trained(NamedTuple):
  """A finished run, fresh or from a checkpoint."""

  state: Any  # revmom's, of integers
  losses: np.ndarray  # [steps]
  plain_losses: np.ndarray  # [steps], of optax
  figures: dict[str, float]


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
      residue_bits=config.residue_bits,
    )

  return jax.jit(run)


def plain_training(problem: Problem, config: Config) -> Wrapped:
  """The same in floats, by optax: (params, images, labels) -> losses."""
  rate, decay, clip = config.learning_rate, config.weight_decay, config.clip
  optimizer = optax.chain(
    optax.clip_by_global_norm(clip) if clip else optax.identity(),
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


def reversal(problem: Problem, config: Config) -> Wrapped:
  """(state, images, labels) -> Rewound."""
  parts = config.reverse_microbatches
  loss_fn = problem.loss_fn
  if parts > 1:
    loss_fn = revmom.accumulated(loss_fn, parts)
  return jax.jit(
    lambda state, *args: revmom.rewind(
      loss_fn, problem.optimizer, state, problem.batches, *args
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


def rewind(problem: Problem, config: Config, state: Any) -> dict[str, Any]:
  """Reverses a run: what its receipt says, time and memory.

  Raises:
    RuntimeError: the reversal was not exact.
  """
  compiled = reversal(problem, config).lower(state, *problem.args).compile()
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
    jax.eval_shape(reversal(problem, config), state, *problem.args)
  except ValueError as error:
    raise ValueError(
      f"can't rewind from {checkpoints.workdir}: {error}.  Rerun in that "
      "environment, or train again with another --workdir."
    ) from error
  losses = jax.ShapeDtypeStruct((config.steps,), jnp.float32)
  state, ours, plain = checkpoints.restore(number, (state, losses, losses))
  return Trained(state, np.asarray(ours), np.asarray(plain), saved["about"])
