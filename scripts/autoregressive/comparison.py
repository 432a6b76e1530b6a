"""Models beside each other: what they learn, what is counted and measured."""

import math
import statistics
import time
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from autoregressive.models import Data, ImageModel
from autoregressive.training import (
  Config,
  evaluation,
  losses,
  model_of,
  start,
  training_step,
)
from revmom.analysis import Cost, cost
from shared.progress_bar import progress

_SAMPLES = 64  # that are drawn at once when this is timed
_LOOKS = 12  # at the losses of a run


def count(model: ImageModel, params: Any, data: Data) -> Cost:
  """The cost of one image, and of the gradient of its log p."""
  inputs = model.density.conditional.encode(model.events(data.train[:1]))

  def outputs(params, inputs):
    return model.density.network.forward(params, inputs, None)

  return cost(outputs, params, inputs)


def time_samples(model: ImageModel, params: Any, data: Data) -> float:
  """Seconds for one image, of many that are drawn at once."""
  blank = np.zeros((_SAMPLES, *data.train.shape[1:]), np.int32)
  draw = jax.jit(lambda key, p: model.complete(key, p, blank, 0, None))
  key = jax.random.key(0)
  compiled = draw.lower(key, params).compile()
  jax.block_until_ready(compiled(key, params))
  begin = time.perf_counter()
  jax.block_until_ready(compiled(key, params))
  return (time.perf_counter() - begin) / _SAMPLES


def race(config: Config, data: Data) -> dict[str, Any]:
  """Trains a model for a number of steps, and for a time at least.

  The clock stands still while programs are compiled and losses measured.

  Raises:
    FloatingPointError: a loss was not finite.
  """
  model = model_of(config, data.levels)
  training = start(config, model, data)
  found = count(model, training.params, data)
  sampling = time_samples(model, training.params, data)
  step = training_step(config, model, data)
  evaluate = evaluation(config, model, data)
  # To compile it; a step donates its argument.
  jax.block_until_ready(step(jax.tree.map(jnp.array, training), np.int32(0)))
  times: list[float] = []
  curve: list[dict[str, float]] = []
  bar = progress(desc=config.model)
  while len(times) < config.num_steps or sum(times) < config.seconds:
    begin = time.perf_counter()
    training, loss = step(training, np.int32(len(times)))
    if not math.isfinite(float(loss)):
      raise FloatingPointError(
        f"the loss of {config.model} is {loss} in step {len(times)}; lower "
        "--learning_rate."
      )
    times.append(time.perf_counter() - begin)
    bar.update()
    if _is_due(config, times, curve):
      look = {"step": len(times), "seconds": sum(times)}
      curve.append(look | losses(evaluate, data, training))
  bar.close()
  return {
    "model": config.model,
    "equal_steps": next(
      look["test"] for look in curve if look["step"] == config.num_steps
    ),
    "equal_time": _best(curve, config.seconds),
    "steps_in_time": int((np.cumsum(times) <= config.seconds).sum()),
    "parameters": found.parameters,
    "connections": found.connections,
    "flops": found.forward.flops,
    "backward_flops": found.backward.flops if found.backward else None,
    "scheduled_rounds": found.forward.scheduled_rounds,
    "dataflow_rounds": found.forward.dataflow_rounds,
    "activation_bytes": found.activation_bytes,
    "context": found.context,
    "seconds_per_step": statistics.median(times),
    "seconds_per_sample": sampling,
    "curve": curve,
  }


def _is_due(
  config: Config, times: list[float], curve: list[dict[str, float]]
) -> bool:
  """Whether to look at losses now: a few times, and when it counts."""
  number, spent = len(times), sum(times)
  done = number >= config.num_steps and spent >= config.seconds
  looks = sum(look["seconds"] <= config.seconds for look in curve)
  regular = config.seconds * (looks + 1) / _LOOKS <= spent <= config.seconds
  return regular or done or number == config.num_steps


def _best(curve: list[dict[str, float]], seconds: float) -> float:
  """The test loss where the validation loss is least, of looks in time."""
  in_time = [look for look in curve if look["seconds"] <= seconds] or curve[:1]
  return min(in_time, key=lambda look: look["validation"])["test"]


def table(rows: list[dict[str, Any]], unit: str) -> str:
  """Markdown."""
  header = (
    "model",
    f"{unit}, equal steps",
    f"{unit}, equal time",
    "steps in time",
    "parameters",
    "connections",
    "MFLOPs",
    "rounds, scheduled",
    "rounds, dataflow",
    "kept kB",
    "context",
    "ms/step",
    "ms/sample",
  )
  body = [
    (
      row["model"],
      f"{row['equal_steps']:.3f}",
      f"{row['equal_time']:.3f}",
      f"{row['steps_in_time']:,}",
      f"{row['parameters']:,}",
      f"{row['connections']:,}",
      f"{row['flops'] / 1e6:.2f}",
      f"{row['scheduled_rounds']:,}",
      f"{row['dataflow_rounds']:,}",
      f"{row['activation_bytes'] / 1e3:.0f}",
      "" if row["context"] is None else f"{row['context']}",
      f"{1e3 * row['seconds_per_step']:.1f}",
      f"{1e3 * row['seconds_per_sample']:.2f}",
    )
    for row in rows
  ]
  lines = [header, ("---",) * len(header), *body]
  return "\n".join("| " + " | ".join(line) + " |" for line in lines)
