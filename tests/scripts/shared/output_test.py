"""The folder of a program's results, and its files."""

import csv
import json
import math
import subprocess
import sys

import pytest
from matplotlib.figure import Figure


@pytest.fixture
def output(load):
  return load("shared.output")


def test_files_of_a_result(output, tmp_path):
  rows = [{"step": 0, "loss": 1.5}, {"step": 1, "loss": 1.0, "validation": 2.0}]
  result = {"steps": 2, "resumed_from": 1}
  output.write_results(tmp_path, rows, {"loss": Figure()}, result)
  with open(tmp_path / "metrics.csv", newline="") as file:
    assert [*csv.DictReader(file)] == [
      {"step": "0", "loss": "1.5", "validation": ""},
      {"step": "1", "loss": "1.0", "validation": "2.0"},
    ]
  assert (tmp_path / "loss.png").read_bytes().startswith(b"\x89PNG")
  assert json.loads((tmp_path / "result.json").read_text()) == result


def test_a_result_is_finite_and_removed_first(output, tmp_path):
  folder = output.folder(str(tmp_path))
  with pytest.raises(ValueError, match=r"losses\[1\]=nan, of.a=inf is not"):
    result = {"losses": [1.0, math.nan], "of": {"a": math.inf}}
    output.write_results(folder, [{"step": 0}], {}, result)
  assert not (folder / "metrics.csv").exists()
  output.write_results(folder, [{"step": 0}], {}, {"loss": 1.0})
  assert output.folder(str(tmp_path)) == folder
  assert not (folder / "result.json").exists()
  with pytest.raises(ValueError, match="--workdir= names no folder"):
    output.folder("")


def test_one_process_at_a_time(output, tmp_path):
  code = f"""
import fcntl, sys
file = open({str(tmp_path / ".lock")!r}, "w")
fcntl.flock(file, fcntl.LOCK_EX)
print("locked", flush=True)
sys.stdin.read()
"""
  other = subprocess.Popen(
    [sys.executable, "-c", code],
    stdin=subprocess.PIPE,
    stdout=subprocess.PIPE,
    text=True,
  )
  assert other.stdout.readline() == "locked\n"
  with pytest.raises(ValueError, match="in use by another process"):
    output.folder(str(tmp_path))
  other.communicate()
  assert output.folder(str(tmp_path)) == tmp_path
