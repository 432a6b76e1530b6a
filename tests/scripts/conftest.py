"""How tests run a script as its user would, and read what it wrote."""

import csv
import importlib
import json
import pathlib
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from types import ModuleType
from typing import Any, NamedTuple

import pytest

SCRIPTS = pathlib.Path(__file__).parents[2] / "scripts"
# All that two runs of the same bits may differ in.
VARIES = {
  "seconds",
  "seconds_of_first_meta_step",
  "seconds_per_meta_step",
  "resumed_from",
}


class Script(NamedTuple):
  """A script, to run in a subprocess; it writes only where `at` says."""

  path: pathlib.Path
  workdir: pathlib.Path | None = None

  def at(self, workdir: pathlib.Path) -> "Script":
    """The same script, writing to a folder."""
    return self._replace(workdir=workdir)

  def command(self, *flags: str) -> list[str]:
    """What a subprocess is started with."""
    where = [] if self.workdir is None else [f"--workdir={self.workdir}"]
    return [sys.executable, str(self.path), *where, *flags]

  def attempt(self, *flags: str) -> subprocess.CompletedProcess[str]:
    """Runs it to any end."""
    return subprocess.run(
      self.command(*flags),
      capture_output=True,
      text=True,
      timeout=280,
    )

  def run(self, *flags: str) -> subprocess.CompletedProcess[str]:
    """Runs it to a good end."""
    done = self.attempt(*flags)
    assert done.returncode == 0, done.stdout + done.stderr
    return done

  def fails(self, *flags: str) -> str:
    """Runs it to an error, and returns what that says."""
    done = self.attempt(*flags)
    assert done.returncode == 1, done.stdout + done.stderr
    return done.stderr

  def stops(self, *flags: str) -> str:
    """Runs it to an error that leaves no result."""
    error = self.fails(*flags)
    assert not (self.workdir / "result.json").exists()
    return error

  def resume(self, *flags: str) -> None:
    """Runs it once more, as if killed before the last of its checkpoints."""
    checkpoints = (self.workdir / "checkpoint").iterdir()
    shutil.rmtree(max(checkpoints, key=lambda path: int(path.name)))
    (self.workdir / "result.json").unlink()
    self.run(*flags)

  def kill_when(self, condition: Callable[[], Any], *flags: str) -> None:
    """Starts it and sends SIGKILL as soon as condition() holds."""
    process = subprocess.Popen(
      self.command(*flags),
      stdout=subprocess.DEVNULL,
      stderr=subprocess.DEVNULL,
    )
    try:
      while not condition():
        assert process.poll() is None, "the script ended before it was killed"
        time.sleep(0.0005)
    finally:
      process.kill()
      process.wait()
    assert not (self.workdir / "result.json").exists()

  def result(self) -> dict[str, Any]:
    """What result.json holds."""
    return json.loads((self.workdir / "result.json").read_text())

  def rows(self) -> list[dict[str, str]]:
    """The table of metrics.csv."""
    with open(self.workdir / "metrics.csv", newline="") as file:
      return list(csv.DictReader(file))

  def figures(self) -> set[str]:
    """Names of the images, all of which are PNGs."""
    paths = list(self.workdir.glob("*.png"))
    assert all(path.read_bytes().startswith(b"\x89PNG") for path in paths)
    return {path.stem for path in paths}

  def bits(self) -> list[dict[str, Any]]:
    """The result and the rows, less what varies from run to run."""
    steady = lambda record: {k: v for k, v in record.items() if k not in VARIES}
    return [steady(record) for record in (self.result(), *self.rows())]


@pytest.fixture
def script(request: pytest.FixtureRequest) -> Script:
  """The script that the file of the test is named after."""
  name = request.path.name.replace("_test.py", ".py")
  return Script(SCRIPTS / name)


@pytest.fixture(scope="module")
def load() -> Iterator[Callable[[str], ModuleType]]:
  """Imports a module of scripts by its name."""
  with pytest.MonkeyPatch.context() as patch:
    patch.syspath_prepend(str(SCRIPTS))
    yield importlib.import_module
