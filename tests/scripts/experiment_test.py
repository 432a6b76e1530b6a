"""What experiments share: checkpoints with and without a workdir, and files."""

import csv
import dataclasses
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from matplotlib.figure import Figure


@dataclasses.dataclass(frozen=True)
class Config:
  steps: int = 3
  data_dir: str | None = None


@pytest.fixture
def experiment(load):
  return load("experiment")


def tree(value):
  # Empty arrays, which orbax refuses, and integers, too.
  return {
    "w": jnp.full((2, 3), value, jnp.float32),
    "empty": jnp.zeros((0, 2), jnp.float32),
    "count": jnp.int32(value),
  }


def test_without_a_workdir_nothing_is_kept(experiment):
  start = tree(1)
  with experiment.Checkpoints(None, Config()) as checkpoints:
    checkpoints.save(1, tree(2), ["known"])
    assert checkpoints.latest() is None
    restored, about = checkpoints.resume(start)
    assert restored is start and about is None
    with pytest.raises(RuntimeError, match="no workdir"):
      checkpoints.restore(1, start)


def test_resumes_what_was_saved_last(experiment, tmp_path):
  start = tree(0)
  with experiment.Checkpoints(tmp_path, Config()) as checkpoints:
    assert checkpoints.resume(start) == (start, None)
    for number in (1, 2):
      checkpoints.save(number, tree(number), {"rows": [number]})
  local = Config(data_dir="elsewhere")
  with experiment.Checkpoints(tmp_path, local, ("data_dir",)) as checkpoints:
    restored, about = checkpoints.resume(start)
  assert about == {"rows": [2]}
  expected = tree(2)
  assert jax.tree.structure(restored) == jax.tree.structure(expected)
  for name, leaf in expected.items():
    assert restored[name].dtype == leaf.dtype
    np.testing.assert_array_equal(restored[name], leaf, strict=True)


def test_what_belongs_to_another_experiment_is_not_restored(
  experiment, tmp_path
):
  with experiment.Checkpoints(tmp_path, Config()) as checkpoints:
    checkpoints.save(4, tree(4), "digits")

  def check(number, about):
    raise ValueError(f"number {number} is about {about}")

  with experiment.Checkpoints(tmp_path, Config()) as checkpoints:
    with pytest.raises(ValueError, match="number 4 is about digits"):
      checkpoints.resume(tree(0), check)
  with experiment.Checkpoints(tmp_path, Config(steps=5)) as checkpoints:
    with pytest.raises(ValueError, match="--steps=3 there, --steps=5 now"):
      checkpoints.resume(tree(0))


def test_files_of_a_result(experiment, tmp_path):
  rows = [{"step": 0, "loss": 1.5}, {"step": 1, "loss": 1.0, "validation": 2.0}]
  result = {"steps": 2, "resumed_from": 1}
  experiment.write_results(tmp_path, rows, {"loss": Figure()}, result)
  with open(tmp_path / "metrics.csv", newline="") as file:
    assert [*csv.DictReader(file)] == [
      {"step": "0", "loss": "1.5", "validation": ""},
      {"step": "1", "loss": "1.0", "validation": "2.0"},
    ]
  assert (tmp_path / "loss.png").read_bytes().startswith(b"\x89PNG")
  assert json.loads((tmp_path / "result.json").read_text()) == result
  assert experiment.done_before(result) == " (1 of them done before)"
  assert experiment.done_before({"resumed_from": 0}) == ""
