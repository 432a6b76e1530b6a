"""Training a model step by step: progress, validations, checkpoints."""

import math
import time
from collections.abc import Callable
from typing import Any, NamedTuple, TypeVar

import numpy as np

from shared.checkpointing import Checkpoints
from shared.progress_bar import progress

Rows = list[dict[str, float]]  # one a step, for metrics.csv


# What a checkpoint holds; it has params.
T = TypeVar("T", bound=Any)


class Training(NamedTuple):
  """What most experiments keep."""

  params: Any
  optimizer: Any  # state of an optax optimizer


def train(
  step: Callable[[T, np.int32], tuple[T, Any]],
  training: T,
  steps: int,
  validate: Callable[[Any], tuple[dict[str, float], str]],
  checkpoints: Checkpoints,
  *,
  saves: int = 10,
  loss: str = "loss",
  remedy: str = "lower --learning_rate",
) -> tuple[T, Rows, int]:
  """Resumes, and goes on to the last step; validates and saves now and then.

  Args:
    step: (training, number) -> the next training, and the loss.
    training: what it starts from, if there is no checkpoint.
    steps: how many there are in all.
    validate: params -> more columns of the row, and words for the progress bar.
    checkpoints: where it is saved.
    saves: how many there are in a run, each with a validation.
    loss: the name of its column.
    remedy: what to do if it is not finite.

  Returns:
    The last training, the rows of all steps, and how many of them were done
    before.

  Raises:
    ValueError: the checkpoints belong to other flags or data.
    FloatingPointError: a loss was not finite.
  """
  every = math.ceil(steps / saves)
  training, saved_rows = checkpoints.resume(training)
  rows: Rows = saved_rows or []
  done_before = len(rows)
  bar = progress(
    range(done_before, steps),
    initial=done_before,
    total=steps,
    desc="training",
  )
  for number in bar:
    begin = time.perf_counter()
    training, value = step(training, np.int32(number))
    row = {"step": number, loss: float(value)}
    if not math.isfinite(row[loss]):
      raise FloatingPointError(
        f"the loss of step {number} is {row[loss]}; {remedy}."
      )
    rows.append({**row, "seconds": time.perf_counter() - begin})
    if (number + 1) % every == 0 or number + 1 == steps:
      columns, words = validate(training.params)
      rows[-1] |= columns
      bar.set_postfix_str(words)
      checkpoints.save(len(rows), training, rows)
  return training, rows, done_before
