"""The benchmark runs, and its contenders compute the same gradient."""

import importlib.util
import json
import os
import pathlib
import subprocess
import sys

import pytest

BEFORE = "before\n<!-- name: begin -->\n"
AFTER = "\n<!-- name: end -->\nafter\n"
ROOT = pathlib.Path(__file__).parents[2]
SCRIPT = ROOT / "benchmarks" / "reversible_training.py"


def run(*options):
  paths = [str(ROOT), os.environ.get("PYTHONPATH", "")]
  environment = {**os.environ, "PYTHONPATH": ":".join(filter(None, paths))}
  return subprocess.run(
    [sys.executable, str(SCRIPT), *options],
    env=environment,
    capture_output=True,
    text=True,
    timeout=900,
  )


@pytest.mark.slow
def test_quick_run_agrees_and_reports(tmp_path, monkeypatch):
  out, document = tmp_path / "new" / "result.json", tmp_path / "table.md"
  document.write_text("# Title\n")
  finished = run(
    "--quick",
    "--steps=20",
    "--conv_steps=4",
    "--batch_size=8",
    "--learning_rate=0.003",
    f"--out={out}",
    f"--doc={document}",
  )
  assert finished.returncode == 0, finished.stderr
  result = json.loads(out.read_text())

  lengths = [(run["workload"], run["steps"]) for run in result["runs"]]
  assert lengths == [("mlp", 20), ("conv", 4)]
  for measured in result["runs"]:
    assert measured["reversal"]["receipt_ok"]
    assert measured["reversal"]["restored_error"] == 0
    rows = measured["hypergradient"]["contenders"]
    assert measured["hypergradient"]["reference"] in rows
    for name, row in rows.items():
      assert len(row["seconds"]) == measured["hypergradient"]["rounds"]
      for argument, differs in row["gradient_differs_by"].items():
        assert differs < 1e-3, (name, argument, differs)
  absent = importlib.util.find_spec("equinox") is None
  assert len(result["runs"][0]["hypergradient"]["contenders"]) == 8 - absent

  arithmetic = result["arithmetic"]
  assert arithmetic["bignum_exact"] and arithmetic["revmom_exact"]
  assert all(row["bytes"] <= row["promised"] for row in result["buffers"])
  assert {floor["reached"] for floor in result["floors"]} >= {None, True}
  assert result["environment"]["versions"]["jax"]

  text = document.read_text()
  assert text.startswith("# Title\n")
  for words in ("equinox checkpointed loop", "not measured", "bignum"):
    assert words in text and words in finished.stdout

  monkeypatch.syspath_prepend(str(SCRIPT.parent))
  import report

  longer = {**result["runs"][0], "steps": 1000}
  result["runs"] = [result["runs"][0], longer]
  reached = [row["reached"] for row in report.floors(result)]
  assert reached.count(None) == 1  # the conv net's
  assert "| T = 20 | T = 1000 |" in report.tables(result)


def test_tables_replace_only_what_is_between_the_markers(tmp_path, monkeypatch):
  monkeypatch.syspath_prepend(str(SCRIPT.parent))
  import report

  document = tmp_path / "table.md"
  document.write_text(BEFORE + "old" + AFTER)
  report.insert(document, "new", "name")
  report.insert(document, "newer", "name")
  expected = BEFORE + "newer" + AFTER
  assert document.read_text() == expected


@pytest.mark.parametrize("momentum", [0.5, 0.9])
def test_bignum_buffer_is_exact_and_empties(monkeypatch, momentum):
  monkeypatch.syspath_prepend(str(SCRIPT.parent))
  import bignum

  result = bignum.measure(50, 40, 0.1, momentum)
  assert result.exact
  assert result.buffer_bytes > 8
