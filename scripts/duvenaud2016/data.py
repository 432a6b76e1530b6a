"""Data for early stopping: digits and images like them, houses and patients."""

import pathlib

import numpy as np

from duvenaud2016.training import Examples
from shared import image_data

IMAGES = image_data.NAMES
TABLES = ("diabetes", "housing")
NAMES = (*IMAGES, *TABLES)
_TRAIN, _TEST = 50_000, 10_000  # of the paper's images
_TABLE_FRACTION, _TABLE_SEED = 0.1, 2
_HOUSING_FILES = (
  "housing.data",
  "boston_housing.txt",
  "housing.csv",
  "BostonHousing.csv",
)
_HOUSING_COLUMNS = 14


def images(
  name: str, data_dir: str | None, tests: int = _TEST
) -> tuple[Examples, Examples, list[str]]:
  """Flat images less their mean, and labels.

  As in the authors' code, where the training file is long enough: its first
  50 000 images for training, and for tests those that follow.  A shorter one
  is for training as a whole, with tests from the file of test images.

  Returns:
    Training and test examples, and notes of what differs from the authors'.
  """
  data = image_data.load(name, data_dir)
  train, rest = data.train_images, data.validation_images
  labels, rest_labels = data.train_labels, data.validation_labels
  if name == "digits":
    notes = [
      "The digits of scikit-learn, 1197 to train on, stand in for MNIST: "
      "compare shapes only."
    ]
    rest = np.concatenate([rest, data.test_images])
    rest_labels = np.concatenate([rest_labels, data.test_labels])
  elif len(labels) >= _TRAIN:
    notes = [
      f"The mean of {len(labels)} images is subtracted, the paper's is of "
      "60 000."
    ]
  else:
    train = np.concatenate([train, rest])
    labels = np.concatenate([labels, rest_labels])
    rest, rest_labels = data.test_images, data.test_labels
    notes = [
      f"{len(labels)} training images, the paper has 50 000: what a parameter "
      "costs each of them is larger. Tests are of the test file, the paper's "
      "are further images of the training file."
    ]
  mean = train.mean(0)
  flat = lambda array: (array - mean).reshape(len(array), -1)
  return (
    Examples(flat(train), labels),
    Examples(flat(rest[:tests]), rest_labels[:tests]),
    notes,
  )


def table(
  name: str, data_dir: str | None
) -> tuple[Examples, Examples, float, list[str]]:
  """A regression: a tenth of the rows to train on.

  Split and normalised as the authors' code has it: all features by one mean
  and one standard deviation.

  Returns:
    Training and test examples, the standard deviation that targets were
    divided by, and notes of what differs from the authors'.
  """
  rows, notes = _rows(name, data_dir)
  order = np.random.RandomState(_TABLE_SEED).permutation(len(rows))
  count = round(len(rows) * _TABLE_FRACTION)
  inputs, targets = rows[:, :-1], rows[:, -1]
  chosen = inputs[order[:count]]
  inputs = (inputs - chosen.mean()) / chosen.std()
  mean, scale = targets[order[:count]].mean(), targets[order[:count]].std()
  targets = (targets - mean) / scale

  def part(indices: np.ndarray) -> Examples:
    return Examples(
      inputs[indices].astype(np.float32), targets[indices].astype(np.float32)
    )

  return part(order[:count]), part(order[count:]), float(scale), notes


def _rows(name: str, data_dir: str | None) -> tuple[np.ndarray, list[str]]:
  """A table in float64, the targets in its last column."""
  if name == "diabetes":
    if data_dir is not None:
      raise ValueError(
        f"--data_dir={data_dir} is not read: --dataset=diabetes comes with "
        "scikit-learn. Leave it out, or give --dataset=housing."
      )
    from sklearn.datasets import load_diabetes

    data = load_diabetes()
    return np.column_stack([data.data, data.target]), [
      "The diabetes data of scikit-learn, 442 patients, stand in for the "
      "houses of Boston: settings are the paper's, values don't compare."
    ]
  if data_dir is None:
    raise ValueError(
      "--dataset=housing needs --data_dir, a folder with one of "
      f"{', '.join(_HOUSING_FILES)}."
    )
  folder = pathlib.Path(data_dir)
  for file in _HOUSING_FILES:
    if (folder / file).is_file():
      return read_table(folder / file, _HOUSING_COLUMNS), []
  raise FileNotFoundError(
    f"--data_dir={data_dir} holds none of {', '.join(_HOUSING_FILES)}."
  )


def read_table(path: pathlib.Path, columns: int) -> np.ndarray:
  """Numbers [N, columns], separated by spaces or commas, below any header.

  Raises:
    ValueError: a row has something else.
  """
  rows: list[list[float]] = []
  for line in path.read_text().splitlines():
    words = line.replace(",", " ").replace('"', " ").split()
    if not words:
      continue
    try:
      numbers = [float(word) for word in words]
    except ValueError:
      if rows:
        raise ValueError(f"{path} has a row without numbers: {line}") from None
      continue  # a header
    if len(numbers) != columns:
      raise ValueError(
        f"{path} has {len(numbers)} numbers in a row, expected {columns}, the "
        f"target last: {line}"
      )
    rows.append(numbers)
  if not rows:
    raise ValueError(f"{path} holds no numbers.")
  return np.array(rows)
