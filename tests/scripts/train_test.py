"""Runs scripts/train.py as a user would."""

import math

import pytest


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
def test_trains_rewinds_and_resumes(script, tmp_path, monkeypatch):
  script = script.at(tmp_path)
  assert "receipt            OK" in script.run("--steps=40").stdout
  result, rows = script.result(), script.rows()
  check(result, steps=40)
  assert not result["resumed"] and result["test_accuracy"] > 0.5
  assert [int(row["step"]) for row in rows] == list(range(40))
  assert float(rows[-1]["loss"]) < float(rows[0]["loss"])
  # Both start from the same weights, up to the grid.
  assert float(rows[0]["loss"]) == pytest.approx(float(rows[0]["optax_loss"]))
  assert "loss" in script.figures()

  # The same again skips the training.
  (tmp_path / "result.json").unlink()
  script.run("--steps=40")
  resumed = script.result()
  check(resumed, steps=40)
  assert resumed["resumed"]
  for name in ("test_accuracy", "test_loss", "train_seconds_per_step"):
    assert resumed[name] == result[name]

  # Other flags, and another environment, are refused by name.
  error = script.fails("--steps=40", "--seed=1")
  assert "--seed=0 there, --seed=1 now" in error
  monkeypatch.setenv("XLA_FLAGS", "--xla_cpu_multi_thread_eigen=false")
  error = script.fails("--steps=40")
  assert "another environment" in error
  assert "xla_cpu_multi_thread_eigen" in error
  assert script.result() == resumed


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
def test_models_and_types(script, tmp_path, flags):
  script = script.at(tmp_path)
  script.run("--steps=8", *flags)
  check(script.result(), steps=8)


@pytest.mark.slow
def test_a_memory_budget_is_kept(script, tmp_path):
  flags = "--steps=2000", "--momentum=0.5", "--memory_budget=1500000"
  script = script.at(tmp_path)
  for _ in range(2):  # the checkpoint has the plan's segments too
    script.run(*flags)
    result = script.result()
    check(result, steps=2000, momentum=0.5)
    assert "run again" in result["plan"]
    assert result["buffer_bytes"] < 1500000
  assert result["resumed"]


@pytest.mark.slow
def test_weight_decay_costs_bits(script, tmp_path):
  script = script.at(tmp_path)
  script.run("--steps=8", "--weight_decay=0.1")
  result = script.result()
  assert result["receipt_ok"]
  bits = -math.log2(0.9) - math.log2(1 - 0.1 * 0.1)
  assert result["bits_bound"] == pytest.approx(bits, rel=1e-4)


@pytest.mark.slow
def test_a_loss_that_explodes_stops_the_run(script, tmp_path):
  error = script.at(tmp_path).stops("--steps=8", "--learning_rate=1e6")
  assert "error: the training failed" in error


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
def test_a_wrong_flag_is_named(script, flag, message):
  assert message in script.fails(flag)


def test_a_reversal_in_other_microbatches(script, tmp_path):
  script = script.at(tmp_path)
  flags = "--steps=20", "--batch_size=40", "--reverse_microbatches=4"
  more = "--reverse_devices=2", "--residue_bits=2"
  out = script.run(*flags, *more).stdout
  assert "receipt            OK" in out and "units of the grid" in out
  result = script.result()
  assert result["bits_kept"] > result["bits_spilled"] + 2
  assert 0 < result["margin_distance"] < result["margin_bound"] == 2
  assert not result["margin_is_narrow"]
  assert result["gradients_differ_share"] > 0.3
  assert set(script.figures()) == {"loss", "bits"}
