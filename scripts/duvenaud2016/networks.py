"""Figures 4, 5 and 6 of the paper: networks, and when to stop training them."""

import dataclasses
import pathlib

import numpy as np

from duvenaud2016 import data, plots
from duvenaud2016.config import Config
from duvenaud2016.curves import Curve, Training, curves_of, train_all
from duvenaud2016.training import Examples, Problem
from shared.reproduction import Outcome, Row

# Published: train, test and marginal likelihood in nats per training image, and
# test errors in the authors' files of results.
HIDDEN_UNITS = {
  3: (-0.777, -0.755, -2.878, 0.238),
  10: (-0.210, -0.231, -1.343, 0.066),
  30: (-0.108, -0.140, -1.106, 0.042),
  100: (-0.083, -0.117, -1.176, 0.034),
  300: (-0.074, -0.112, -1.406, 0.032),
  1000: (-0.069, -0.117, -2.148, 0.033),
  3000: (-0.061, -0.125, -4.051, 0.035),
}
THRESHOLDS = {
  0: (-0.262, -0.321, -0.6489, 0.084),
  1: (-0.263, -0.322, -0.6476, None),
  3: (-0.264, -0.323, -0.6451, None),
  10: (-0.270, -0.329, -0.6375, None),
  30: (-0.285, -0.343, -0.6220, None),
  100: (-0.326, -0.381, -0.6011, None),
  300: (-0.417, -0.467, -0.6172, None),
  1000: (-0.694, -0.728, -0.8044, 0.177),
}
_PUBLISHED = "train_likelihood", "test_likelihood", "marginal", "test_error"
_DIGITS_VALUES = {
  "5": (1, 3, 10, 30, 100),
  "6": (0, 0.3, 1, 3, 10, 30),
}
_DIGITS_STEPS = {"5": 90, "6": 300}
HOUSING = {
  "first_marginal_without_prior": -28.07,
  "best_marginal_without_prior": -27.684,
  "best_iteration_without_prior": 70,
  "last_marginal_without_prior": -28.57,
  "best_test_error": 5.570,
  "best_test_iteration": 180,
  "last_test_error": 5.861,
}


# Figure 4: when to stop.


def figure_4(config: Config, path: pathlib.Path | None = None) -> Outcome:
  """The marginal likelihood along training."""
  of_table = config.dataset in data.TABLES
  problem, notes = (regression if of_table else classification)(config)
  config = dataclasses.replace(config, runs=config.runs or 5)
  trainings = [Training(0.0, problem)]
  rows = train_all(config, trainings, config.steps or 490, 49, path)
  (curve,) = curves_of(rows)
  figure = plots.along_training(curve, config.dataset)
  table = stopping_rows(curve, HOUSING if of_table else {})
  notes = [*notes, *interval_notes([curve])]
  return Outcome(table, rows, {"figure_4": figure}, notes)


def regression(config: Config) -> tuple[Problem, list[str]]:
  """The paper's: 100 tanh units on a tenth of a table."""
  train, test, scale, notes = data.table(config.dataset, config.data_dir)
  sizes = train.inputs.shape[1], 100, 1
  batch = len(train.targets)
  return Problem(sizes, train, test, 0.1, 0.004, batch, 1.0, scale), [
    *notes,
    "As in the authors' code g0 = 1, the squared error has no half, and the "
    "published marginal likelihood leaves the prior out.",
  ]


def classification(config: Config) -> tuple[Problem, list[str]]:
  """30 tanh units on images; the paper has none in this figure."""
  train, test, notes = data.images(config.dataset, config.data_dir)
  inputs = train.inputs.shape[1]
  sizes = inputs, 30, classes_of(train)
  return Problem(sizes, train, test, 2 / inputs**0.5, 0.1, 250), [
    *notes,
    "The paper has houses in this figure (--dataset=housing), no images.",
  ]


def classes_of(examples: Examples) -> int:
  """How many there are."""
  return int(examples.targets.max()) + 1


def interval_notes(curves: list[Curve]) -> list[str]:
  """Where error bars are of sampling alone."""
  unbounded = [
    f"{curve.value:g}"
    for curve in curves
    if not np.isfinite(curve.runs["entropy_low"]).all()
  ]
  if not unbounded:
    return []
  return [
    f"At {', '.join(unbounded)} alpha H has eigenvalues above 1 at some step: "
    "there the error bars are of the random directions alone, as no bound is "
    "known of what 6 Lanczos steps leave out of an indefinite matrix."
  ]


def stopping_rows(curve: Curve, published: dict[str, float]) -> list[Row]:
  """When to stop, by the marginal likelihood and by tests."""
  marginal, lacking = map(curve.mean, ("marginal", "marginal_without_prior"))
  tests, errors = map(curve.mean, ("test_likelihood", "test_error"))
  best, error = int(marginal.argmax()), curve.stderr()
  at = lambda index: float(curve.iterations[index])
  rows = [
    Row("best_iteration", "iteration of the best marginal", None, at(best)),
    Row(
      "best_marginal", "best marginal likelihood", None, marginal[best],
      error[best],
    ),
    Row(
      "last_marginal", "last marginal likelihood", None, marginal[-1],
      error[-1],
    ),
    Row(
      "last_entropy_change",
      "change of entropy",
      None,
      curve.mean("entropy")[-1] - curve.mean("entropy")[0],
      error[-1],
    ),
    Row(
      "last_entropy_change_by_bound",
      "the same by the paper's estimator",
      None,
      curve.mean("entropy_bound")[-1] - curve.mean("entropy_bound")[0],
    ),
    Row(
      "largest_eigenvalue",
      "largest eigenvalue of alpha H (it needs < 0.68)",
      None,
      curve.runs["largest_eigenvalue"].max(),
    ),
    Row(
      "first_marginal_without_prior", "first marginal without prior", None,
      lacking[0],
    ),
    Row(
      "best_marginal_without_prior", "best marginal without prior", None,
      lacking.max(), error[int(lacking.argmax())],
    ),
    Row(
      "best_iteration_without_prior", "its iteration", None,
      at(lacking.argmax()),
    ),
    Row(
      "last_marginal_without_prior", "last marginal without prior", None,
      lacking[-1], error[-1],
    ),
    Row(
      "best_test_likelihood", "best test likelihood", None, tests.max()
    ),
    Row(
      "best_test_iteration", "its iteration", None, at(tests.argmax())
    ),
    Row("stopped_test_error", "test error where the marginal is best", None,
        errors[best]),
    Row("best_test_error", "least test error", None, errors.min()),
    Row("last_test_error", "last test error", None, errors[-1]),
  ]  # fmt: skip
  spread = curve.spread()
  if spread is not None:
    text = "standard error of the best marginal, of initial weights"
    rows.insert(2, Row("best_marginal_spread", text, None, spread[best]))
  return [
    row._replace(published=published.get(row.key), measured=float(row.measured))
    for row in rows
  ]


# Figures 5 and 6: how many hidden units, and which threshold.


def values_of(config: Config, published: dict) -> list[float]:
  """What a figure varies.

  Raises:
    ValueError: --values holds something else than numbers that make sense.
  """
  if config.values is None:
    digits = config.dataset == "digits"
    return list(_DIGITS_VALUES[config.figure] if digits else published)
  least = 1 if config.figure == "5" else 0
  whole = config.figure == "6" or all(n == int(n) for n in config.values)
  if min(config.values) < least or not whole:
    what = "numbers of hidden units" if least else "thresholds g0 >= 0"
    given = ",".join(f"{value:g}" for value in config.values)
    raise ValueError(f"--values={given}; expected {what}.")
  return list(config.values)


def figure_5(config: Config, path: pathlib.Path | None = None) -> Outcome:
  """The number of hidden units."""
  train, test, notes = data.images(config.dataset, config.data_dir)
  inputs = train.inputs.shape[1]
  trainings = [
    Training(
      value,
      Problem(
        (inputs, int(value), classes_of(train)),
        train,
        test,
        2 / inputs**0.5,
        1.0,
        1000,
      ),
    )
    for value in values_of(config, HIDDEN_UNITS)
  ]
  steps = config.steps or (
    _DIGITS_STEPS[config.figure] if _digits(config) else 900
  )
  return compared(
    config, path, trainings, steps, HIDDEN_UNITS, "hidden units", notes
  )


def figure_6(config: Config, path: pathlib.Path | None = None) -> Outcome:
  """The threshold of entropy-friendly gradients."""
  train, test, notes = data.images(config.dataset, config.data_dir, 1000)
  sizes = train.inputs.shape[1], 100, classes_of(train)
  init_scale = 0.05
  if _digits(config):
    init_scale = 0.25
    notes.append("Initial weights have s0 = 0.25, the paper's 0.05.")
  trainings = [
    Training(value, Problem(sizes, train, test, init_scale, 0.1, 250, value))
    for value in values_of(config, THRESHOLDS)
  ]
  steps = config.steps or (
    _DIGITS_STEPS[config.figure] if _digits(config) else 1350
  )
  return compared(
    config, path, trainings, steps, THRESHOLDS, "threshold", notes
  )


def compared(
  config: Config,
  path: pathlib.Path | None,
  trainings: list[Training],
  steps: int,
  published: dict,
  what: str,
  notes: list[str],
) -> Outcome:
  """A figure of the ends of several trainings."""
  config = dataclasses.replace(config, runs=config.runs or 1)
  rows = train_all(config, trainings, steps, 9, path)
  curves = curves_of(rows)
  table = []
  for curve in curves:
    stored = published.get(curve.value, (None,) * len(_PUBLISHED))
    for name, value in zip(_PUBLISHED, stored, strict=True):
      error = float(curve.stderr()[-1]) if name == "marginal" else None
      table.append(
        Row(
          f"{name}_{curve.value:g}",
          f"{name.replace('_', ' ')}, {what} {curve.value:g}",
          value,
          float(curve.mean(name)[-1]),
          error,
        )
      )
  for name in ("marginal", "test_likelihood"):
    best = max(curves, key=lambda curve: curve.mean(name)[-1]).value
    known = {
      value: stored[_PUBLISHED.index(name)]
      for value, stored in published.items()
    }
    text = f"{what} of the best {name.replace('_', ' ')}"
    table.append(
      Row(f"best_{name}", text, max(known, key=lambda v: known[v]), best)
    )
  largest = max(curve.runs["largest_eigenvalue"].max() for curve in curves)
  text = "largest eigenvalue of alpha H (the paper's bound needs < 0.68)"
  table.append(Row("largest_eigenvalue", text, None, float(largest)))
  figure = plots.comparison(
    curves, published if not _digits(config) else {}, what, config.dataset
  )
  notes = [*notes, *interval_notes(curves)]
  return Outcome(table, rows, {f"figure_{config.figure}": figure}, notes)


def _digits(config: Config) -> bool:
  return config.dataset == "digits"
