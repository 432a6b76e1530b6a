"""Figures of the paper whose hyperparameters are in the loss.

A penalty for every weight, the training images themselves, and how tasks share
their weights.
"""

from typing import Any, NamedTuple

import datasets
import experiment
import jax
import jax.numpy as jnp
import maclaurin_figures
import numpy as np
import omniglot
import optax
import schedules
from jax import lax
from maclaurin_shared import (
  Config,
  Outcome,
  Row,
  centred,
  check_finite,
  mean_note,
  normal_arrays,
  split,
  whole,
)
from tqdm import tqdm

import revmom

_REMEDY = "take fewer --meta_steps; the step sizes are the paper's."


def _optimizer() -> Any:
  """All these figures train with rate 1 and momentum 0.9."""
  return revmom.sgd(1.0, 0.9, form="ema")


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

  for number in tqdm(range(steps), desc=name, disable=None):
    after, gradient, about = step(hypers)
    check_finite(f"meta iteration {number}", (gradient, about), _REMEDY)
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
  shapes = schedules.array_shapes((mean.size, int(data.train_labels.max()) + 1))
  draws = np.random.RandomState(config.seed)
  start = normal_arrays(draws, shapes, -4.0)
  params = [jnp.asarray(array, jnp.float32) for array in start]
  size = min(200, len(train[1]))
  usable = len(train[1]) // size * size
  starts = jnp.arange(steps) * size % usable

  def batch_loss(params, start, log_l2, images, labels):
    cut = lambda a: lax.dynamic_slice_in_dim(a, start, size)
    loss = schedules.mean_loss(params, cut(images), cut(labels))
    return loss + _penalty(log_l2, params)

  def objective(log_l2):
    run = revmom.train(batch_loss, _optimizer(), params, starts, log_l2, *train)
    prior = 0.01 * sum(jnp.sum(jnp.exp(2 * log)) for log in log_l2)
    loss = schedules.mean_loss(run.params, *validation) + prior
    return loss, {
      "train": schedules.mean_loss(run.params, *train)
      + _penalty(log_l2, run.params),
      "validation": loss,
      "test": schedules.mean_loss(run.params, *test),
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
    "figure_8": maclaurin_figures.class_images(
      penalties, mean.shape, "Learned L2 penalty of each pixel", "L2 penalty"
    ),
    "weights": maclaurin_figures.class_images(
      learned[1], mean.shape, "Weights trained with them", "weight"
    ),
    "meta_training": maclaurin_figures.meta_curves(
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
  data = datasets.load(config.dataset, config.data_dir)
  images, labels = whole(data)
  mean = images.mean(0)
  if config.dataset == "digits":  # keep them apart: train is not used
    images, labels = images[:1197], labels[:1197]
  validation = centred(mean, images[:10_000], labels[:10_000])
  test = centred(mean, data.test_images[:1000], data.test_labels[:1000])
  classes = int(labels.max()) + 1
  shapes = schedules.array_shapes((mean.size, classes))
  # The authors seed both draws with 0.
  fake = np.random.RandomState(config.seed).randn(classes, mean.size) * 0.01
  start = normal_arrays(np.random.RandomState(config.seed), shapes, -4.0)
  params = [jnp.asarray(array, jnp.float32) for array in start]
  fake_labels = jnp.arange(classes)
  deviation = float(np.std(validation[0]))

  def fake_loss(params, step, fake):
    del step
    loss = schedules.mean_loss(params, fake.images, fake_labels)
    return loss + _penalty([fake.log_l2] * 2, params)

  def objective(fake):
    run = revmom.train(
      fake_loss, _optimizer(), params, lambda t: t, fake, num_steps=steps
    )
    loss = schedules.mean_loss(run.params, *validation)
    return loss, {
      "train": fake_loss(run.params, 0, fake),
      "validation": loss,
      "test": schedules.mean_loss(run.params, *test),
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
    "figure_9": maclaurin_figures.class_images(
      learned.T,
      mean.shape,
      "Learned training images, one for each class",
      "pixel, less the mean image",
    ),
    "meta_training": maclaurin_figures.meta_curves(
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


# Figure 10 and its table: how much ten tasks share.

_TASK_HIDDEN = 400, 200
_PUBLISHED_SHARING = {
  "separate": (0.61, 1.34),
  "tied": (0.90, 1.25),
  "learned": (0.60, 1.13),
}


class Examples(NamedTuple):
  """Examples of all tasks; what pads a task has weight 0."""

  images: jax.Array  # [tasks, examples, pixels]
  labels: jax.Array  # [tasks, examples]
  weights: jax.Array  # [tasks, examples], 1 / number of the task's examples


def partition(
  rng: np.random.Generator, drawings: omniglot.Drawings, counts: list[int]
) -> list[omniglot.Drawings]:
  """Deals each character's drawings at random."""
  shape = drawings.images.shape[:3]
  order = rng.permuted(np.broadcast_to(np.arange(shape[2]), shape), axis=2)
  dealt = np.take_along_axis(drawings.images, order[..., None], 2)
  ends = np.cumsum(counts)
  return [
    drawings._replace(images=dealt[:, :, start:end])
    for start, end in zip([0, *ends[:-1]], ends, strict=True)
  ]


def examples(drawings: omniglot.Drawings) -> Examples:
  """A row for every drawing."""
  tasks, characters, count, pixels = drawings.images.shape
  labels = np.repeat(np.arange(characters), count)
  there = np.arange(characters) < drawings.characters[:, None]
  weights = np.repeat(there / (drawings.characters[:, None] * count), count, 1)
  return Examples(
    jnp.asarray(
      drawings.images.reshape(tasks, characters * count, pixels), jnp.float32
    ),
    jnp.asarray(np.broadcast_to(labels, (tasks, labels.size)), jnp.int32),
    jnp.asarray(weights, jnp.float32),
  )


def shared_weights(transforms: list, z: list) -> list:
  """w_l = T_l z_l, for the weights and the biases of each layer."""
  return [
    jnp.tensordot(transforms[i // 2], array, 1) for i, array in enumerate(z)
  ]


def task_losses(transforms: list, z: list, data: Examples) -> jax.Array:
  """The sum of the tasks' mean losses."""

  def one(task):
    (*hidden, (weights, biases)), data = task
    x = data.images
    for w, b in hidden:
      x = jnp.tanh(x @ w + b)
    losses = optax.softmax_cross_entropy_with_integer_labels(
      x @ weights + biases, data.labels
    )
    return jnp.sum(data.weights * losses)

  params = shared_weights(transforms, z)
  layers = list(zip(params[0::2], params[1::2], strict=True))
  # A task at a time: CPUs multiply single matrices faster than batches.
  return jnp.sum(lax.map(one, (layers, data)))


def transform(tasks: int, sharing: float) -> np.ndarray:
  """(1 - s) I + (s / tasks) 1 1^T."""
  everyone = np.full((tasks, tasks), sharing / tasks)
  return (1 - sharing) * np.eye(tasks) + everyone


def figure_10(config: Config) -> Outcome:
  """Learns, layer by layer, how networks of ten alphabets share weights."""
  steps, meta_steps = config.steps or 50, config.meta_steps or 20
  rng = np.random.default_rng(config.seed)
  drawings, outputs, notes = _tasks(config, rng)
  tasks, _, _, pixels = drawings.images.shape
  drawings = drawings._replace(
    images=drawings.images - omniglot.mean_image(drawings)
  )
  train, test = partition(rng, drawings, [12, 3])
  shapes = [
    (tasks, *shape)
    for shape in schedules.array_shapes((pixels, *_TASK_HIDDEN, outputs))
  ]

  def draw(rng):
    return [
      jnp.asarray(np.exp(-2.0) * rng.standard_normal(shape, np.float32))
      for shape in shapes
    ]

  def step_loss(z, step, transforms, data):
    del step
    penalty = sum(jnp.sum(array**2) for array in z)
    return task_losses(transforms, z, data) + np.exp(-4.0) * penalty

  def trained(transforms, z, data):
    return revmom.train(
      step_loss,
      _optimizer(),
      z,
      lambda t: t,
      transforms,
      data,
      num_steps=steps,
    ).params

  @jax.jit
  def meta_gradient(transforms, z, data, held_out):
    def objective(transforms):
      after = trained(transforms, z, data)
      return (
        task_losses(transforms, after, held_out) / tasks,
        task_losses(transforms, after, data) / tasks,
      )

    return jax.value_and_grad(objective, has_aux=True)(transforms)

  @jax.jit
  def evaluate(transforms, z, data, held_out):
    after = trained(transforms, z, data)
    both = (
      task_losses(transforms, after, data),
      task_losses(transforms, after, held_out),
    )
    return jnp.stack(both) / tasks

  layers = len(shapes) // 2
  as_transforms = lambda sharing: [
    jnp.asarray(transform(tasks, s), jnp.float32) for s in sharing
  ]
  checkpoints = _Checkpoints(config)
  learned, metrics = checkpoints.latest(as_transforms([0.5] * layers))
  numbers = range(len(metrics), meta_steps)
  for number in tqdm(numbers, desc="figure 10", disable=None):
    rng = np.random.default_rng([config.seed, number])
    inner = map(examples, partition(rng, train, [10, 2]))
    (loss, fitted), gradient = meta_gradient(learned, draw(rng), *inner)
    check_finite(f"meta iteration {number}", (loss, gradient), _REMEDY)
    metrics.append(
      {
        "meta_step": number,
        "train": float(fitted),
        "validation": float(loss),
        "hypergradient_norm": float(optax.global_norm(gradient)),
      }
    )
    learned = jax.tree.map(lambda t, g: t - 0.2 * g, learned, gradient)
    checkpoints.save(learned, metrics)
  variants = {
    "separate": as_transforms([0.0] * layers),
    "tied": as_transforms([1.0] + [0.0] * (layers - 1)),
    "learned": learned,
  }
  rng = np.random.default_rng([config.seed, 2**32 - 1])
  z, parts = draw(rng), (examples(train), examples(test))
  table = []
  for name, transforms in variants.items():
    losses = evaluate(transforms, z, *parts)
    check_finite(f"the loss of {name} networks", losses, _REMEDY)
    for kind, published, loss in zip(
      ("train", "test"), _PUBLISHED_SHARING[name], losses, strict=True
    ):
      text = f"{kind} loss, {name}" + " first layer" * (name == "tied")
      table.append(Row(f"{kind}_{name}", text, published, float(loss)))
  figures = {
    "figure_10": maclaurin_figures.sharing(
      {k: [np.asarray(t) for t in v] for k, v in variants.items()},
      {row.key: row.measured for row in table},
    ),
    "tasks": maclaurin_figures.task_images(drawings.images),
  }
  return Outcome(table, metrics, figures, notes)


class _Checkpoints:
  """Of the transforms and metrics of figure 10, if there is a workdir."""

  def __init__(self, config: Config):
    self.config, self.manager = config, None
    path = experiment.folder(config.workdir)
    if path is not None:
      local = "workdir", "data_dir", "meta_steps"
      self.manager = experiment.Checkpoints(path, config, local)

  def latest(self, start: list) -> tuple[list, list[dict]]:
    """The last saved ones, or the start.

    Raises:
      ValueError: they belong to other flags, or are beyond --meta_steps.
    """
    found = None if self.manager is None else self.manager.latest()
    if self.manager is None or found is None:
      return start, []
    number, saved = found
    if number > (self.config.meta_steps or 20):
      raise ValueError(
        f"{self.config.workdir} holds {number} meta iterations; raise "
        "--meta_steps, or give another --workdir."
      )
    return self.manager.restore(number, start), saved["about"]

  def save(self, transforms: list, metrics: list[dict]) -> None:
    if self.manager is not None:
      self.manager.save(len(metrics), transforms, metrics)


def _tasks(
  config: Config, rng: np.random.Generator
) -> tuple[omniglot.Drawings, int, list[str]]:
  """Five tasks and the same turned by 90 degrees, the outputs, and notes."""
  if config.dataset == "omniglot":
    names, drawings = omniglot.load(
      config.data_dir,
      config.alphabets,
      config.characters or omniglot.CHARACTERS,
    )
    notes = [
      f"Alphabets: {', '.join(names)}, the first 15 drawings of each "
      "character; which five the authors take is not known here.",
      f"Characters of each: {', '.join(map(str, drawings.characters))}; "
      "--characters=55 takes all.",
      "Drawings are averaged from 105 x 105 to 28 x 28 pixels.",
    ]
    outputs = max(55, drawings.images.shape[1])
  else:
    drawings = omniglot.digit_tasks(rng)
    notes = [
      "Without Omniglot the tasks are five groups of different digits, 15 of "
      "each class, the classes of each group in another order, and the same "
      "turned by 90 degrees: compare shapes only.",
    ]
    outputs = 10
  return omniglot.with_turned(drawings), outputs, notes
