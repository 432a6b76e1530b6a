"""Promised numbers stand in the documentation, and every script has some."""

import importlib.util
import pathlib
import re
import shlex

import pytest

ROOT = pathlib.Path(__file__).parents[2]


@pytest.fixture(scope="module")
def promises():
  path = pathlib.Path(__file__).with_name("promises.py")
  spec = importlib.util.spec_from_file_location("promises", path)
  module = importlib.util.module_from_spec(spec)
  spec.loader.exec_module(module)
  return module


def test_every_script_keeps_a_promise_that_the_documentation_makes(promises):
  gallery = (ROOT / "docs" / "gallery.md").read_text()
  scripts = set()
  for name, promise in promises.promised().items():
    path = ROOT / promise["command"].split()[0]
    text = " ".join((gallery + path.read_text()).split())
    assert promise["says"] in text, name
    scripts.add(path.name)
  assert scripts == {path.name for path in ROOT.glob("scripts/*.py")}


def documented():
  """(script, flag) of the gallery's table, for each flag of each row.

  What `--figure=11` (or 1, 2) says counts as three flags.
  """
  flag = re.compile(r"--\w+(?:=\"[^\"]*\"|=[^\s\"]+)?")
  for row in (ROOT / "docs" / "gallery.md").read_text().splitlines():
    cells = row.split("|")
    if len(cells) < 4 or not (
      script := re.search(r"scripts/\w+\.py", cells[2])
    ):
      continue
    flags = []
    for code, others in re.findall(r"`([^`]+)`(?: \(or ([^)]*)\))?", cells[2]):
      flags += flag.findall(code)
      name = flags[0].partition("=")[0] if others and flags else ""
      flags += [f"{name}={other}" for other in re.findall(r"\w+", others)]
    for one in flags or [""]:
      yield script[0], one


def test_every_command_of_the_gallery_is_promised(promises):
  every = promises.promised().values()
  commands = [shlex.split(promise["command"]) for promise in every]
  found = list(documented())
  assert len(found) > 30
  for script, flag in found:
    own = [words[1:] for words in commands if words[0] == script]
    name, _, value = flag.replace('"', "").partition("=")
    # DIR, FILE and the user's own files are whatever is there.
    free = value == value.upper() and not value.isdigit() or ".py" in value
    flags = [word.partition("=")[::2] for words in own for word in words]
    assert not flag or any(
      name == n and (free or value == v) for n, v in flags
    ), (script, flag)
  plain = {words[0] for words in commands if len(words) == 1}
  assert plain == {script for script, _ in found}


def test_every_promise_has_numbers(promises):
  for name, promise in promises.promised().items():
    assert any(
      isinstance(value, list) or type(value) is int or value is True
      for value in promise["expect"].values()
    ), name


def test_commands_with_data_wait_for_it(promises, monkeypatch, capsys):
  monkeypatch.delenv("DATA", raising=False)
  assert promises.main(["mdrnn_mnist"]) == 0
  assert "not run: DATA names no folder" in capsys.readouterr().out


def test_what_is_broken_is_named(promises):
  expect = {"a": [1.0, 0.1], "b": True, "c": [2, 0]}
  assert promises.broken(expect, {"a": 1.05, "b": True, "c": 2}) == []
  found = promises.broken(expect, {"a": 1.2, "b": False})
  assert found == [
    "a is 1.2, promised 1.0 +- 0.1",
    "b is False, promised True",
    "c is None, promised 2 +- 0",
  ]
