"""What users' files do wrong is one line that names the file and the flag."""

import sys

import pytest


@pytest.fixture
def user_files(load):
  return load("shared.user_files")


@pytest.mark.parametrize(
  ("text", "message"),
  [
    ("x = 1\nx % 0\n", "ZeroDivisionError in line 2"),
    ("import sys\nsys.exit(0)\n", "SystemExit in line 2"),
    ("def (\n", "SyntaxError"),
    ("raise MemoryError('much\\nmore')\n", "MemoryError in line 1: much$"),
  ],
)
def test_errors_of_a_file(user_files, tmp_path, text, message):
  path = tmp_path / "mine.py"
  path.write_text(text)
  with pytest.raises(ValueError, match="--flag=mine raised " + message):
    user_files.load("mine_file", path, "--flag=mine")


def test_a_neighbour_belongs_to_the_file(user_files, tmp_path):
  path, neighbour = tmp_path / "mine.py", tmp_path / "neighbour_of_mine.py"
  path.write_text("import neighbour_of_mine\n")
  neighbour.write_text("X = 1\n")
  before = set(sys.modules)
  user_files.load("mine_file", path, "--flag=mine")
  first = user_files.digest(path, before)
  assert user_files.digest(path, before) == first
  neighbour.write_text("X = 2\n")
  assert user_files.digest(path, before) != first
