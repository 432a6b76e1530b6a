"""Every public name has a page, and the documentation agrees with the code."""

import importlib
import importlib.util
import inspect
import pathlib
import re
import tomllib

import pytest

import revmom

ROOT = pathlib.Path(__file__).parents[1]
DOCS = ROOT / "docs"
ROOMS = (
  "optimizers",
  "training",
  "depth",
  "jacobian",
  "cells",
  "models",
  "analysis",
)


def documented():
  """Names in the tables of the reference, each of which has a page."""
  names = []
  for path in DOCS.glob("api/*.md"):
    for block in re.findall(r"autosummary::\n(.*?)```", path.read_text(), re.S):
      names += re.findall(r"^   (revmom[\w.]+)$", block, re.M)
  return names


def find(name):
  """What a public name is of, which may have the name of a module, too."""
  room, _, last = name.rpartition(".")
  found = getattr(importlib.import_module(room), last, None)
  return importlib.import_module(name) if found is None else found


def load(path):
  spec = importlib.util.spec_from_file_location(path.stem, path)
  module = importlib.util.module_from_spec(spec)
  spec.loader.exec_module(module)
  return module


def test_every_public_name_has_a_page():
  pages = documented()
  assert len(pages) == len(set(pages))
  # The page of a module has all that is defined in it.
  modules = {m.__name__ for m in map(find, pages) if inspect.ismodule(m)}
  names = {f"revmom.{name}" for name in revmom.__all__ if name not in ROOMS}
  for room in ROOMS:
    module = importlib.import_module(f"revmom.{room}")
    for name in module.__all__:
      found = getattr(module, name)
      if getattr(found, "__module__", None) in modules:
        continue
      above = name in revmom.__all__ and getattr(revmom, name) is found
      names.add(f"revmom.{name}" if above else f"revmom.{room}.{name}")
  assert names <= set(pages), names - set(pages)


def test_every_page_is_of_something_with_a_docstring():
  for name in documented():
    assert inspect.getdoc(find(name)), name


def contents(index):
  """Pages that an index names, relative to its folder."""
  for block in re.findall(r"```{toctree}\n(.*?)```", index.read_text(), re.S):
    yield from (name for name in block.split("\n") if name and name[0] != ":")


def test_every_page_of_the_site_is_in_its_contents():
  listed = {"index", *contents(DOCS / "index.md")}
  listed |= {f"api/{name}" for name in contents(DOCS / "api/index.md")}
  pages = {str(p.relative_to(DOCS).with_suffix("")) for p in DOCS.rglob("*.md")}
  assert listed == pages


def test_links_between_pages_lead_somewhere():
  for path in [*DOCS.rglob("*.md"), *ROOT.glob("*.md")]:
    for link in re.findall(r"\]\(([^)#\s]+)[^)]*\)", path.read_text()):
      if not link.startswith(("http", "mailto")):
        assert (path.parent / link).exists(), (path.name, link)


@pytest.mark.parametrize("folder", ["figures", "gallery"])
def test_figures_are_small(folder):
  figures = list((DOCS / folder).glob("*.png"))
  assert figures
  for figure in figures:
    assert figure.stat().st_size <= 60_000, figure.name


def test_the_gallery_shows_what_is_promised():
  gallery = load(DOCS / "gallery.py")
  assert gallery.PAGE.read_text().endswith(gallery.page()), (
    "docs/gallery.md is not what docs/gallery.py writes; run it."
  )
  script = {k: p["command"].split()[0] for k, p in gallery.promised().items()}
  shown = {script[name] for name in gallery.entries()}
  assert shown == set(script.values())
  for figure in (DOCS / "gallery").glob("*.png"):
    assert figure.stem in gallery.entries()


def test_versions_agree():
  project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
  changes = (ROOT / "CHANGELOG.md").read_text()
  latest = re.search(r"^## \[(\d[\d.]*)\]", changes, re.M)[1]
  citation = (ROOT / "CITATION.cff").read_text()
  cited = re.search(r"^version: (\S+)$", citation, re.M)[1]
  assert project["version"] == revmom.__version__ == latest == cited
