"""The programs of a run: trained, beside optax, and run backward."""

import contextlib
import functools
import math
import statistics
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import AxisType, NamedSharding, PartitionSpec
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
      residue_bits=config.residues,
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
  loss_fn, batches = way_back(problem, config)
  return jax.jit(
    lambda state, *args: revmom.rewind(
      loss_fn, problem.optimizer, state, batches, *args
    )
  )


def way_back(problem: Problem, config: Config) -> tuple[Callable, Callable]:
  """The loss in parts, and batches spread over devices."""
  parts, devices = config.reverse_microbatches, config.reverse_devices
  loss_fn, batches = problem.loss_fn, problem.batches
  if devices > 1:
    mesh = jax.make_mesh((devices,), ("rows",), axis_types=(AxisType.Auto,))
    rows = NamedSharding(mesh, PartitionSpec("rows"))
    batches = lambda step: jax.lax.with_sharding_constraint(
      problem.batches(step), rows
    )
  if parts > 1:
    loss_fn = revmom.accumulated(loss_fn, parts)
  return loss_fn, batches


def provide_devices(config: Config) -> None:
  """Makes virtual devices of a CPU, before JAX looks for any.

  Raises:
    ValueError: there are fewer devices than the way back is to have.
  """
  if config.reverse_devices > 1:
    with contextlib.suppress(RuntimeError):  # JAX has looked already
      jax.config.update("jax_num_cpu_devices", config.reverse_devices)
  if jax.device_count() < config.reverse_devices:
    raise ValueError(
      f"--reverse_devices={config.reverse_devices}, but there are "
      f"{jax.device_count()} devices."
    )


def differing_bits(
  problem: Problem, config: Config, state: Any
) -> tuple[float, np.ndarray]:
  """The share of elements that differ, and that in each bit, highest first.

  Of gradients at the last weights, as the run computes them and as the way back
  does.
  """
  params = problem.optimizer.params(state)
  ways = (problem.loss_fn, problem.batches), way_back(problem, config)

  def gradients(loss_fn, batches, params, args):
    of = lambda step: jax.grad(loss_fn)(params, batches(step), *args)
    return jax.lax.map(of, jnp.arange(min(8, config.steps)))

  found = [
    jax.jit(functools.partial(gradients, *way))(params, problem.args)
    for way in ways
  ]
  integer = np.dtype(f"uint{8 * jnp.dtype(config.dtype).itemsize}")
  flat = [
    np.concatenate([np.ravel(a).view(integer) for a in jax.tree.leaves(tree)])
    for tree in jax.device_get(found)
  ]
  apart = flat[0] ^ flat[1]
  shifts = np.arange(8 * integer.itemsize, dtype=integer)[::-1]
  each = np.mean((apart[:, None] >> shifts) & integer.type(1), axis=0)
  return float(np.mean(apart != 0)), each


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
    **_margin(receipt),
    "weights_equal_those_drawn": all(jax.tree.leaves(same)),
    "rewind_seconds_per_step": seconds / state.steps,
    "rewind_peak_bytes": peak_bytes(compiled),
  }


def _margin(receipt: revmom.Receipt) -> dict[str, Any]:
  if receipt.margin is None:
    return {}
  distance, bound, step = receipt.margin
  return {
    "margin_distance": float(distance),
    "margin_bound": float(bound),
    "margin_step": int(step),
    "margin_is_narrow": bool(receipt.near_bound),
    "margin_in_words": receipt.describe(),
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
