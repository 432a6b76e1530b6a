"""Several trainings of networks, measured along the way and resumable."""

import pathlib
from collections.abc import Iterator
from typing import Any, NamedTuple

import jax
import numpy as np

from duvenaud2016.config import Config
from duvenaud2016.training import Problem, State, advance, initial, measure
from shared.checkpointing import Checkpoints
from shared.progress_bar import progress
from shared.runs import check_finite

_REMEDY = "the descent diverged; take fewer --steps or other --values."
_SAVES = 10  # of a training
_INTERVAL = "entropy_low", "entropy_high"


class Training(NamedTuple):
  """One curve of a figure, for a value of what the figure varies."""

  value: float
  problem: Problem


def columns(measured: Any) -> dict[str, np.ndarray]:
  """Of a measurement, with the estimates of the marginal likelihood [R].

  log p(x) >= E log p(x | w) + E log p(w) + S[w], of which the authors' figure
  4 leaves E log p(w) out.
  """
  found = {k: np.asarray(v, float) for k, v in measured._asdict().items()}
  joint = found["train_likelihood"] + found["log_prior"]
  return {
    **found,
    "marginal": joint + found["entropy"],
    "marginal_by_bound": joint + found["entropy_bound"],
    "marginal_without_prior": found["train_likelihood"] + found["entropy"],
  }


def train_all(
  config: Config,
  trainings: list[Training],
  steps: int,
  segments: int,
  path: pathlib.Path | None,
) -> list[dict[str, float]]:
  """Trains, measuring before and after each of the segments.

  Returns:
    A row for each training, iteration and run.

  Raises:
    FloatingPointError: something measured was not finite.
    ValueError: a checkpoint belongs to other flags.
  """
  segments = min(segments, steps)
  ends = [round(steps * k / segments) for k in range(segments + 1)]
  checkpoints, done, rows = None, 0, []
  if path is not None:
    checkpoints = Checkpoints(path, config, trainings)
    latest = checkpoints.latest()
    if latest is not None:
      done, rows = latest[0], latest[1]["about"]
  bar = progress(
    total=segments * len(trainings),
    initial=done,
    desc=f"figure {config.figure}",
  )
  keys = jax.random.split(jax.random.key(config.seed), config.runs or 1)
  for index, training in enumerate(trainings):
    begun = done - index * segments
    if begun >= segments:
      continue
    states = jax.vmap(lambda key, p=training.problem: initial(p, key))(keys)
    if begun > 0 and checkpoints is not None:
      states = checkpoints.restore(done, states)
    else:
      begun = 0
      rows.extend(measured_rows(training, states, keys, 0))
    for segment in range(begun, segments):
      states = descend(training.problem, states, keys, ends, segment)
      rows.extend(measured_rows(training, states, keys, ends[segment + 1]))
      done = index * segments + segment + 1
      bar.update()
      often = -(-segments // _SAVES)
      if checkpoints is not None and (
        done % often == 0 or done % segments == 0
      ):
        checkpoints.save(done, states, rows)
  bar.close()
  if checkpoints is not None:
    checkpoints.close()
  return rows


def descend(
  problem: Problem,
  states: State,
  keys: jax.Array,
  ends: list[int],
  segment: int,
) -> State:
  """One segment of all runs."""
  return advance(
    states,
    problem.train,
    keys,
    np.int32(ends[segment]),
    np.float32(problem.learning_rate),
    np.float32(problem.threshold),
    length=ends[segment + 1] - ends[segment],
    batch_size=problem.batch_size,
  )


def measured_rows(
  training: Training, states: State, keys: jax.Array, iteration: int
) -> Iterator[dict[str, float]]:
  """What metrics.csv has of some runs at one iteration."""
  found = columns(measure(training.problem, states, keys))
  # Where alpha H has eigenvalues above 1 the interval has no ends.
  known = {k: v for k, v in found.items() if k not in _INTERVAL}
  name = f"iteration {iteration} at {training.value:g}"
  check_finite(name, known, _REMEDY)
  scale = training.problem.target_scale
  for run in range(len(keys)):
    row = {name: float(values[run]) for name, values in found.items()}
    for name in ("train_error", "test_error"):
      row[name] *= scale
    yield {
      "value": training.value,
      "iteration": iteration,
      "run": run,
      **row,
    }


class Curve(NamedTuple):
  """Means over runs at each iteration of a training."""

  value: float
  iterations: np.ndarray  # [T]
  runs: dict[str, np.ndarray]  # of each column [T, R]

  def mean(self, name: str) -> np.ndarray:
    """Over runs, [T]."""
    return self.runs[name].mean(1)

  def stderr(self) -> np.ndarray:
    """Of the mean of the marginal likelihood by estimating determinants."""
    errors = self.runs["entropy_stderr"]
    return np.sqrt((errors**2).sum(1)) / errors.shape[1]

  def spread(self) -> np.ndarray | None:
    """Of the same by the choice of the initial weights, where that is seen."""
    marginal = self.runs["marginal"]
    if marginal.shape[1] < 2:
      return None
    return marginal.std(1, ddof=1) / marginal.shape[1] ** 0.5


def curves_of(rows: list[dict[str, float]]) -> list[Curve]:
  """The rows of each training, in their order."""
  curves = []
  for value in dict.fromkeys(row["value"] for row in rows):
    own = [row for row in rows if row["value"] == value]
    iterations = list(dict.fromkeys(row["iteration"] for row in own))
    table = {
      name: np.array([row[name] for row in own]).reshape(len(iterations), -1)
      for name in own[0]
    }
    curves.append(Curve(value, np.array(iterations), table))
  return curves
