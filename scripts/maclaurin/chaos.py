"""Figure 11 of the paper: where hypergradients lose their meaning."""

import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

import revmom
from maclaurin import plots
from maclaurin.common import (
  DENOMINATOR,
  GRID_REMEDY,
  Config,
  normal_arrays,
  whole,
)
from schedules import elementary
from shared import image_data
from shared.reproduction import Outcome, Row
from shared.runs import check_finite

_CHAOS_GRID = 0.5 + 2.0 / 999 * np.arange(-1, 1001)  # one more at either end
_CHAOS_IMAGES, _CHAOS_BATCH, _CHAOS_HIDDEN = 1000, 250, (200, 50)
_CHAOS_POINTS = 41
# A derivative of a smooth curve agrees with differences better than this.
_CHAOS_TOLERANCE = 1e-4
# log rate, loss, d loss / d log rate: as stored by the authors.
_CHAOS_STORED = (
  (0.5, 0.028806423380918225, -0.062098226694746336),
  (0.75025, 0.01658579478551513, -0.03529967854140788),
  (1.00050, 0.009568397374874573, -0.020634689604895024),
  (1.25075, 0.005606505101770379, -0.011940580661380134),
  (1.45095, 0.003659661014920286, -0.005527015047997239),
  (1.65916, 0.0024400713150258264, 0.01778800385553559),
)

# Two significant digits of its size where it is of no use any more.
_CHAOS_WILD = (1.75, 31.0), (2.25, 1.3e5)


def _nearest(log_rate: float) -> int:
  """The index of a point on the grid."""
  return int(np.abs(_CHAOS_GRID - log_rate).argmin())


def chaos_objective(
  images: np.ndarray, labels: np.ndarray, steps: int, seed: int
) -> Any:
  """log rate -> training loss after some steps, in 64 bits."""
  classes = int(labels.max()) + 1
  shapes = elementary.array_shapes((images.shape[1], *_CHAOS_HIDDEN, classes))
  start = normal_arrays(np.random.RandomState(seed), shapes, -2.0)
  params = [jnp.asarray(array) for array in start]
  data = jnp.asarray(images), jnp.asarray(labels)
  usable = len(labels) // _CHAOS_BATCH * _CHAOS_BATCH
  starts = jnp.arange(steps, dtype=jnp.int32) * _CHAOS_BATCH % usable

  def batch_loss(params, start, images, labels):
    cut = lambda a: lax.dynamic_slice_in_dim(a, start, _CHAOS_BATCH)
    return elementary.mean_loss(params, cut(images), cut(labels))

  def objective(log_rate):
    # The authors' velocity forgets as 58983 / 65536, but gains 1 - 0.9.
    optimizer = revmom.sgd(
      (1 - 0.9) * jnp.exp(log_rate),
      math.floor(0.9 * DENOMINATOR + 1) / DENOMINATOR,
      form="trace",
      grid=revmom.Grid(integer="int64"),
    )
    run = revmom.train(batch_loss, optimizer, params, starts, *data)
    return elementary.mean_loss(run.params, *data)

  return objective


def chaos_sweep(objective: Any, chosen: np.ndarray) -> dict[str, np.ndarray]:
  """Losses, derivatives and central differences at points of the grid.

  Neighbours on the grid, needed by the differences, are trained only once.
  """
  beside = np.setdiff1d(np.concatenate([chosen - 1, chosen + 1]), chosen)
  with_gradient = jax.value_and_grad(objective)
  swept = jax.jit(lambda rates: lax.map(with_gradient, rates))
  plain = jax.jit(lambda rates: lax.map(objective, rates))
  losses = np.full(len(_CHAOS_GRID), np.nan)
  swept_losses, gradients = swept(jnp.asarray(_CHAOS_GRID[chosen]))
  losses[chosen] = swept_losses
  losses[beside] = plain(jnp.asarray(_CHAOS_GRID[beside]))
  spacing = _CHAOS_GRID[1] - _CHAOS_GRID[0]
  return {
    "log_rate": _CHAOS_GRID[chosen],
    "loss": losses[chosen],
    "gradient": np.asarray(gradients),
    "difference": (losses[chosen + 1] - losses[chosen - 1]) / (2 * spacing),
  }


def figure_11(config: Config) -> Outcome:
  """Sweeps the learning rate, in 64 bits."""
  if jax.dtypes.canonicalize_dtype(np.float64) != np.float64:
    raise ValueError("figure 11 needs 64-bit types: set JAX_ENABLE_X64=1.")
  steps, points = config.steps or 50, config.points or _CHAOS_POINTS
  data = image_data.load(config.dataset, config.data_dir)
  images, labels = whole(data)
  levels = 16 if config.dataset == "digits" else 255
  images = np.round(images[:_CHAOS_IMAGES].astype(np.float64) * levels) / levels
  labels = labels[: len(images)]
  if len(labels) < _CHAOS_BATCH:
    raise ValueError(
      f"figure 11 needs {_CHAOS_BATCH} images; got {len(labels)}."
    )
  objective = chaos_objective(
    images.reshape(len(images), -1), labels, steps, config.seed
  )
  nearest = [_nearest(x) for x, *_ in _CHAOS_STORED]
  wild = [_nearest(x) for x, _ in _CHAOS_WILD]
  evenly = np.round(np.linspace(1, 1000, points))
  chosen = np.union1d(nearest + wild, evenly.astype(int))
  sweep = chaos_sweep(objective, chosen)
  check_finite("a loss or hypergradient", sweep, GRID_REMEDY)
  names = "log_rate", "loss", "gradient", "difference"
  metrics = [
    dict(zip(names, map(float, values), strict=True))
    for values in zip(*(sweep[name] for name in names), strict=True)
  ]
  table = _chaos_table(sweep, chosen, nearest, config.dataset == "mnist")
  notes = [
    "Momentum is 58983/65536 with gain 1 - 0.9, as in the authors' code, but "
    "their derivatives forget with 0.9: 2e-5 to 1e-4 of the values below "
    "1.46.  Ours are those of the losses, as central differences show."
  ]
  if config.dataset != "mnist":
    notes.append("Published values belong to MNIST; compare shapes only.")
  figure = plots.chaos(sweep, _CHAOS_STORED)
  return Outcome(table, metrics, {"figure_11": figure}, notes)


def _chaos_table(sweep, chosen, nearest, on_mnist) -> list[Row]:
  table = []
  places = np.searchsorted(chosen, nearest)
  for place, (x, loss, gradient) in zip(places, _CHAOS_STORED, strict=True):
    table += [
      Row(f"loss_{x:.2f}", f"loss at {x:.5f}", loss, sweep["loss"][place]),
      Row(
        f"gradient_{x:.2f}",
        f"d loss / d log rate at {x:.5f}",
        gradient,
        sweep["gradient"][place],
      ),
    ]
  if on_mnist:
    stored = np.array(_CHAOS_STORED)
    relative = lambda ours, theirs: float(np.abs(ours / theirs - 1).max())
    table += [
      Row(
        "loss_relative_difference",
        "largest relative difference from the stored losses",
        None,
        relative(sweep["loss"][places], stored[:, 1]),
      ),
      Row(
        "gradient_relative_difference",
        "largest one from the first five stored derivatives",
        None,
        relative(sweep["gradient"][places[:5]], stored[:5, 2]),
      ),
    ]
  error = np.abs(sweep["gradient"] - sweep["difference"])
  smooth = sweep["log_rate"] < 1.45
  chaotic = sweep["log_rate"][error > _CHAOS_TOLERANCE]
  table += [
    Row(
      "difference_error",
      "largest |derivative - central difference| below 1.45",
      6.8e-6,
      float(error[smooth].max()),
    ),
    Row(
      "chaos_from",
      f"chaos: that error exceeds {_CHAOS_TOLERANCE:g} from log rate",
      1.48,
      float(chaotic.min()) if chaotic.size else "never",
    ),
  ]
  for x, published in _CHAOS_WILD:
    place = np.searchsorted(chosen, _nearest(x))
    table.append(
      Row(
        f"gradient_size_{x:.2f}",
        f"|derivative| at {x}, in the chaos",
        published,
        abs(float(sweep["gradient"][place])),
      )
    )
  table.append(
    Row(
      "largest_gradient",
      "largest |derivative|, which depends on the points",
      6e33,
      float(np.abs(sweep["gradient"]).max()),
    )
  )
  return table
