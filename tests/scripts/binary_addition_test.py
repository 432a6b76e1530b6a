"""Runs scripts/binary_addition.py as a user would."""

import csv
import json
import pathlib
import subprocess
import sys

import pytest

SCRIPT = pathlib.Path(__file__).parents[2] / "scripts" / "binary_addition.py"
PNG = b"\x89PNG"


def run(user_env, *flags):
  return subprocess.run(
    [sys.executable, str(SCRIPT), *flags],
    env=user_env,
    capture_output=True,
    text=True,
    timeout=280,
  )


def table_of(workdir):
  with open(workdir / "metrics.csv", newline="") as file:
    rows = list(csv.DictReader(file))
  return [{name: int(value) for name, value in row.items()} for row in rows]


def test_adds_and_explains(user_env, tmp_path):
  flags = "--a=0b1011", "--b=6", "--bits=3", f"--workdir={tmp_path}"
  done = run(user_env, *flags)
  assert done.returncode == 0, done.stderr
  assert done.stderr == ""
  assert "11 + 6 = 17" in done.stdout
  assert "all 64 pairs of 3-bit numbers" in done.stdout
  assert "64 random pairs of 4096-bit numbers" in done.stdout
  carry = 0
  rows = table_of(tmp_path)
  for t, row in enumerate(rows):
    a, b = 11 >> t & 1, 6 >> t & 1
    total = a + b + carry
    assert (row["bit"], row["a"], row["b"]) == (t, a, b)
    assert (row["carry"], row["s"]) == (carry, total)
    for k in (1, 2, 3):
      assert row[f"s >= {k}"] == (total >= k)
    assert row["output"] == total % 2
    carry = total // 2
  assert sum(row["output"] << row["bit"] for row in rows) == 17
  assert (tmp_path / "adder.png").read_bytes().startswith(PNG)


def test_numbers_of_any_size(user_env, tmp_path):
  a, b = 3**12000, 7**5000  # 5725 and 4226 digits
  flags = f"--b={hex(b)}", "--bits=1", "--random_pairs=0"
  sys.set_int_max_str_digits(0)
  try:
    done = run(user_env, f"--a={a}", *flags, f"--workdir={tmp_path}")
    assert done.returncode == 0, done.stderr
    result = json.loads((tmp_path / "result.json").read_text())
    assert int(result["sum"]) == a + b
  finally:
    sys.set_int_max_str_digits(sys.int_info.default_max_str_digits)
  assert len(table_of(tmp_path)) == a.bit_length() + 1
  assert "more bits; metrics.csv has them" in done.stdout


@pytest.mark.sampled(1)
@pytest.mark.parametrize(
  ("flags", "message"),
  [
    (["--random_bit=3"], "Did you mean: random_bits"),
    (["--a=12b"], "--a=12b is no number; write it like"),
    (["--b=-3"], "--b=-3 is negative"),
  ],
)
def test_a_wrong_flag_is_named(user_env, flags, message):
  done = run(user_env, *flags)
  assert done.returncode != 0
  assert message in done.stdout + done.stderr
