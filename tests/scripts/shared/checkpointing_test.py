"""Checkpoints with and without a workdir, whole and damaged."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest


@dataclasses.dataclass(frozen=True)
class Config:
  steps: int = 3
  data_dir: str | None = dataclasses.field(
    default=None, metadata={"may_change": True}
  )


@pytest.fixture
def checkpointing(load):
  return load("shared.checkpointing")


def tree(value):
  # Empty arrays, which orbax refuses, and integers, too.
  return {
    "w": jnp.full((2, 3), value, jnp.float32),
    "empty": jnp.zeros((0, 2), jnp.float32),
    "count": jnp.int32(value),
  }


def test_without_a_workdir_nothing_is_kept(checkpointing):
  start = tree(1)
  with checkpointing.Checkpoints(None, Config()) as checkpoints:
    checkpoints.save(1, tree(2), ["known"])
    assert checkpoints.latest() is None
    restored, about = checkpoints.resume(start)
    assert restored is start and about is None
    with pytest.raises(RuntimeError, match="no workdir"):
      checkpoints.restore(1, start)


def test_resumes_what_was_saved_last(checkpointing, tmp_path):
  start = tree(0)
  with checkpointing.Checkpoints(tmp_path, Config()) as checkpoints:
    assert checkpoints.resume(start) == (start, None)
    for number in (1, 2):
      checkpoints.save(number, tree(number), {"rows": [number]})
  local = Config(data_dir="elsewhere")
  with checkpointing.Checkpoints(tmp_path, local) as checkpoints:
    restored, about = checkpoints.resume(start)
  assert about == {"rows": [2]}
  expected = tree(2)
  assert jax.tree.structure(restored) == jax.tree.structure(expected)
  for name, leaf in expected.items():
    assert restored[name].dtype == leaf.dtype
    np.testing.assert_array_equal(restored[name], leaf, strict=True)


def test_what_belongs_to_another_experiment_is_not_restored(
  checkpointing, tmp_path
):
  with checkpointing.Checkpoints(tmp_path, Config()) as checkpoints:
    checkpoints.save(4, tree(4), "digits")

  def check(number, about):
    raise ValueError(f"number {number} is about {about}")

  with checkpointing.Checkpoints(tmp_path, Config()) as checkpoints:
    with pytest.raises(ValueError, match="number 4 is about digits"):
      checkpoints.resume(tree(0), check)
  with checkpointing.Checkpoints(tmp_path, Config(steps=5)) as checkpoints:
    with pytest.raises(ValueError, match="--steps=3 there, --steps=5 now"):
      checkpoints.resume(tree(0))


def test_what_was_done_before_is_told(checkpointing):
  done_before = checkpointing.done_before
  assert done_before({"resumed_from": 1}) == " (1 of them done before)"
  assert done_before({"resumed_from": 0}) == ""


def largest_file(folder):
  files = (path for path in folder.rglob("*") if path.is_file())
  return max(files, key=lambda path: path.stat().st_size)


@pytest.mark.parametrize("part", ["arrays", "about"])
def test_a_damaged_checkpoint_gives_way_to_the_older_one(
  checkpointing, tmp_path, part
):
  start = {"w": jnp.zeros(2000, jnp.float32)}
  draws = jax.random.normal(jax.random.key(0), (2, 2000))
  with checkpointing.Checkpoints(tmp_path, Config()) as checkpoints:
    for number in (1, 2):
      tree = {"w": draws[number - 1]}
      checkpoints.save(number, tree, {"rows": [number]})

  def damage(number):
    file = largest_file(tmp_path / "checkpoint" / str(number) / part)
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 4
    file.write_bytes(bytes(content))

  damage(2)
  with checkpointing.Checkpoints(tmp_path, Config()) as checkpoints:
    restored, about = checkpoints.resume(start)
    assert about == {"rows": [1]}
    np.testing.assert_array_equal(restored["w"], draws[0])
    checkpoints.save(2, {"w": draws[1]}, {"rows": [2]})
  with checkpointing.Checkpoints(tmp_path, Config()) as checkpoints:
    assert checkpoints.resume(start)[1] == {"rows": [2]}
  damage(1)
  damage(2)
  with checkpointing.Checkpoints(tmp_path, Config()) as checkpoints:
    with pytest.raises(ValueError, match="damaged.*remove that folder"):
      checkpoints.resume(start)


def test_other_data_or_shapes_are_refused_and_leave_the_result(
  checkpointing, tmp_path
):
  data = {"x": np.arange(3), "text": "abc"}
  make = lambda data: checkpointing.Checkpoints(tmp_path, Config(), data)
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
