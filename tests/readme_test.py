"""The README's example runs as a reader would run it."""

import pathlib
import re
import subprocess
import sys

README = pathlib.Path(__file__).parents[1] / "README.md"


def test_example_proves_a_reversal():
  example = re.search(r"```python\n(.*?)```", README.read_text(), re.S)[1]
  index = README.parent / "docs" / "index.md"
  assert example in index.read_text(), "copy the README's example to the index"
  out = subprocess.run(
    [sys.executable, "-c", example],
    capture_output=True, text=True, timeout=300, check=True,
  )  # fmt: skip
  assert "SGD(" in out.stdout and "nan" not in out.stdout


def test_commands_stand_in_one_section():
  text = README.read_text()
  section = text.partition("## Install and run\n")[2].partition("\n## ")[0]
  commands = re.findall(r"```sh\n(.*?)\n```", section, re.S)
  assert [len(command.splitlines()) for command in commands] == [1, 1]
  assert "scripts/learn_schedule.py" in commands[0]
  assert commands[1].endswith("-m pytest -n 2")
