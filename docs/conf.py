"""The documentation site: `sphinx-build -W docs out/docs`."""

import ast
import inspect
import re
import textwrap

import revmom
from revmom import cells

project = "revmom"
author = "The revmom Authors"
copyright = author
version = release = revmom.__version__

extensions = [
  "myst_nb",
  "sphinx.ext.autodoc",
  "sphinx.ext.autosummary",
  "sphinx.ext.mathjax",
  "sphinx.ext.napoleon",
]
templates_path = ["_templates"]
exclude_patterns = ["_build", "_templates"]
default_role = "py:obj"

html_theme = "furo"
html_title = f"revmom {version}"

myst_enable_extensions = ["dollarmath"]
myst_heading_anchors = 3
nb_execution_mode = "cache"
nb_execution_timeout = 300
nb_execution_raise_on_error = True
nb_merge_streams = True

autosummary_generate = True
# Modules whose functions are methods of a cell, which autosummary leaves out.
autosummary_context = {
  "cells": [
    module.__name__
    for module in vars(cells).values()
    if inspect.ismethod(getattr(module, "apply", None))
  ]
}
autodoc_member_order = "bysource"
autodoc_typehints_format = "short"
python_use_unqualified_type_names = True
python_maximum_signature_line_length = 60
napoleon_use_ivar = True
napoleon_attr_annotations = False
napoleon_use_rtype = False

# What is read as it is.
_LITERAL = re.compile(r"(``.*?``|:\w+:`.*?`|`.*?`)")


def mark_up(app, what, name, obj, options, lines):
  """Plain mathematics of docstrings as reStructuredText.

  Indented equations become literal blocks; bars and stars are no markup.
  """
  del app, what, name, obj, options
  found, literal, above, directive = [], False, "", False
  for line in lines:
    indent = len(line) - len(line.lstrip())
    if line.strip() and not (literal and indent >= 4):
      literal = False
      directive = directive and indent > 0 or line.startswith(".. ")
      if indent >= 4 and found and not found[-1].strip():
        literal = not above.startswith((" ", "..", ">>>")) and not directive
        found += [".. code-block:: text", ""] if literal else []
    if line.strip():
      above = line
    plain = (
      literal or directive or line.lstrip().startswith((">>>", "...", ":"))
    )
    found.append(line if plain else _escaped(line))
  lines[:] = found


def _escaped(line: str) -> str:
  parts = _LITERAL.split(line)
  for i in range(0, len(parts), 2):
    parts[i] = re.sub(r"(?<!\\)([|*])(?! )", r"\\\1", parts[i])
  return "".join(parts)


def describe_fields(app, what, name, obj, options, lines):
  """Fields of a class are documented by the comments beside or above them."""
  del app, name, options
  if what != "class" or any("Attributes:" in line for line in lines):
    return
  comments = [f"  {field}: {text}" for field, text in _fields(obj)]
  if comments:
    lines += ["", "Attributes:", *comments]


def _fields(cls):
  """(field, comment) of the fields that a class itself declares."""
  try:
    source = textwrap.dedent(inspect.getsource(cls))
  except (OSError, TypeError):
    return
  rows = source.splitlines()
  for node in ast.parse(source).body[0].body:
    if not isinstance(node, ast.AnnAssign) or node.target.id.startswith("_"):
      continue
    comment = rows[node.end_lineno - 1].partition("  # ")[2]
    row = node.lineno - 2
    while not comment and rows[row].lstrip().startswith("# "):
      comment, row = rows[row].lstrip()[2:], row - 1
      while rows[row].lstrip().startswith("# "):
        comment, row = f"{rows[row].lstrip()[2:]} {comment}", row - 1
    if comment:
      yield node.target.id, comment


def skip(app, what, name, obj, skipped, options):
  """Fields of named tuples, which `describe_fields` documents."""
  del app, what, name, options
  if type(obj).__name__ in ("_tuplegetter", "member_descriptor"):
    return True
  return skipped


def setup(app):
  """Before napoleon, which reads what these write."""
  app.connect("autodoc-process-docstring", describe_fields, priority=100)
  app.connect("autodoc-process-docstring", mark_up, priority=200)
  app.connect("autodoc-skip-member", skip)
