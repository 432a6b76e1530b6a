"""Runs scripts/learn_schedule.py as a user would, and kills it."""

import csv
import json
import pathlib
import subprocess
import sys
import time

import numpy as np
import pytest

SCRIPT = pathlib.Path(__file__).parents[2] / "scripts" / "learn_schedule.py"
PNG = b"\x89PNG"
FIGURES = "meta_training", "learning_rates", "momenta", "scales"
# All that two runs of the same bits may differ in.
VARIES = {"seconds", "seconds_per_meta_step", "resumed_from"}


def command(*flags):
  return [sys.executable, str(SCRIPT), *flags]


def run(env, *flags):
  return subprocess.run(
    command(*flags), env=env, capture_output=True, text=True, timeout=280
  )


def result_of(workdir):
  return json.loads((workdir / "result.json").read_text())


def rows_of(workdir):
  with open(workdir / "metrics.csv", newline="") as file:
    return list(csv.DictReader(file))


def steady(record):
  return {k: v for k, v in record.items() if k not in VARIES}


def saved(workdir):
  """Numbers of the checkpoints that are complete."""
  folder = workdir / "checkpoint"
  names = [path.name for path in folder.glob("*")] if folder.exists() else []
  return [int(name) for name in names if name.isdigit()]


def being_saved(workdir):
  return list((workdir / "checkpoint").glob("*tmp*"))


def arrays_of(workdir, number):
  import orbax.checkpoint as ocp

  with ocp.CheckpointManager(workdir / "checkpoint") as manager:
    return manager.restore(
      number, args=ocp.args.Composite(arrays=ocp.args.StandardRestore())
    )["arrays"]


def kill_when(condition, env, *flags):
  """Starts the script and sends SIGKILL as soon as condition() holds."""
  process = subprocess.Popen(
    command(*flags),
    env=env,
    stdout=subprocess.DEVNULL,
    stderr=subprocess.DEVNULL,
  )
  try:
    deadline = time.monotonic() + 200
    while not condition():
      assert process.poll() is None, "the script ended before it was killed"
      assert time.monotonic() < deadline, "the moment never came"
      time.sleep(0.0005)
  finally:
    process.kill()
    process.wait()


@pytest.mark.slow
def test_killed_runs_end_in_the_bits_of_an_uninterrupted_one(
  user_env, tmp_path
):
  total = 40
  flags = "--steps=10", f"--meta_steps={total}", "--batch_size=20"
  whole, broken = tmp_path / "whole", tmp_path / "broken"
  done = run(user_env, *flags, f"--workdir={whole}")
  assert done.returncode == 0, done.stderr

  flags_broken = *flags, f"--workdir={broken}"
  kills = [
    lambda: max(saved(broken), default=0) >= 2,  # between two saves, mostly
    lambda: max(saved(broken), default=0) >= 6 and being_saved(broken),
  ]
  for condition in kills:
    kill_when(condition, user_env, *flags_broken)
    known = max(saved(broken))
    rows = rows_of(broken)
    # The table may lag by the row of a checkpoint just written.
    assert known - 1 <= len(rows) <= known
    assert not (broken / "result.json").exists()
  done = run(user_env, *flags_broken)
  assert done.returncode == 0, done.stderr

  expected, result = result_of(whole), result_of(broken)
  assert expected["resumed_from"] == 0
  # Nothing that had been saved was computed again.
  assert result["resumed_from"] == known
  assert steady(result) == steady(expected)
  rows = rows_of(broken)
  assert [int(row["meta_step"]) for row in rows] == list(range(total))
  assert [*map(steady, rows)] == [*map(steady, rows_of(whole))]
  arrays, others = arrays_of(whole, total), arrays_of(broken, total)
  assert set(arrays) == set(others) and len(arrays) == 10
  for name, array in arrays.items():
    np.testing.assert_array_equal(array, others[name], strict=True)


@pytest.mark.slow
def test_learns_and_goes_on(user_env, tmp_path):
  flags = "--steps=60", f"--workdir={tmp_path}", "--meta_learning_rate=0.1"
  done = run(user_env, *flags, "--meta_steps=12", "--objective=validation")
  assert done.returncode == 0, done.stderr
  assert done.stderr == ""  # no progress bar: it is not a terminal
  assert "validation loss" in done.stdout
  result = result_of(tmp_path)
  assert result["validation_loss_after"] < result["validation_loss_before"] / 3
  assert result["bits_per_parameter_step_before"] == 1.0
  after = result["bits_per_parameter_step_after"]
  assert 1.0 < after < result["buffer_bits_per_parameter_step"]
  rows = rows_of(tmp_path)
  assert float(rows[-1]["validation_loss"]) < float(rows[0]["validation_loss"])
  # It compiles once: all iterations but the first take a fraction of it.
  assert float(rows[1]["seconds"]) < float(rows[0]["seconds"]) / 2
  for name in FIGURES:
    assert (tmp_path / f"{name}.png").read_bytes().startswith(PNG)

  more = run(user_env, *flags, "--meta_steps=14", "--objective=validation")
  assert more.returncode == 0, more.stderr
  assert result_of(tmp_path)["resumed_from"] == 12
  assert rows_of(tmp_path)[:12] == rows and len(rows_of(tmp_path)) == 14

  fewer = run(user_env, *flags, "--meta_steps=3", "--objective=validation")
  assert fewer.returncode == 1
  assert "14 meta iterations, more than --meta_steps=3" in fewer.stderr
  other = run(user_env, *flags, "--meta_steps=14")
  assert other.returncode == 1
  assert "--objective=validation there, --objective=training" in other.stderr


@pytest.mark.slow
def test_a_loss_that_explodes_stops_the_run(user_env, tmp_path):
  done = run(
    user_env,
    "--steps=10",
    "--meta_steps=3",
    "--meta_learning_rate=30",
    f"--workdir={tmp_path}",
  )
  assert done.returncode == 1
  assert "error: meta iteration 1 has" in done.stderr
  assert "lower --meta_learning_rate" in done.stderr
  assert saved(tmp_path) == [1]  # what was finite stays
  assert not (tmp_path / "result.json").exists()


@pytest.mark.sampled(1)
@pytest.mark.parametrize(
  ("flags", "message"),
  [
    (["--meta_step=3"], "Did you mean: meta_steps"),
    (["--meta_steps=0"], "meta_steps"),
    (["--dataset=cifar"], "<digits|mnist|fashion_mnist|idx>"),
    (["--dataset=mnist"], "needs --data_dir"),
    (["--data_dir=images"], "--dataset=mnist"),
    (["--dataset=mnist", "--data_dir=absent"], "not a folder"),
    (["digits"], "flags begin --"),
  ],
)
def test_a_wrong_flag_is_named(user_env, flags, message):
  done = run(user_env, *flags)
  assert done.returncode != 0
  assert message in done.stdout + done.stderr
