"""Text for language models: Python's own reference, a file, or a corpus.

A folder with a corpus has one file each for training, validation and tests,
told apart by "train", "valid" and "test" in their names, as WikiText-2 has
them (wiki.train.tokens and so on).  Any other text is cut into consecutive
parts of 90 %, 5 % and 5 %.
"""

import collections
import pathlib
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

LEVELS = ("character", "word")
_PARTS = ("train", "valid", "test")
_UNKNOWN = {"character": "\N{REPLACEMENT CHARACTER}", "word": "<unk>"}
_END_OF_LINE = "<eos>"


class Part(NamedTuple):
  """A consecutive piece of text."""

  tokens: np.ndarray  # int32 [N]
  characters: int  # that the tokens stand for


class Corpus(NamedTuple):
  """Text for training, validation and tests, as numbers."""

  vocabulary: tuple[str, ...]
  train: Part
  validation: Part
  test: Part


def default_text() -> str:
  """English that comes with Python: its language reference, tables left out."""
  from pydoc_data.topics import topics

  lines = "\n".join(topics[name] for name in sorted(topics)).splitlines()
  prose = [
    line
    for line in lines
    if any(map(str.isalpha, line)) and not line.lstrip().startswith(("|", "+"))
  ]
  return " ".join(" ".join(prose).split())


def read_text(path: str | None) -> str:
  """The text of a file; None is the default.

  Raises:
    OSError: it can't be read.
    ValueError: it is not UTF-8.
  """
  if path is None:
    return default_text()
  return _read(pathlib.Path(path), f"--text={path}")


def load(text: str | None, data_dir: str | None, level: str) -> Corpus:
  """Reads a corpus.

  Args:
    text: --text, a file; None is the default text.
    data_dir: --data_dir, a folder with three files; None is none.
    level: "character" or "word", which is anything between white space; a
      line then ends in a token of its own.

  Returns:
    `Corpus`.  What training has only once, or never, is the same unknown
    token, unless the training text has unknown tokens itself.

  Raises:
    OSError: a file can't be read.
    ValueError: both are given, the folder does not hold one file for each
      part, or a part is empty.
  """
  if text is not None and data_dir is not None:
    raise ValueError(
      f"--text={text} and --data_dir={data_dir}: give one file, or a folder "
      "with files for training, validation and tests."
    )
  parts = _cut(read_text(text)) if data_dir is None else _folder(data_dir)
  if not all(parts):
    raise ValueError(
      f"{text or data_dir} has too little text: {[*map(len, parts)]} "
      "characters for training, validation and tests."
    )
  train, *held_out = (_split(part, level) for part in parts)
  vocabulary = _vocabulary(train, _UNKNOWN[level])
  numbers = {token: number for number, token in enumerate(vocabulary)}
  encoded = [
    Part(
      np.array([numbers.get(token, 0) for token in tokens], np.int32),
      len(part),
    )
    for tokens, part in zip((train, *held_out), parts, strict=True)
  ]
  return Corpus(vocabulary, *encoded)


def join(tokens: Sequence[str], level: str) -> str:
  """The text that tokens stand for."""
  if level == "character":
    return "".join(tokens)
  return (
    " ".join(tokens)
    .replace(f"{_END_OF_LINE} ", "\n")
    .removesuffix(_END_OF_LINE)
  )


def _read(path: pathlib.Path, name: str) -> str:
  try:
    return path.read_text(encoding="utf-8")
  except UnicodeDecodeError as error:
    raise ValueError(f"{name} is not UTF-8: {error}.") from error


def _cut(text: str) -> list[str]:
  ends = len(text) * 90 // 100, len(text) * 95 // 100
  return [text[: ends[0]], text[ends[0] : ends[1]], text[ends[1] :]]


def _folder(data_dir: str) -> list[str]:
  folder = pathlib.Path(data_dir)
  if not folder.is_dir():
    raise ValueError(f"--data_dir={folder} is not a folder.")
  return [_of_part(folder, part) for part in _PARTS]


def _of_part(folder: pathlib.Path, part: str) -> str:
  paths = sorted(path for path in folder.glob(f"*{part}*") if path.is_file())
  if len(paths) != 1:
    names = ", ".join(path.name for path in paths) or "none"
    raise ValueError(
      f"--data_dir={folder} must have one file with {part!r} in its name; it "
      f"has {names}.  A single file goes with --text."
    )
  return _read(paths[0], str(paths[0]))


def _split(text: str, level: str) -> list[str]:
  if level == "character":
    return list(text)
  return [
    token
    for line in text.splitlines()
    for token in (*line.split(), _END_OF_LINE)
  ]


def _vocabulary(tokens: list[str], unknown: str) -> tuple[str, ...]:
  """The unknown token, and all others that training has."""
  counts = collections.Counter(tokens)
  least = 1 if unknown in counts else 2
  known = {token for token, count in counts.items() if count >= least}
  return (unknown, *sorted(known - {unknown}))
