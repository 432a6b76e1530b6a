"""The wheel, in an empty environment, runs the README's example."""

import pathlib
import re
import subprocess
import sys

import pytest

ROOT = pathlib.Path(__file__).parents[1]


@pytest.mark.slow
def test_the_wheel_needs_nothing_but_what_it_declares(tmp_path):
  pytest.importorskip("build")
  command = [sys.executable, "-m", "build", "--wheel", "--outdir", tmp_path]
  run([*command, ROOT])
  (wheel,) = tmp_path.glob("revmom-*.whl")
  run([sys.executable, "-m", "venv", tmp_path / "empty"])
  python = tmp_path / "empty" / "bin" / "python"
  run([python, "-m", "pip", "install", "--quiet", wheel])
  example = re.search(
    r"```python\n(.*?)```", (ROOT / "README.md").read_text(), re.S
  )[1]
  everything = "from revmom import analysis, cells, jacobian, models, ledger\n"
  out = run([python, "-c", everything + example], cwd=tmp_path)
  assert "SGD(" in out and "nan" not in out


def run(command, **options):
  """The output of a command, which must succeed."""
  done = subprocess.run(command, capture_output=True, text=True, **options)
  assert done.returncode == 0, done.stdout + done.stderr
  return done.stdout
