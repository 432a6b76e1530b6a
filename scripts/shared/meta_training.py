"""Meta training: every iteration trains, and follows the hypergradient."""

import math
import statistics
import time
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
import optax

from shared import output
from shared.checkpointing import Checkpoints
from shared.progress_bar import progress
from shared.training_loop import Rows

EVALUATION_SEEDS = 10


class Learned(NamedTuple):
  """The state of the meta optimisation: all that a checkpoint holds."""

  values: Any  # that training depends on
  meta_state: Any  # of the meta optimizer
  rows: Rows  # of metrics.csv, one a meta iteration


def start(values: Any, optimizer: optax.GradientTransformation) -> Learned:
  """Before the first meta iteration."""
  return Learned(values, optimizer.init(values), [])


def update(
  optimizer: optax.GradientTransformation,
  values: Any,
  meta_state: Any,
  gradient: Any,
) -> tuple[Any, Any]:
  """One step of the meta optimizer: the next values, and its next state."""
  updates, meta_state = optimizer.update(gradient, meta_state)
  return optax.apply_updates(values, updates), meta_state


def learn(
  step: Callable[[Any, Any, np.int32], tuple[Any, Any, dict[str, Any]]],
  learned: Learned,
  meta_steps: int,
  columns: Callable[[Any], dict[str, float]],
  explain: Callable[[Any, int, str], None],
  save: Callable[[Learned], None],
  *,
  description: str,
) -> Learned:
  """Goes on to `meta_steps`, and saves after each meta iteration.

  Args:
    step: (values, meta state, number) -> the next ones, and figures, one of
      which is the validation_loss.
    learned: what it starts from.
    meta_steps: how many meta iterations there are in all.
    columns: values -> columns of the row that has their losses.
    explain: (values, number, what) raises FloatingPointError: what is not
      finite, and why.
    save: keeps a checkpoint.
    description: in the progress bar.

  Raises:
    FloatingPointError: a loss or a hypergradient was not finite.
  """
  bar = progress(
    range(len(learned.rows), meta_steps),
    initial=len(learned.rows),
    total=meta_steps,
    desc=description,
  )
  for number in bar:
    begin = time.perf_counter()
    values, meta_state, rows = learned
    after, meta_state, found = step(values, meta_state, np.int32(number))
    figures = {name: float(value) for name, value in found.items()}
    bad = [f"{k}={v}" for k, v in figures.items() if not math.isfinite(v)]
    if bad:
      explain(values, number, f"meta iteration {number} has {', '.join(bad)}")
    seconds = time.perf_counter() - begin
    row = {"meta_step": number, **figures, **columns(values)}
    learned = Learned(after, meta_state, [*rows, {**row, "seconds": seconds}])
    save(learned)
    bar.set_postfix_str(f"validation loss {figures['validation_loss']:.4f}")
  return learned


def save(checkpoints: Checkpoints, learned: Learned) -> None:
  """Keeps what is learned, and brings metrics.csv up to date."""
  checkpoints.save(len(learned.rows), learned[:2], learned.rows)
  if checkpoints.workdir is not None:
    output.write_csv(checkpoints.workdir / "metrics.csv", learned.rows)


def resume(
  checkpoints: Checkpoints, start: Learned, meta_steps: int
) -> Learned:
  """The latest state, or `start` if there is none.

  Raises:
    ValueError: it belongs to other flags or data, or is beyond --meta_steps.
  """
  state, rows = checkpoints.resume(
    start[:2],
    lambda number, _: check_number(checkpoints, number, meta_steps),
  )
  return Learned(*state, rows or [])


def check_number(
  checkpoints: Checkpoints, number: int, meta_steps: int
) -> None:
  """Raises ValueError if checkpoints are beyond --meta_steps."""
  if number > meta_steps:
    raise ValueError(
      f"{checkpoints.workdir} holds {number} meta iterations, more than "
      f"--meta_steps={meta_steps}; raise it, or give another --workdir."
    )


def seconds(learned: Learned) -> dict[str, float]:
  """For the result: of a meta iteration, and of the first, which compiles."""
  of_rows = [row["seconds"] for row in learned.rows]
  return {
    "seconds_of_first_meta_step": of_rows[0],
    "seconds_per_meta_step": statistics.median(of_rows),
  }


def pace(result: dict[str, Any]) -> str:
  """These, for people."""
  return (
    f"{result['seconds_of_first_meta_step']:.1f} s for the first meta "
    "iteration, which is compiled, then "
    f"{result['seconds_per_meta_step']:.3f} s each"
  )


def summarise(losses: dict[str, np.ndarray], when: str) -> dict[str, float]:
  """Means over seeds, and the standard deviation of the validation loss."""
  means = {
    f"{name}_{when}": float(each.mean()) for name, each in losses.items()
  }
  spread = float(losses["validation_loss"].std(ddof=1))
  return {**means, f"validation_loss_std_{when}": spread}
