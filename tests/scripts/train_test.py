"""Runs scripts/train.py as a user would."""

import csv
import json
import math
import pathlib
import subprocess
import sys

import pytest

SCRIPT = pathlib.Path(__file__).parents[2] / "scripts" / "train.py"
PNG = b"\x89PNG"


def run(user_env, *flags, **environment):
  return subprocess.run(
    [sys.executable, str(SCRIPT), *flags],
    env={**user_env, **environment},
    capture_output=True,
    text=True,
    timeout=280,
  )


def result_of(workdir):
  return json.loads((workdir / "result.json").read_text())


def check(result, steps, momentum=0.9):
  """What holds for every reversed run without decay."""
  assert result["receipt_ok"] and result["weights_equal_those_drawn"]
  assert result["receipt_diverged_at"] == -1
  assert result["steps"] == steps
  expected = steps * result["parameters"] * math.log(momentum)
  assert result["log_det"] == pytest.approx(expected, rel=1e-5)
  assert result["bits_bound"] == pytest.approx(-math.log2(momentum), rel=1e-5)
  for name in ("train", "rewind", "optax"):
    assert result[f"{name}_seconds_per_step"] > 0
    assert result[f"{name}_peak_bytes"] > 0


@pytest.mark.slow
def test_trains_rewinds_and_resumes(user_env, tmp_path):
  flags = "--steps=40", f"--workdir={tmp_path}"
  first = run(user_env, *flags)
  assert first.returncode == 0, first.stderr
  assert "receipt            OK" in first.stdout
  result = result_of(tmp_path)
  check(result, steps=40)
  assert not result["resumed"] and result["test_accuracy"] > 0.5
  with open(tmp_path / "metrics.csv", newline="") as file:
    rows = list(csv.DictReader(file))
  assert [int(row["step"]) for row in rows] == list(range(40))
  assert float(rows[-1]["loss"]) < float(rows[0]["loss"])
  # Both start from the same weights, up to the grid.
  assert float(rows[0]["loss"]) == pytest.approx(float(rows[0]["optax_loss"]))
  assert (tmp_path / "loss.png").read_bytes().startswith(PNG)

  # The same again skips the training.
  (tmp_path / "result.json").unlink()
  second = run(user_env, *flags)
  assert second.returncode == 0, second.stderr
  resumed = result_of(tmp_path)
  check(resumed, steps=40)
  assert resumed["resumed"]
  for name in ("test_accuracy", "test_loss", "train_seconds_per_step"):
    assert resumed[name] == result[name]

  # Other flags, and another environment, are refused by name.
  other = run(user_env, *flags, "--seed=1")
  assert other.returncode == 1
  assert "--seed=0 there, --seed=1 now" in other.stderr
  xla_flags = user_env["XLA_FLAGS"] + " --xla_cpu_multi_thread_eigen=false"
  moved = run(user_env, *flags, XLA_FLAGS=xla_flags)
  assert moved.returncode == 1
  assert "another environment" in moved.stderr
  assert "xla_cpu_multi_thread_eigen" in moved.stderr
  assert result_of(tmp_path) == resumed


@pytest.mark.slow
@pytest.mark.parametrize(
  "flags",
  [
    ("--model=conv", "--batch_size=20"),
    ("--model=lstm", "--dtype=bfloat16"),
    ("--model=attention", "--clip=1.0"),
  ],
  ids=" ".join,
)
def test_models_and_types(user_env, tmp_path, flags):
  done = run(user_env, "--steps=8", f"--workdir={tmp_path}", *flags)
  assert done.returncode == 0, done.stderr
  check(result_of(tmp_path), steps=8)


@pytest.mark.slow
def test_a_memory_budget_is_kept(user_env, tmp_path):
  flags = "--steps=2000", "--momentum=0.5", "--memory_budget=1500000"
  flags = *flags, f"--workdir={tmp_path}"
  for _ in range(2):  # the checkpoint has the plan's segments too
    done = run(user_env, *flags)
    assert done.returncode == 0, done.stderr
    result = result_of(tmp_path)
    check(result, steps=2000, momentum=0.5)
    assert "run again" in result["plan"]
    assert result["buffer_bytes"] < 1500000
  assert result["resumed"]


@pytest.mark.slow
def test_weight_decay_costs_bits(user_env, tmp_path):
  flags = "--steps=8", "--weight_decay=0.1", f"--workdir={tmp_path}"
  assert run(user_env, *flags).returncode == 0
  result = result_of(tmp_path)
  assert result["receipt_ok"]
  bits = -math.log2(0.9) - math.log2(1 - 0.1 * 0.1)
  assert result["bits_bound"] == pytest.approx(bits, rel=1e-4)


@pytest.mark.slow
def test_a_loss_that_explodes_stops_the_run(user_env, tmp_path):
  done = run(
    user_env, "--steps=8", "--learning_rate=1e6", f"--workdir={tmp_path}"
  )
  assert done.returncode == 1
  assert "error: the training failed" in done.stderr
  assert not (tmp_path / "result.json").exists()


@pytest.mark.sampled(1)
@pytest.mark.parametrize(
  ("flag", "message"),
  [
    ("--learning_rat=1", "Did you mean: learning_rate"),
    ("--model=cnn", "<attention|conv|lstm|mlp>"),
    ("--steps=0", "steps"),
    ("digits", "flags begin --"),
  ],
)
def test_a_wrong_flag_is_named(user_env, flag, message):
  done = run(user_env, flag)
  assert done.returncode != 0
  assert message in done.stdout + done.stderr
