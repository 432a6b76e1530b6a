"""The page of trainability, as users make it."""

import pytest

MODULE = """
import jax
import jax.numpy as jnp
from flax import nnx

class Network(nnx.Module):
  def __init__(self, rngs):
    self.first = nnx.Linear(6, 8, rngs=rngs)
    self.dead = nnx.Linear(8, 8, rngs=rngs)
    self.dead.bias[...] = jnp.full(8, -100.0)
    self.last = nnx.Linear(8, 3, rngs=rngs)

  def __call__(self, x):
    x = jnp.tanh(self.first(x))
    return self.last(nnx.relu(self.dead(x)))

def factory(key):
  return Network(nnx.Rngs(0)), None, jax.random.normal(key, (1, 6))
"""


@pytest.mark.slow
def test_every_system_has_its_rows(script, tmp_path):
  script = script.at(tmp_path)
  done = script.run("--steps=3")
  assert script.result()["false_claims"] == 1  # of D4
  rows = script.rows()
  systems = {row["system"] for row in rows}
  assert systems == {f"D{i}" for i in range(1, 11)} | {"B2"}
  for row in rows:
    assert (row["holds"] == "False") == (row["kind"] == "claim")
  assert "trainability" in script.figures()
  assert "often claimed" in done.stdout


@pytest.mark.slow
def test_a_users_module(script, tmp_path):
  file = tmp_path / "mine.py"
  file.write_text(MODULE)
  script = script.at(tmp_path)
  done = script.run(f"--module={file}:factory")
  assert "PROBLEM: dead Linear: the gradient is zero" in done.stdout
  assert "module" in script.figures()
  assert script.result()["layers"] == 4


@pytest.mark.slow
def test_wrong_flags_are_errors(script, tmp_path):
  file = tmp_path / "mine.py"
  file.write_text("factory = lambda key: 3")
  for flag, message in (
    ("--systems=D1,E9", "there is no E9; choose from D1"),
    ("--module=nowhere.py:f", "nowhere.py is not a file"),
    (f"--module={file}:other", "defines no function other"),
    (f"--module={file}:factory", "must return a Flax module"),
  ):
    assert message in script.fails(flag)
