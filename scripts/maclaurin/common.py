"""What the figures of Maclaurin, Duvenaud & Adams (2015) share."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

import revmom
from shared import image_data
from shared.settings import flag

# The authors' momenta are fractions n / 2^16, rounded up.
DENOMINATOR = 65536
GRID_REMEDY = "a value left its grid or the training diverged."
META_REMEDY = "take fewer --meta_steps; the step sizes are the paper's."


@dataclasses.dataclass(frozen=True)
class Config:
  """One figure; None is the value of the paper."""

  figure: str = flag(
    "11",
    "Of the paper; 2 stands for 2, 3, 4, 6 and 7 too.",
    choices=["1", "2", "5", "8", "9", "10", "11"],
  )
  dataset: str = flag(
    "digits",
    "Images; all but digits in --data_dir.  omniglot is for figure 10.",
    choices=[*image_data.NAMES, "omniglot"],
  )
  data_dir: str | None = flag(
    None, "Folder of idx files, or of Omniglot's zip files.", may_change=True
  )
  alphabets: tuple[str, ...] | None = flag(
    None, "Five alphabets of Omniglot; by default the first five."
  )
  characters: int | None = flag(
    None,
    "Characters of each alphabet, at most; by default 15, while the paper "
    "takes all.",
    at_least=2,
  )
  steps: int | None = flag(
    None,
    "SGD steps of a training run; by default the paper's 100 (figures 2 and "
    "5), 20 (figure 9) or 50.",
    at_least=1,
  )
  meta_steps: int | None = flag(
    None,
    "Meta iterations; by default the paper's 3 (figure 1), 50 (2 and 8), 40 "
    "(9) or 20 (10).",
    at_least=1,
    may_change=True,
  )
  seeds: int | None = flag(None, "Of figure 5; by default 50.", at_least=2)
  points: int | None = flag(
    None,
    "Learning rates of figure 11, evenly spaced among the authors' 1000, "
    "besides the 8 in the table; by default 41.",
    at_least=2,
    at_most=1000,
  )
  seed: int = flag(0, "Of weights, batches and splits.")


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
