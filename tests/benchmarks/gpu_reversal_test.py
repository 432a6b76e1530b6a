"""Runs benchmarks/gpu_reversal.py as a user would."""

import json
import pathlib
import subprocess
import sys

import pytest

PROGRAM = pathlib.Path(__file__).parents[2] / "benchmarks" / "gpu_reversal.py"


@pytest.mark.slow
def test_every_bit_is_restored_with_residues(tmp_path):
  out = tmp_path / "result.json"
  flags = ["--steps=5", "--size=8", f"--out={out}"]
  subprocess.run([sys.executable, str(PROGRAM), *flags], check=True)
  rows = json.loads(out.read_text())["rows"]
  assert len(rows) == 5 * (3 + 2 + 2)
  with_residues = [row for row in rows if row["residue_bits"]]
  assert all(row["restored"] for row in with_residues)
  assert all(row["hypergradient_is_a_number"] for row in with_residues)
