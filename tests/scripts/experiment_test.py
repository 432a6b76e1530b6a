"""What experiments share: checkpoints with and without a workdir, and files."""

import csv
import dataclasses
import json
import math
import subprocess
import sys

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
  return load("shared.output")


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


def largest_file(folder):
  files = (path for path in folder.rglob("*") if path.is_file())
  return max(files, key=lambda path: path.stat().st_size)


@pytest.mark.parametrize("part", ["arrays", "about"])
def test_a_damaged_checkpoint_gives_way_to_the_older_one(
  experiment, tmp_path, part
):
  start = {"w": jnp.zeros(2000, jnp.float32)}
  draws = jax.random.normal(jax.random.key(0), (2, 2000))
  with experiment.Checkpoints(tmp_path, Config()) as checkpoints:
    for number in (1, 2):
      tree = {"w": draws[number - 1]}
      checkpoints.save(number, tree, {"rows": [number]})

  def damage(number):
    file = largest_file(tmp_path / "checkpoint" / str(number) / part)
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 4
    file.write_bytes(bytes(content))

  damage(2)
  with experiment.Checkpoints(tmp_path, Config()) as checkpoints:
    restored, about = checkpoints.resume(start)
    assert about == {"rows": [1]}
    np.testing.assert_array_equal(restored["w"], draws[0])
    checkpoints.save(2, {"w": draws[1]}, {"rows": [2]})
  with experiment.Checkpoints(tmp_path, Config()) as checkpoints:
    assert checkpoints.resume(start)[1] == {"rows": [2]}
  damage(1)
  damage(2)
  with experiment.Checkpoints(tmp_path, Config()) as checkpoints:
    with pytest.raises(ValueError, match="damaged.*remove that folder"):
      checkpoints.resume(start)


def test_other_data_or_shapes_are_refused_and_leave_the_result(
  experiment, tmp_path
):
  data = {"x": np.arange(3), "text": "abc"}
  make = lambda data: experiment.Checkpoints(tmp_path, Config(), (), data)
  with make(data) as checkpoints:
    checkpoints.save(1, tree(1), None)
  (tmp_path / "result.json").write_text("{}")
  for other in (
    data | {"text": "abd"},
    data | {"x": np.arange(3)[::-1]},
    data | {"x": np.arange(3.0)},
  ):
    with make(other) as checkpoints:
      with pytest.raises(ValueError, match="a run of other data"):
        checkpoints.resume(tree(0))
  assert (tmp_path / "result.json").exists()
  with make(data) as checkpoints:
    with pytest.raises(ValueError, match="other shapes or types"):
      checkpoints.resume(tree(0) | {"w": jnp.zeros(6)})
    checkpoints.resume(tree(0))
  assert not (tmp_path / "result.json").exists()


def test_a_result_is_finite_and_removed_first(experiment, tmp_path):
  folder = experiment.folder(str(tmp_path))
  with pytest.raises(ValueError, match=r"losses\[1\]=nan, of.a=inf is not"):
    result = {"losses": [1.0, math.nan], "of": {"a": math.inf}}
    experiment.write_results(folder, [{"step": 0}], {}, result)
  assert not (folder / "metrics.csv").exists()
  experiment.write_results(folder, [{"step": 0}], {}, {"loss": 1.0})
  assert experiment.folder(str(tmp_path)) == folder
  assert not (folder / "result.json").exists()
  with pytest.raises(ValueError, match="--workdir= names no folder"):
    experiment.folder("")


def test_one_process_at_a_time(experiment, tmp_path):
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
    experiment.folder(str(tmp_path))
  other.communicate()
  assert experiment.folder(str(tmp_path)) == tmp_path
