"""The folder of --workdir, and the files that a program leaves there."""

import csv
import fcntl
import io
import json
import math
import os
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any


def folder(workdir: str | None) -> pathlib.Path | None:
  """The folder of --workdir, made if it is missing, for this process alone.

  The result of an earlier run is removed, unless there are checkpoints:
  `Checkpoints` removes it when it is known that they belong to this run.

  Raises:
    ValueError: the name is empty, or another process uses the folder.
  """
  if workdir is None:
    return None
  if not workdir:
    raise ValueError("--workdir= names no folder; give one, or leave it out.")
  path = pathlib.Path(workdir).absolute()
  path.mkdir(parents=True, exist_ok=True)
  _lock(path)
  if not (path / "checkpoint").exists():
    (path / "result.json").unlink(missing_ok=True)
  return path


_LOCKS: dict[pathlib.Path, int] = {}  # open files, until the process ends


def _lock(path: pathlib.Path) -> None:
  """Keeps other processes out; the system drops the lock of a dead one."""
  if path in _LOCKS:
    return
  file = os.open(path / ".lock", os.O_RDWR | os.O_CREAT)
  try:
    fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
  except BlockingIOError as error:
    os.close(file)
    raise ValueError(
      f"--workdir={path} is in use by another process; wait until it ends, or "
      "give another --workdir."
    ) from error
  _LOCKS[path] = file


def write_text(path: pathlib.Path, text: str) -> None:
  """Replaces a file, so that it is never half written."""
  temporary = path.with_name(path.name + ".tmp")
  temporary.write_text(text)
  os.replace(temporary, path)


def write_json(path: pathlib.Path, result: Any) -> None:
  """Replaces a file by what JSON makes of the result.

  Raises:
    ValueError: a number is not finite, which JSON can't hold.
  """
  write_text(path, _json(path, result))


def _json(path: pathlib.Path, result: Any) -> str:
  try:
    return json.dumps(result, indent=2, allow_nan=False) + "\n"
  except ValueError as error:
    raise ValueError(
      f"{path} is not written: {', '.join(_not_finite('', result)) or error} "
      "is not finite."
    ) from error


def _not_finite(name: str, value: Any) -> list[str]:
  """The places of numbers that are not."""
  if isinstance(value, Mapping):
    parts = [(f"{name}.{key}".lstrip("."), v) for key, v in value.items()]
  elif isinstance(value, list | tuple):
    parts = [(f"{name}[{i}]", v) for i, v in enumerate(value)]
  else:
    bad = isinstance(value, float) and not math.isfinite(value)
    return [f"{name}={value}"] if bad else []
  return [place for part in parts for place in _not_finite(*part)]


def write_csv(path: pathlib.Path, rows: Sequence[Mapping[str, Any]]) -> None:
  """Replaces a file by a table of all rows; what one lacks stays empty."""
  names = list(dict.fromkeys(name for row in rows for name in row))
  text = io.StringIO()
  writer = csv.DictWriter(text, names, lineterminator="\n")
  writer.writeheader()
  writer.writerows(rows)
  write_text(path, text.getvalue())


def write_results(
  workdir: pathlib.Path,
  rows: Sequence[Mapping[str, Any]],
  figures: Mapping[str, Any],
  result: Mapping[str, Any],
) -> None:
  """metrics.csv (of any rows), a PNG of each figure, and result.json last.

  So there is no result.json unless all else is there.

  Raises:
    ValueError: a number of the result is not finite; nothing is written.
  """
  text = _json(workdir / "result.json", result)
  (workdir / "result.json").unlink(missing_ok=True)
  if rows:
    write_csv(workdir / "metrics.csv", rows)
  for name, figure in figures.items():
    figure.savefig(workdir / f"{name}.png", dpi=150)
  write_text(workdir / "result.json", text)
