"""Figures of the paper whose hyperparameters are in the loss.

A penalty for every weight, and the training images themselves.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

import revmom
from maclaurin import plots
from maclaurin.common import (
  META_REMEDY,
  Config,
  centred,
  inner_optimizer,
  mean_note,
  normal_arrays,
  split,
  whole,
)
from schedules import elementary
from shared import image_data
from shared.progress_bar import progress
from shared.reproduction import Outcome, Row
from shared.runs import check_finite


def _penalty(log_l2: list, params: list) -> jax.Array:
  """The sum of L2 w^2, without a half."""
  terms = [
    jnp.sum(jnp.exp(log) * w**2) for log, w in zip(log_l2, params, strict=True)
  ]
  return jnp.sum(jnp.stack(terms))


def _descend(objective: Any, hypers: Any, rate: float, steps: int, name: str):
  """Gradient descent; yields (number, hypers, figures of objective)."""

  @jax.jit
  def step(hypers):
    gradient, about = jax.grad(objective, has_aux=True)(hypers)
    after = jax.tree.map(lambda x, g: x - rate * g, hypers, gradient)
    return after, gradient, about

  for number in progress(range(steps), desc=name):
    after, gradient, about = step(hypers)
    check_finite(f"meta iteration {number}", (gradient, about), META_REMEDY)
    yield number, hypers, jax.tree.map(np.asarray, about)
    hypers = after


def _ends(
  metrics: list[dict], published: dict[str, tuple[float, float]], text: str
) -> list[Row]:
  """Rows of the first and last values of columns."""
  return [
    Row(f"{name}_{when}", f"{name} loss {when} {text}", value, row[name])
    for name, values in published.items()
    for when, row, value in zip(
      ("before", "after"), (metrics[0], metrics[-1]), values, strict=True
    )
  ]


# Figure 8: a penalty for every pixel and class.


def figure_8(config: Config) -> Outcome:
  """Learns the L2 penalty of each weight of a logistic regression."""
  steps, meta_steps = config.steps or 50, config.meta_steps or 50
  data, notes = split(config, (10_000, 10_000, 1000))
  mean = data.train_images.mean(0)
  train = centred(mean, data.train_images, data.train_labels)
  validation = centred(mean, data.validation_images, data.validation_labels)
  test = centred(mean, data.test_images, data.test_labels)
  shapes = elementary.array_shapes(
    (mean.size, int(data.train_labels.max()) + 1)
  )
  draws = np.random.RandomState(config.seed)
  start = normal_arrays(draws, shapes, -4.0)
  params = [jnp.asarray(array, jnp.float32) for array in start]
  size = min(200, len(train[1]))
  usable = len(train[1]) // size * size
  starts = jnp.arange(steps) * size % usable

  def batch_loss(params, start, log_l2, images, labels):
    cut = lambda a: lax.dynamic_slice_in_dim(a, start, size)
    loss = elementary.mean_loss(params, cut(images), cut(labels))
    return loss + _penalty(log_l2, params)

  def objective(log_l2):
    run = revmom.train(
      batch_loss, inner_optimizer(), params, starts, log_l2, *train
    )
    prior = 0.01 * sum(jnp.sum(jnp.exp(2 * log)) for log in log_l2)
    loss = elementary.mean_loss(run.params, *validation) + prior
    return loss, {
      "train": elementary.mean_loss(run.params, *train)
      + _penalty(log_l2, run.params),
      "validation": loss,
      "test": elementary.mean_loss(run.params, *test),
      "params": run.params,
    }

  initial = np.log(0.01) + 1
  log_l2 = [jnp.full(shape, initial, jnp.float32) for shape in shapes]
  metrics = []
  for number, used, about in _descend(
    objective, log_l2, 1000.0, meta_steps, "figure 8"
  ):
    learned = jax.tree.map(np.asarray, (used[0], about.pop("params")[0]))
    row = {name: float(value) for name, value in about.items()}
    metrics.append({"meta_step": number, **row})
  table = _ends(
    metrics,
    {
      "train": (0.91, 0.51),
      "validation": (0.76, 0.425),
      "test": (0.705, 0.45),
    },
    "learning penalties",
  )
  penalties = np.exp(learned[0])
  table += [
    Row(
      "penalties",
      "penalties learned",
      "7840 (text), 7850 (code)",
      sum(int(np.prod(shape)) for shape in shapes),
    ),
    Row("smallest_penalty", "smallest L2 of a pixel", None, penalties.min()),
    Row("largest_penalty", "largest L2 of a pixel", None, penalties.max()),
  ]
  figures = {
    "figure_8": plots.class_images(
      penalties, mean.shape, "Learned L2 penalty of each pixel", "L2 penalty"
    ),
    "weights": plots.class_images(
      learned[1], mean.shape, "Weights trained with them", "weight"
    ),
    "meta_training": plots.meta_curves(
      metrics, table, "Learning a penalty for every weight"
    ),
  }
  notes += [
    "The paper's values are read off plots; 'train' includes the penalty and "
    "'validation' the prior 0.01 sum L2^2, as in the authors' code.",
    mean_note(len(train[1])),
  ]
  return Outcome(table, metrics, figures, notes)


# Figure 9: ten training images, learned.


class Fake(NamedTuple):
  """What figure 9 learns."""

  log_l2: jax.Array
  images: jax.Array  # [classes, pixels]


def figure_9(config: Config) -> Outcome:
  """Learns images on which training is good for real ones."""
  steps, meta_steps = config.steps or 20, config.meta_steps or 40
  data = image_data.load(config.dataset, config.data_dir)
  images, labels = whole(data)
  mean = images.mean(0)
  if config.dataset == "digits":  # keep them apart: train is not used
    images, labels = images[:1197], labels[:1197]
  validation = centred(mean, images[:10_000], labels[:10_000])
  test = centred(mean, data.test_images[:1000], data.test_labels[:1000])
  classes = int(labels.max()) + 1
  shapes = elementary.array_shapes((mean.size, classes))
  # The authors seed both draws with 0.
  fake = np.random.RandomState(config.seed).randn(classes, mean.size) * 0.01
  start = normal_arrays(np.random.RandomState(config.seed), shapes, -4.0)
  params = [jnp.asarray(array, jnp.float32) for array in start]
  fake_labels = jnp.arange(classes)
  deviation = float(np.std(validation[0]))

  def fake_loss(params, step, fake):
    del step
    loss = elementary.mean_loss(params, fake.images, fake_labels)
    return loss + _penalty([fake.log_l2] * 2, params)

  def objective(fake):
    run = revmom.train(
      fake_loss, inner_optimizer(), params, lambda t: t, fake, num_steps=steps
    )
    loss = elementary.mean_loss(run.params, *validation)
    return loss, {
      "train": fake_loss(run.params, 0, fake),
      "validation": loss,
      "test": elementary.mean_loss(run.params, *test),
      "l2": jnp.exp(fake.log_l2),
      "scale": jnp.std(fake.images) / deviation,
    }

  hypers = Fake(
    jnp.asarray(np.log(0.01), jnp.float32), jnp.asarray(fake, jnp.float32)
  )
  metrics = []
  for number, used, about in _descend(
    objective, hypers, 1.0, meta_steps, "figure 9"
  ):
    learned = np.asarray(used.images)
    row = {name: float(value) for name, value in about.items()}
    metrics.append({"meta_step": number, **row})
  table = _ends(
    metrics,
    {"train": (2.25, 0.74), "validation": (2.3, 0.43), "test": (2.3, 0.50)},
    "learning the images",
  )
  table.append(
    Row("l2", "L2 penalty learned with them", None, metrics[-1]["l2"])
  )
  figures = {
    "figure_9": plots.class_images(
      learned.T,
      mean.shape,
      "Learned training images, one for each class",
      "pixel, less the mean image",
    ),
    "meta_training": plots.meta_curves(
      metrics, table, "Learning the training images"
    ),
  }
  notes = [
    "'train' is the loss on the learned images with their penalty.",
    "The text has blank first images; the code, and this, 0.01 N(0, 1).",
    mean_note(len(labels)),
  ]
  if config.dataset == "digits":
    notes.append("The digits stand in for MNIST: compare shapes only.")
  return Outcome(table, metrics, figures, notes)
