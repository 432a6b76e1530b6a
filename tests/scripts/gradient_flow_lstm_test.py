"""Runs scripts/gradient_flow_lstm.py as a user would."""

import math

import numpy as np
import pytest


@pytest.mark.slow
def test_closed_gates_keep_the_adjoint(script, tmp_path):
  flags = "--steps=100", "--hidden_size=20", "--batch_size=3"
  flags = *flags, "--gate_bias=8", "--gate_bias=30"
  script = script.at(tmp_path)
  done = script.run(*flags, "--radius=0.8", "--radius=3")
  assert "every check passed" in done.stdout
  networks = script.result()["networks"]
  by_name = {network["network"]: network for network in networks}
  # By hand: c_bar is multiplied by about sigmoid(8) a step.
  held = by_name["LSTM, biases of 8"]["c_bar_ratio"]
  assert held == pytest.approx((1 + math.exp(-8)) ** -100, rel=0.03)
  open_gates = by_name["LSTM, biases of 30"]
  assert open_gates["c_bar_change"] < 1e-10
  assert open_gates["h_bar_largest"] < 1e-12
  # Forget gates of 1/2 and sigmoid(1), if inputs and states did nothing.
  half = by_name["LSTM as drawn, forget bias 0"]["c_bar_ratio"]
  assert -90 < math.log10(half) < -20
  assert by_name["plain, radius 0.8"]["h_bar_ratio"] < 0.8**99
  assert by_name["plain, radius 3"]["h_bar_ratio"] > 1e3

  rows = script.rows()
  assert [int(row["step"]) for row in rows] == list(range(1, 101))
  column = np.array([float(row["h_bar of plain, radius 0.8"]) for row in rows])
  assert column[-1] == pytest.approx(1)  # what was put in
  ratio = by_name["plain, radius 0.8"]["h_bar_ratio"]
  assert column[0] / column[-1] == pytest.approx(ratio)
  assert "gradient_flow" in script.figures()


@pytest.mark.slow
@pytest.mark.parametrize(
  ("flags", "message"),
  [
    # A single unit saturates, whatever its weight.
    (["--hidden_size=1"], "should explode"),
    (["--steps=1000", "--radius=50"], "lower --steps or --radius"),
  ],
)
def test_what_does_not_hold_fails(script, flags, message):
  done = script.attempt("--steps=50", "--batch_size=2", *flags)
  assert done.returncode == 1
  assert message in done.stderr
  assert "every check passed" not in done.stdout


@pytest.mark.sampled(1)
@pytest.mark.parametrize(
  ("flag", "message"),
  [
    ("--gate_biases=1", "Did you mean: gate_bias"),
    ("--steps=1", "steps"),
  ],
)
def test_a_wrong_flag_is_named(script, flag, message):
  assert message in script.fails(flag)
