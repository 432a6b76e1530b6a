"""Files that users bring: their errors in one line, their code as a module."""

import hashlib
import importlib.util
import pathlib
import sys
import traceback
from types import ModuleType, TracebackType


class blamed:
  """Any error within becomes a ValueError of one line that names its place."""

  def __init__(self, what: str, path: pathlib.Path | None = None):
    """`what` is to blame; `path` is the file whose lines are of interest."""
    self.what, self.path = what, path

  def __enter__(self) -> None:
    pass

  def __exit__(
    self,
    kind: type[BaseException] | None,
    error: BaseException | None,
    trace: TracebackType | None,
  ) -> None:
    # A file that calls sys.exit must not end the script in silence.
    if not isinstance(error, Exception | SystemExit):
      return
    lines = [
      frame.lineno
      for frame in traceback.extract_tb(trace)
      if frame.filename == str(self.path)
    ]
    where = f" in line {lines[-1]}" if lines else ""
    text = str(error).strip().split("\n", 1)[0]
    raise ValueError(
      f"{self.what} raised {type(error).__name__}{where}: {text}"
    ) from error


def load(name: str, path: pathlib.Path, what: str) -> ModuleType:
  """A Python file as a module, which can import its neighbours.

  Raises:
    ValueError: it is no such file, or it does not run.
  """
  spec = importlib.util.spec_from_file_location(name, path)
  if spec is None or spec.loader is None:
    raise ValueError(f"{what} is not a Python file (.py).")
  module = importlib.util.module_from_spec(spec)
  sys.modules[spec.name] = module  # where dataclasses look for themselves
  sys.path.insert(0, str(path.absolute().parent))
  with blamed(what, path):
    spec.loader.exec_module(module)
  return module


def digest(path: pathlib.Path, before: set[str]) -> str:
  """SHA-256 of a file, and of its neighbours that were imported since.

  Args:
    path: the file.
    before: names of the modules that were there before it was loaded.
  """
  folder = path.absolute().parent
  files = {path.absolute()}
  for name in set(sys.modules) - before:
    file = pathlib.Path(getattr(sys.modules[name], "__file__", None) or "/")
    own = file.absolute().is_relative_to(folder) and file.is_file()
    if own and "site-packages" not in file.parts:
      files.add(file.absolute())
  found = hashlib.sha256()
  for file in sorted(files - {path.absolute()}):
    found.update(f"{file.relative_to(folder)} ".encode())
    found.update(hashlib.sha256(file.read_bytes()).digest())
  found.update(path.read_bytes())
  return found.hexdigest()
