"""Runs scripts/learn_schedule.py as a user would, and kills it."""

import numpy as np
import pytest

FIGURES = {"meta_training", "learning_rates", "momenta", "scales"}


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


@pytest.mark.slow
def test_killed_runs_end_in_the_bits_of_an_uninterrupted_one(script, tmp_path):
  total = 40
  flags = "--steps=10", f"--meta_steps={total}", "--batch_size=20"
  whole, broken = (script.at(tmp_path / name) for name in ("whole", "broken"))
  whole.run(*flags)
  folder = broken.workdir
  kills = [
    lambda: max(saved(folder), default=0) >= 2,  # between two saves, mostly
    lambda: max(saved(folder), default=0) >= 6 and being_saved(folder),
  ]
  for condition in kills:
    broken.kill_when(condition, *flags)
    known = max(saved(folder))
    # The table may lag by the row of a checkpoint just written.
    assert known - 1 <= len(broken.rows()) <= known
  broken.run(*flags)

  assert whole.result()["resumed_from"] == 0
  # Nothing that had been saved was computed again.
  assert broken.result()["resumed_from"] == known
  assert [int(row["meta_step"]) for row in broken.rows()] == list(range(total))
  assert broken.bits() == whole.bits()
  arrays, others = arrays_of(whole.workdir, total), arrays_of(folder, total)
  assert set(arrays) == set(others) and len(arrays) == 10
  for name, array in arrays.items():
    np.testing.assert_array_equal(array, others[name], strict=True)


@pytest.mark.slow
def test_learns_and_goes_on(script, tmp_path):
  script = script.at(tmp_path)
  flags = "--steps=60", "--meta_learning_rate=0.1"
  done = script.run(*flags, "--meta_steps=12", "--objective=validation")
  assert done.stderr == ""  # no progress bar: it is not a terminal
  assert "validation loss" in done.stdout
  result, rows = script.result(), script.rows()
  assert result["validation_loss_after"] < result["validation_loss_before"] / 3
  assert result["bits_per_parameter_step_before"] == 1.0
  after = result["bits_per_parameter_step_after"]
  assert 1.0 < after < result["buffer_bits_per_parameter_step"]
  assert float(rows[-1]["validation_loss"]) < float(rows[0]["validation_loss"])
  assert script.figures() >= FIGURES

  script.run(*flags, "--meta_steps=14", "--objective=validation")
  assert script.result()["resumed_from"] == 12
  assert script.rows()[:12] == rows and len(script.rows()) == 14

  error = script.fails(*flags, "--meta_steps=3", "--objective=validation")
  assert "14 meta iterations, more than --meta_steps=3" in error
  error = script.fails(*flags, "--meta_steps=14")
  assert "--objective=validation there, --objective=training" in error


@pytest.mark.slow
def test_a_loss_that_explodes_stops_the_run(script, tmp_path):
  flags = "--steps=10", "--meta_steps=3", "--meta_learning_rate=30"
  error = script.at(tmp_path).stops(*flags)
  assert "error: meta iteration 1 has" in error
  assert "lower --meta_learning_rate" in error
  assert saved(tmp_path) == [1]  # what was finite stays


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
def test_a_wrong_flag_is_named(script, flags, message):
  assert message in script.fails(*flags)
