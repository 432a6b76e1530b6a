"""What `import revmom` loads, and which way imports point."""

import ast
import collections
import functools
import graphlib
import pathlib
import subprocess
import sys
import textwrap

import pytest

import revmom
from revmom import training

SLOW = ("flax", "matplotlib", "scipy", "sklearn", "jax.extend")
ROOMS = ("analysis", "cells", "depth", "jacobian", "models")
# What each package may import from besides itself; `revmom` may from all.
BELOW = {
  "numerics": set(),
  "exact": set(),
  "jacobian": {"exact"},
  "steps": {"exact"},
  "depth": {"exact", "steps"},
  "optimizers": {"exact", "steps"},
  "training": {"exact", "jacobian", "optimizers", "steps"},
  "cells": {"exact", "jacobian", "numerics"},
  "models": {"exact", "jacobian", "cells", "numerics"},
  "analysis": {
    "exact",
    "jacobian",
    "optimizers",
    "cells",
    "models",
    "numerics",
  },
}


def test_importing_loads_nothing_slow():
  program = f"""
    import sys, revmom
    loaded = [name for name in {SLOW} if name in sys.modules]
    assert not loaded, loaded
    loaded = [n for n in {ROOMS} if "revmom." + n in sys.modules]
    assert not loaded, loaded
    assert set(revmom.__all__) <= set(dir(revmom))
    for name in revmom.__all__:
      getattr(revmom, name)
    assert revmom.cells is sys.modules["revmom.cells"]
    assert revmom.cells.nnx.LSTM and revmom.models.nnx.UGCNN
    assert revmom.log_det is revmom.jacobian.log_det
    assert revmom.ledger is revmom.training.ledger
  """
  run = subprocess.run(
    [sys.executable, "-c", textwrap.dedent(program)],
    capture_output=True,
    text=True,
  )
  assert not run.returncode, run.stderr


@pytest.mark.parametrize("module", [revmom, training])
def test_what_is_not_public_is_missing(module):
  with pytest.raises(AttributeError, match="has no attribute 'nonsense'"):
    module.nonsense  # noqa: B018


@functools.cache
def _modules():
  """The name of every module, with its file."""
  library = pathlib.Path(revmom.__file__).parent
  names = {}
  for path in library.rglob("*.py"):
    parts = path.relative_to(library.parent).with_suffix("").parts
    names[".".join(p for p in parts if p != "__init__")] = path
  return names


@functools.cache
def _arrows():
  """What each module imports, also inside of functions and for types only."""
  modules = _modules()
  arrows = collections.defaultdict(set)
  for name, path in modules.items():
    for node in ast.walk(ast.parse(path.read_text())):
      if isinstance(node, ast.Import):
        found = [alias.name for alias in node.names]
      elif isinstance(node, ast.ImportFrom):
        assert not node.level, f"{name} has a relative import"
        # `from package import x` may name a module or what is in the package.
        full = [f"{node.module}.{alias.name}" for alias in node.names]
        found = [f if f in modules else node.module for f in full]
      else:
        continue
      arrows[name].update(f for f in found if f in modules)
  return arrows


def _room(name):
  """The package that a module lies in; that of a package is its own."""
  is_package = _modules()[name].name == "__init__.py"
  return name if is_package else name.rpartition(".")[0]


def test_imports_point_downwards():
  for importer, imported in _arrows().items():
    if importer == "revmom":
      continue
    package = importer.split(".")[1]
    assert package in BELOW, f"say in BELOW what {package} may import from"
    for name in imported:
      below = name.partition(".")[2].split(".")[0]
      allowed = below == package or below in BELOW[package]
      assert allowed, f"{importer} imports {name}, which lies above it"


def test_no_circle_of_modules_or_of_rooms():
  arrows = _arrows()
  graphlib.TopologicalSorter(arrows).prepare()  # raises CycleError
  rooms = collections.defaultdict(set)
  for importer, imported in arrows.items():
    room = _room(importer)
    if room == importer:  # a package shows what its rooms hold
      continue
    rooms[room].update(r for name in imported if (r := _room(name)) != room)
  graphlib.TopologicalSorter(rooms).prepare()
