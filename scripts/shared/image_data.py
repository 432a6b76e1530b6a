"""Images of digits and of things that are stored like them.

"digits" comes with scikit-learn: 1797 images of 8 x 8.  All other names read
a folder of four idx files with the usual names of MNIST, gzipped or not.
"""

import gzip
import math
import pathlib
import struct
import zlib
from typing import NamedTuple

import numpy as np

IDX = ("mnist", "fashion_mnist", "idx")
NAMES = ("digits", *IDX)
_UNSIGNED_BYTE = 8


class Data(NamedTuple):
  """Images float32 [N, H, W] in [0, 1], and labels int32 [N]."""

  train_images: np.ndarray
  train_labels: np.ndarray
  validation_images: np.ndarray
  validation_labels: np.ndarray
  test_images: np.ndarray
  test_labels: np.ndarray


def load(name: str, data_dir: str | None = None) -> Data:
  """Loads a dataset.

  Args:
    name: "digits", or one of "mnist", "fashion_mnist" and "idx", which only
      differ in what they are called.
    data_dir: folder of the idx files.

  Returns:
    `Data`.  The digits are shuffled, always alike, into 1197 images for
    training, 300 for validation and 300 for tests.  Of idx files the last
    sixth of the training file, at most 10 000 images, is for validation.

  Raises:
    ValueError: an unknown name, a folder that is missing or not needed, or a
      file that is not an idx file of images or labels.
    FileNotFoundError: the folder does not hold the files.
  """
  if name not in NAMES:
    raise ValueError(f"--dataset={name}; choose one of {', '.join(NAMES)}.")
  if name == "digits":
    if data_dir is not None:
      raise ValueError(
        f"--data_dir={data_dir} holds no digits: they come with scikit-learn. "
        "Leave it out, or read idx files with --dataset=mnist."
      )
    return _digits()
  if data_dir is None:
    raise ValueError(
      f"--dataset={name} needs --data_dir, a folder of idx files "
      "(train-images-idx3-ubyte.gz and so on)."
    )
  return _idx(pathlib.Path(data_dir))


def _digits() -> Data:
  from sklearn.datasets import load_digits

  digits = load_digits()
  images = (digits.images / 16).astype(np.float32)
  labels = digits.target.astype(np.int32)
  order = np.random.default_rng(0).permutation(len(labels))
  train, validation, test = np.split(order, [1197, 1497])
  return Data(
    images[train],
    labels[train],
    images[validation],
    labels[validation],
    images[test],
    labels[test],
  )


def _idx(folder: pathlib.Path) -> Data:
  images, labels = _pair(folder, "train")
  test = _pair(folder, "t10k")
  size = len(labels) - min(10_000, len(labels) // 6)
  _check(folder, images, labels[:size], labels[size:], test)
  return Data(images[:size], labels[:size], images[size:], labels[size:], *test)


def _check(
  folder: pathlib.Path,
  images: np.ndarray,
  train: np.ndarray,
  validation: np.ndarray,
  test: tuple[np.ndarray, np.ndarray],
) -> None:
  """Raises ValueError unless there is something to train, choose and test."""
  where = f"--data_dir={folder} has"
  if not len(validation) or not len(test[1]) or not images.size:
    raise ValueError(
      f"{where} {len(images)} training images {images.shape[1:]} and "
      f"{len(test[1])} test images; it needs 6 and 1 at least."
    )
  if test[0].shape[1:] != images.shape[1:]:
    raise ValueError(
      f"{where} test images of shape {test[0].shape[1:]} and training images "
      f"of shape {images.shape[1:]}; they must be the same."
    )
  for name, labels in (("validation", validation), ("test", test[1])):
    if labels.max() > train.max():
      raise ValueError(
        f"{where} a {name} label of {labels.max()}, but the largest that is "
        f"trained is {train.max()}; give files that have the same classes."
      )


def _pair(folder: pathlib.Path, prefix: str) -> tuple[np.ndarray, np.ndarray]:
  images_path = _find(folder, f"{prefix}-images-idx3-ubyte")
  labels_path = _find(folder, f"{prefix}-labels-idx1-ubyte")
  images, labels = read_idx(images_path), read_idx(labels_path)
  if images.ndim != 3 or labels.shape != images.shape[:1]:
    raise ValueError(
      f"{images_path} has shape {images.shape} and {labels_path} has shape "
      f"{labels.shape}; expected images [N, H, W] and labels [N]."
    )
  return images.astype(np.float32) / np.float32(255), labels.astype(np.int32)


def _find(folder: pathlib.Path, name: str) -> pathlib.Path:
  # Some downloads have a dot where others have a dash.
  names = [name, name.replace("-idx", ".idx")]
  names += [f"{plain}.gz" for plain in names]
  for candidate in names:
    if (folder / candidate).is_file():
      return folder / candidate
  if not folder.is_dir():
    raise FileNotFoundError(f"--data_dir={folder} is not a folder.")
  raise FileNotFoundError(
    f"--data_dir={folder} holds no {name} (nor {name}.gz); it needs the four "
    "idx files of MNIST or of a dataset in its format."
  )


def read_idx(path: pathlib.Path) -> np.ndarray:
  """Reads an idx file of bytes, gzipped or not: uint8, any shape.

  The format: two zero bytes, the type, the number of axes, their lengths as
  big-endian 32-bit integers, then the bytes.
  """
  content = path.read_bytes()
  if content[:2] == b"\x1f\x8b":
    try:
      content = gzip.decompress(content)
    except (EOFError, OSError, MemoryError, zlib.error) as error:
      raise ValueError(f"{path} is a damaged gzip file: {error}.") from error
  start = 4 + 4 * content[3] if len(content) > 3 else 4
  if (
    len(content) < start
    or content[:2] != b"\0\0"
    or content[2] != _UNSIGNED_BYTE
  ):
    raise ValueError(f"{path} is not an idx file of unsigned bytes.")
  shape = struct.unpack(f">{content[3]}I", content[4:start])
  if len(shape) > 3:
    raise ValueError(f"{path} has {len(shape)} axes; expected at most 3.")
  values = np.frombuffer(content, np.uint8, offset=start)
  if values.size != math.prod(shape):
    raise ValueError(
      f"{path} should hold {shape} bytes, but has {values.size}; it may be cut "
      "short."
    )
  return values.reshape(shape)
