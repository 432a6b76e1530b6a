"""What the figures of Maclaurin, Duvenaud & Adams (2015) share."""

import dataclasses
from typing import Any, NamedTuple

from shared import image_data
import jax
import jax.numpy as jnp
import numpy as np
from matplotlib.figure import Figure

import revmom

# The authors' momenta are fractions n / 2^16, rounded up.
DENOMINATOR = 65536
GRID_REMEDY = "a value left its grid or the training diverged."
META_REMEDY = "take fewer --meta_steps; the step sizes are the paper's."


@dataclasses.dataclass(frozen=True)
class Config:
  """One figure; see the flags of the same names.  None is the paper's value."""

  figure: str = "11"
  dataset: str = "digits"
  data_dir: str | None = None
  workdir: str | None = None
  alphabets: list[str] | None = None
  characters: int | None = None
  steps: int | None = None
  meta_steps: int | None = None
  seeds: int | None = None
  points: int | None = None
  seed: int = 0


class Row(NamedTuple):
  """One line of the table."""

  key: str  # in result.json; the paper's value is under published_<key>
  text: str
  published: float | str | None
  measured: float | str


class Outcome(NamedTuple):
  """What a figure leaves behind."""

  table: list[Row]
  metrics: list[dict[str, Any]]
  figures: dict[str, Figure]
  notes: list[str]  # where this is not what the authors did


def check_finite(name: str, values: Any, remedy: str) -> None:
  """Raises FloatingPointError unless all numbers of a tree are finite."""
  for leaf in jax.tree.leaves(values):
    if not np.isfinite(np.asarray(leaf)).all():
      raise FloatingPointError(f"{name} is not finite: {remedy}")


def whole(data: image_data.Data) -> tuple[np.ndarray, np.ndarray]:
  """The images and labels of the training file, in its order."""
  return (
    np.concatenate([data.train_images, data.validation_images]),
    np.concatenate([data.train_labels, data.validation_labels]),
  )


def split(
  config: Config, sizes: tuple[int, int, int]
) -> tuple[image_data.Data, list[str]]:
  """Consecutive slices of the training file, as the authors take them.

  A training file that is too short for all three leaves validation and test
  images to the file of test images.  The digits keep the split of `datasets`.

  Returns:
    The data, and notes of what differs from the authors'.
  """
  data = image_data.load(config.dataset, config.data_dir)
  if config.dataset == "digits":
    parts = [data[i : i + 2] for i in (0, 2, 4)]
    cut = [
      array[:size]
      for part, size in zip(parts, sizes, strict=True)
      for array in part
    ]
    return image_data.Data(*cut), [
      "The digits of scikit-learn stand in for MNIST: compare shapes only."
    ]
  images, labels = whole(data)
  train = min(sizes[0], len(labels))
  ends = np.cumsum([train, *sizes[1:]])
  if ends[-1] <= len(labels):
    slices = [slice(0, ends[0]), *map(slice, ends[:-1], ends[1:])]
    cut = [array[part] for part in slices for array in (images, labels)]
    return image_data.Data(*cut), []
  available = len(data.test_labels)
  test = min(sizes[2], available // 2)
  validation = min(sizes[1], available - test)
  # Spread out: the halves of MNIST's test file differ in difficulty.
  held_out = np.linspace(0, available - 1, test).round().astype(int)
  rest = np.setdiff1d(np.arange(available), held_out)[:validation]
  note = (
    f"The training file has {len(labels)} images: {validation} validation and "
    f"{test} test images come from the test file, while the paper takes "
    "10 000 - 19 999 and those from 20 000 on of the training file."
  )
  return image_data.Data(
    images[:train],
    labels[:train],
    data.test_images[rest],
    data.test_labels[rest],
    data.test_images[held_out],
    data.test_labels[held_out],
  ), [note]


def mean_note(images: int) -> str:
  """The mean image that is subtracted is not the authors'."""
  return (
    f"The mean of {images} training images is subtracted, the paper's is of "
    "60 000."
  )


def centred(
  mean: np.ndarray, images: np.ndarray, labels: np.ndarray
) -> tuple[jax.Array, jax.Array]:
  """Flat images less their mean, and labels."""
  flat = (images - mean).reshape(len(images), -1)
  return jnp.asarray(flat), jnp.asarray(labels)


def normal_arrays(
  draws: np.random.RandomState, shapes: list[tuple[int, ...]], log_scale: float
) -> list[np.ndarray]:
  """The authors' initial weights: one vector for v0 first, times zero."""
  sizes = [int(np.prod(shape)) for shape in shapes]
  draws.randn(sum(sizes))
  vector = draws.randn(sum(sizes)) * np.exp(log_scale)
  pieces = np.split(vector, np.cumsum(sizes)[:-1])
  return [piece.reshape(s) for piece, s in zip(pieces, shapes, strict=True)]


def inner_optimizer() -> Any:
  """Figures 8, 9 and 10 train with rate 1 and momentum 0.9."""
  return revmom.sgd(1.0, 0.9, form="ema")
