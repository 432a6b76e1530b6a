"""The page of trainability, as users make it."""

import csv
import json
import pathlib
import subprocess
import sys

import pytest

SCRIPT = pathlib.Path(__file__).parents[2] / "scripts" / "trainability.py"
PNG = b"\x89PNG"
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


def run(env, *flags):
  return subprocess.run(
    [sys.executable, str(SCRIPT), *flags],
    env=env,
    capture_output=True,
    text=True,
    timeout=280,
  )


@pytest.mark.slow
def test_every_system_has_its_rows(user_env, tmp_path):
  done = run(user_env, "--steps=3", f"--workdir={tmp_path}")
  assert not done.returncode, done.stderr
  result = json.loads((tmp_path / "result.json").read_text())
  assert result["false_claims"] == 1  # of D4
  with open(tmp_path / "metrics.csv", newline="") as file:
    rows = list(csv.DictReader(file))
  systems = {row["system"] for row in rows}
  assert systems == {f"D{i}" for i in range(1, 11)} | {"B2"}
  for row in rows:
    assert (row["holds"] == "False") == (row["kind"] == "claim")
  assert (tmp_path / "trainability.png").read_bytes()[:4] == PNG
  assert "often claimed" in done.stdout


@pytest.mark.slow
def test_a_users_module(user_env, tmp_path):
  file = tmp_path / "mine.py"
  file.write_text(MODULE)
  done = run(user_env, f"--module={file}:factory", f"--workdir={tmp_path}")
  assert not done.returncode, done.stderr
  assert "PROBLEM: dead Linear: the gradient is zero" in done.stdout
  assert (tmp_path / "module.png").read_bytes()[:4] == PNG
  assert json.loads((tmp_path / "result.json").read_text())["layers"] == 4


@pytest.mark.slow
def test_wrong_flags_are_errors(user_env, tmp_path):
  file = tmp_path / "mine.py"
  file.write_text("factory = lambda key: 3")
  for flag, message in (
    ("--systems=D1,E9", "there is no E9; choose from D1"),
    ("--module=nowhere.py:f", "nowhere.py is not a file"),
    (f"--module={file}:other", "defines no function other"),
    (f"--module={file}:factory", "must return a Flax module"),
  ):
    done = run(user_env, flag)
    assert done.returncode == 1 and message in done.stderr, done.stderr
