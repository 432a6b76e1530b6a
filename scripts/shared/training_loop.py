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
  rows: Rows,
  steps: int,
  validate: Callable[[Any], tuple[dict[str, float], str]],
  save: Callable[[T, Rows], None],
  *,
  checkpoints: int = 10,
  loss: str = "loss",
  remedy: str = "lower --learning_rate",
) -> tuple[T, Rows]:
  """Goes on to the last step; validates and saves now and then.

  Args:
    step: (training, number) -> the next training, and the loss.
    training: what it starts from.
    rows: of the steps that have been taken.
    steps: how many there are in all.
    validate: params -> more columns of the row, and words for the progress bar.
    save: keeps a checkpoint.
    checkpoints: how many there are in a run, each with a validation.
    loss: the name of its column.
    remedy: what to do if it is not finite.

  Raises:
    FloatingPointError: a loss was not finite.
  """
  every = math.ceil(steps / checkpoints)
  rows = list(rows)
  bar = progress(
    range(len(rows), steps),
    initial=len(rows),
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
      save(training, rows)
  return training, rows


def resume(checkpoints: Checkpoints, training: T) -> tuple[T, Rows]:
  """The latest state, or the given one if there is none.

  Raises:
    ValueError: it belongs to other flags.
  """
  training, rows = checkpoints.resume(training)
  return training, rows or []


def saving(checkpoints: Checkpoints) -> Callable[[Any, Rows], None]:
  """(training, rows) -> a checkpoint of what `resume` restores."""
  return lambda training, rows: checkpoints.save(len(rows), training, rows)
