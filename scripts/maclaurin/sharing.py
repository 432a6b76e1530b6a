"""Figure 10 of the paper and its table: how much ten tasks share."""

import pathlib
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax import lax

import revmom
from maclaurin import omniglot, plots
from maclaurin.common import META_REMEDY, Config, inner_optimizer
from schedules import elementary
from shared import meta_training
from shared.checkpointing import Checkpoints
from shared.progress_bar import progress
from shared.reproduction import Outcome, Row
from shared.runs import check_finite

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


def figure_10(config: Config, path: pathlib.Path | None = None) -> Outcome:
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
    for shape in elementary.array_shapes((pixels, *_TASK_HIDDEN, outputs))
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
      inner_optimizer(),
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
  with Checkpoints(path, config, drawings.images) as checkpoints:
    learned, rows = checkpoints.resume(
      as_transforms([0.5] * layers),
      lambda number, _: meta_training.check_number(
        checkpoints, number, meta_steps
      ),
    )
    metrics = rows or []
    numbers = range(len(metrics), meta_steps)
    for number in progress(numbers, desc="figure 10"):
      rng = np.random.default_rng([config.seed, number])
      inner = map(examples, partition(rng, train, [10, 2]))
      (loss, fitted), gradient = meta_gradient(learned, draw(rng), *inner)
      check_finite(f"meta iteration {number}", (loss, gradient), META_REMEDY)
      metrics.append(
        {
          "meta_step": number,
          "train": float(fitted),
          "validation": float(loss),
          "hypergradient_norm": float(optax.global_norm(gradient)),
        }
      )
      learned = jax.tree.map(lambda t, g: t - 0.2 * g, learned, gradient)
      checkpoints.save(len(metrics), learned, metrics)
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
    check_finite(f"the loss of {name} networks", losses, META_REMEDY)
    for kind, published, loss in zip(
      ("train", "test"), _PUBLISHED_SHARING[name], losses, strict=True
    ):
      text = f"{kind} loss, {name}" + " first layer" * (name == "tied")
      table.append(Row(f"{kind}_{name}", text, published, float(loss)))
  figures = {
    "figure_10": plots.sharing(
      {k: [np.asarray(t) for t in v] for k, v in variants.items()},
      {row.key: row.measured for row in table},
    ),
    "tasks": plots.task_images(drawings.images),
  }
  return Outcome(table, metrics, figures, notes)


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
