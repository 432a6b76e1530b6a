"""Promised numbers stand in the documentation, and every script has some."""

import importlib.util
import pathlib

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
  readme = (ROOT / "README.md").read_text()
  scripts = set()
  for name, promise in promises.promised().items():
    path = ROOT / promise["command"].split()[0]
    text = " ".join((readme + path.read_text()).split())
    assert promise["says"] in text, name
    scripts.add(path.name)
  programs = ROOT.glob("scripts/*.py")
  mains = {
    p.name for p in programs if '__name__ == "__main__"' in p.read_text()
  }
  assert scripts == mains


def test_what_is_broken_is_named(promises):
  expect = {"a": [1.0, 0.1], "b": True, "c": [2, 0]}
  assert promises.broken(expect, {"a": 1.05, "b": True, "c": 2}) == []
  found = promises.broken(expect, {"a": 1.2, "b": False})
  assert found == [
    "a is 1.2, promised 1.0 +- 0.1",
    "b is False, promised True",
    "c is None, promised 2 +- 0",
  ]
