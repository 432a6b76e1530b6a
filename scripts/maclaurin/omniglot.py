"""Drawings of characters: Omniglot's zip files, and digits in their place."""

import io
import pathlib
import zipfile
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from PIL import Image

from shared.user_files import blamed

TASKS = 5
CHARACTERS = 15  # of an alphabet, to be fast
_SIDE, _DRAWINGS = 28, 15


class Drawings(NamedTuple):
  """Several drawings of each character of each task, ink being 1."""

  images: np.ndarray  # float [tasks, characters, drawings, pixels]
  characters: np.ndarray  # int [tasks]; a task has no more, the rest is 0


def load(
  data_dir: str | None,
  alphabets: Sequence[str] | None = None,
  characters: int = CHARACTERS,
) -> tuple[list[str], Drawings]:
  """Reads five alphabets from the zip files of a folder.

  Args:
    data_dir: folder of images_background.zip, images_evaluation.zip,
      images_background_small1.zip or others of Omniglot.
    alphabets: five names; by default the first five of the first zip file
      that has as many.
    characters: of each alphabet, at most; the first ones.

  Raises:
    ValueError: no folder is given, or an alphabet is missing or incomplete.
    FileNotFoundError: the folder has no zip file.
  """
  if data_dir is None:
    raise ValueError(
      "--dataset=omniglot needs --data_dir, a folder of Omniglot's zip files "
      "(images_background_small1.zip and so on)."
    )
  paths = sorted(pathlib.Path(data_dir).glob("*.zip"))
  if not paths:
    raise FileNotFoundError(f"--data_dir={data_dir} holds no zip file.")
  found: dict[str, tuple[pathlib.Path, dict[str, list[str]]]] = {}
  for path in paths:
    for name, members in _members(path).items():
      found.setdefault(name, (path, members))
    if alphabets is None and len(found) >= TASKS:
      break
  chosen = alphabets or sorted(found)[:TASKS]
  missing = sorted(set(chosen) - set(found))
  if missing or len(set(chosen)) != TASKS:
    raise ValueError(
      f"figure 10 takes {TASKS} alphabets, but got {', '.join(chosen)}; "
      f"{data_dir} has {', '.join(sorted(found))}."
    )
  return list(chosen), _stack(
    [_read(*found[name], characters) for name in chosen]
  )


def _members(path: pathlib.Path) -> dict[str, dict[str, list[str]]]:
  """Alphabet -> character -> the names of its drawings."""
  alphabets: dict[str, dict[str, list[str]]] = {}
  with blamed(str(path)), zipfile.ZipFile(path) as archive:
    for name in sorted(archive.namelist()):
      parts = pathlib.PurePosixPath(name).parts
      if name.endswith(".png") and len(parts) >= 3:
        characters = alphabets.setdefault(parts[-3], {})
        characters.setdefault(parts[-2], []).append(name)
  return alphabets


def _read(
  path: pathlib.Path, members: dict[str, list[str]], count: int
) -> np.ndarray:
  """[characters, drawings, pixels]."""
  with blamed(str(path)), zipfile.ZipFile(path) as archive:
    rows = []
    for character, names in sorted(members.items())[:count]:
      if len(names) < _DRAWINGS:
        raise ValueError(
          f"{path}: {character} has {len(names)} drawings; {_DRAWINGS} are "
          "needed."
        )
      rows.append([_drawing(archive.read(n)) for n in names[:_DRAWINGS]])
  return np.array(rows)


def _drawing(content: bytes) -> np.ndarray:
  image = Image.open(io.BytesIO(content)).convert("L")
  small = image.resize((_SIDE, _SIDE), Image.Resampling.BOX)
  return 1 - np.asarray(small, np.float32).ravel() / 255


def _stack(alphabets: list[np.ndarray]) -> Drawings:
  """Pads the alphabets to the same number of characters."""
  counts = np.array([len(images) for images in alphabets])
  images = np.zeros((len(counts), counts.max(), *alphabets[0].shape[1:]))
  for padded, alphabet in zip(images, alphabets, strict=True):
    padded[: len(alphabet)] = alphabet
  return Drawings(images, counts)


def digit_tasks(rng: np.random.Generator) -> Drawings:
  """Groups of different digits, with classes in another order in each."""
  from sklearn.datasets import load_digits

  digits = load_digits()
  tasks = np.zeros((TASKS, 10, _DRAWINGS, digits.data.shape[1]))
  orders = np.array([rng.permutation(10) for _ in range(TASKS)])
  for label in range(10):
    own = rng.permutation(digits.data[digits.target == label] / 16)
    groups = own[: TASKS * _DRAWINGS].reshape(TASKS, _DRAWINGS, -1)
    tasks[np.arange(TASKS), orders[:, label]] = groups
  return Drawings(tasks, np.full(TASKS, 10))


def with_turned(drawings: Drawings) -> Drawings:
  """The tasks, and after them the same with images turned by 90 degrees."""
  side = int(np.sqrt(drawings.images.shape[-1]))
  square = drawings.images.reshape(*drawings.images.shape[:-1], side, side)
  turned = np.rot90(square, axes=(-2, -1)).reshape(drawings.images.shape)
  return Drawings(
    np.concatenate([drawings.images, turned]),
    np.concatenate([drawings.characters] * 2),
  )


def mean_image(drawings: Drawings) -> np.ndarray:
  """Of all drawings of all tasks, without the padding."""
  count = drawings.characters.sum() * drawings.images.shape[2]
  return drawings.images.sum((0, 1, 2)) / count
