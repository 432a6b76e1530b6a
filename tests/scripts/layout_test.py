"""How scripts/ is laid out, and what its programs import."""

import ast
import importlib
import importlib.metadata
import pathlib
import sys

SCRIPTS = pathlib.Path(__file__).parents[2] / "scripts"
PROGRAMS = sorted(SCRIPTS.glob("*.py"))
PARTS = sorted(SCRIPTS.glob("*/**/*.py"))
TESTS = sorted(pathlib.Path(__file__).parent.rglob("*.py"))
FOLDERS = {path.parent.name for path in PARTS}
# Folders whose parts those of another folder use, beside those of shared.
BELOW = {"maclaurin": ["schedules"]}
# Packages that users may have beside ours.
POPULAR = {"datasets", "experiment", "progress", "transformer", "transformers"}


def imports(path):
  """(module, name) of each import; the name is None of a plain one."""
  for node in ast.walk(ast.parse(path.read_text())):
    if isinstance(node, ast.Import):
      yield from ((alias.name, None) for alias in node.names)
    elif isinstance(node, ast.ImportFrom):
      module = "." * node.level + (node.module or "")
      yield from ((module, alias.name) for alias in node.names)


def test_every_file_at_the_top_is_a_program():
  start = '\n\nif __name__ == "__main__":\n  launch(Config, '
  assert len(PROGRAMS) == 22
  assert [p for p in PROGRAMS if start not in p.read_text()] == []


def test_everything_else_is_in_a_folder_that_says_whose_it_is():
  assert {path.parent.parent for path in PARTS} == {SCRIPTS}
  for folder in FOLDERS:
    text = (SCRIPTS / folder / "__init__.py").read_text()
    assert ast.get_docstring(ast.parse(text))


def test_no_name_is_that_of_another_module():
  taken = set(importlib.metadata.packages_distributions()) | POPULAR
  taken |= sys.stdlib_module_names
  parts = {path.stem for path in PARTS} - {"__init__"}
  programs = {path.stem for path in PROGRAMS}
  assert not (parts | programs | FOLDERS) & taken
  assert not programs & FOLDERS


def test_only_public_names_of_the_library_are_imported():
  """They are in `__all__` of revmom, or of one of its packages."""
  for path in [*PROGRAMS, *PARTS, *TESTS]:
    for module, name in imports(path):
      if module.split(".")[0] == "revmom":
        where = f"{path.name} imports {name or ''} from {module}"
        assert module.count(".") <= 1, where
        assert name in (None, *importlib.import_module(module).__all__), where


def test_parts_import_their_neighbours_and_what_is_shared():
  for path in PARTS:
    folder = path.parent.name
    allowed = {folder, "shared", *BELOW.get(folder, [])}
    for module, name in imports(path):
      assert not module.startswith("."), f"{path}: a relative import"
      top = module.split(".")[0]
      if top in FOLDERS:
        assert top in allowed, f"{path} imports {module}"
        assert not (name or "").startswith("_"), f"{path} imports {name}"
