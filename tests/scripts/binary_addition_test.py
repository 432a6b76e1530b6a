"""Runs scripts/binary_addition.py as a user would."""

import sys

import pytest


@pytest.mark.slow
def test_adds_and_explains(script, tmp_path):
  script = script.at(tmp_path)
  done = script.run("--a=0b1011", "--b=6", "--bits=3")
  assert done.stderr == ""
  assert "11 + 6 = 17" in done.stdout
  assert "all 64 pairs of 3-bit numbers" in done.stdout
  assert "64 random pairs of 4096-bit numbers" in done.stdout
  carry = 0
  rows = [{k: int(v) for k, v in row.items()} for row in script.rows()]
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
  assert "adder" in script.figures()


@pytest.mark.slow
def test_numbers_of_any_size(script, tmp_path):
  a, b = 3**12000, 7**5000  # 5725 and 4226 digits
  flags = f"--b={hex(b)}", "--bits=1", "--random_pairs=0"
  script = script.at(tmp_path)
  sys.set_int_max_str_digits(0)
  try:
    done = script.run(f"--a={a}", *flags)
    assert int(script.result()["sum"]) == a + b
  finally:
    sys.set_int_max_str_digits(sys.int_info.default_max_str_digits)
  assert len(script.rows()) == a.bit_length() + 1
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
def test_a_wrong_flag_is_named(script, flags, message):
  assert message in script.fails(*flags)
