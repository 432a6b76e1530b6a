"""How scripts/ is laid out, and what its programs import."""

import ast
import importlib
import importlib.metadata
import pathlib
import sys

import pytest

ROOT = pathlib.Path(__file__).parents[2]
SCRIPTS = ROOT / "scripts"
MODULES = sorted(SCRIPTS.rglob("*.py"))
TESTS = sorted(pathlib.Path(__file__).parent.rglob("*.py"))

# Folders whose parts those of another folder use, beside those of shared.
BELOW = {"maclaurin": ["schedules"]}


def imports(path):
  """(module, name) of each import; the name is None of a plain one."""
  for node in ast.walk(ast.parse(path.read_text())):
    if isinstance(node, ast.Import):
      for alias in node.names:
        yield alias.name, None
    elif isinstance(node, ast.ImportFrom):
      assert not node.level, f"{path}: a relative import"
      for alias in node.names:
        yield node.module, alias.name


def test_every_file_at_the_top_is_a_program():
  for path in SCRIPTS.glob("*.py"):
    text = path.read_text()
    assert '\nif __name__ == "__main__":\n  launch(Config, ' in text, path


def test_everything_else_is_in_a_folder_with_a_docstring():
  folders = {path.parent for path in MODULES} - {SCRIPTS}
  for folder in folders:
    assert folder.parent == SCRIPTS
    assert ast.get_docstring(ast.parse((folder / "__init__.py").read_text()))
  programs = {path.stem for path in SCRIPTS.glob("*.py")}
  assert not programs & {folder.name for folder in folders}


def test_no_name_is_that_of_a_package():
  taken = {
    *sys.stdlib_module_names,
    *importlib.metadata.packages_distributions(),
  }
  # Of packages that users may have installed beside ours.
  taken |= {"datasets", "experiment", "progress", "transformer", "transformers"}
  names = {path.stem for path in MODULES} - {"__init__"}
  names |= {path.parent.name for path in MODULES} - {"scripts"}
  assert not names & taken


@pytest.mark.parametrize("path", [*MODULES, *TESTS], ids=lambda path: path.stem)
def test_only_public_names_are_imported(path):
  """Those of `__all__` in revmom and its packages, or modules of scripts/."""
  folders = {path.parent.name for path in MODULES} - {"scripts"}
  for module, name in imports(path):
    root, *parts = module.split(".")
    if root == "revmom":
      public = importlib.import_module(module).__all__
      assert len(parts) <= 1 and name in (None, *public), (module, name)
    elif root in folders:
      assert not (name or "").startswith("_"), (module, name)
      below = {path.parent.name, "shared", *BELOW.get(path.parent.name, ())}
      assert path.parent == SCRIPTS or root in below, module
