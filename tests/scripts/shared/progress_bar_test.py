"""Progress of long work, of which a pipe is told now and then."""

import io
import sys

import pytest


@pytest.fixture
def module(load):
  return load("shared.progress_bar")


def test_a_line_a_minute_where_there_is_no_terminal(module, monkeypatch):
  now = [0.0]
  monkeypatch.setattr(module.time, "monotonic", lambda: now[0])
  monkeypatch.setattr(module.Lines, "last", 0.0)
  monkeypatch.setattr(sys, "stderr", io.StringIO())
  for step in module.progress(range(10, 100), "training", 100, 10):
    now[0] += 1.0
    if step == 70:
      bar = module.progress(desc="compiling")
      bar.set_postfix_str("loss 0.5")
      bar.update()
  assert sys.stderr.getvalue() == ("training: 70 of 100 in 60 s\n")
  now[0] += 60
  bar.update()
  bar.set_description("training")
  assert sys.stderr.getvalue().endswith("\ncompiling: 2 in 89 s, loss 0.5\n")


def test_a_bar_on_a_terminal(module, monkeypatch):
  terminal = io.StringIO()
  terminal.isatty = lambda: True
  monkeypatch.setattr(sys, "stderr", terminal)
  with module.progress(total=2, desc="training") as bar:
    bar.update()
  assert "training:  50%" in terminal.getvalue()
