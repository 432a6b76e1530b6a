"""Runs scripts/log_det.py as a user would."""

import json
import math
import pathlib
import subprocess
import sys

import numpy as np
import pytest

SCRIPT = pathlib.Path(__file__).parents[2] / "scripts" / "log_det.py"
PNG = b"\x89PNG"

USERS = """
import jax.numpy as jnp

def scale(key, size):
  return lambda x: 3 * x[::-1], (jnp.ones(size),)

def wrong(key, size):
  return lambda x: 3 * x
"""


def run(env, *flags):
  return subprocess.run(
    [sys.executable, str(SCRIPT), *flags],
    env=env,
    capture_output=True,
    text=True,
    timeout=280,
  )


def rows_of(workdir):
  result = json.loads((workdir / "result.json").read_text())
  return result, {(row["map"], row["size"]): row for row in result["maps"]}


@pytest.mark.slow
def test_the_determinant_of_momentum_comes_out(user_env, tmp_path):
  done = run(user_env, "--map=momentum", "--size=7", f"--workdir={tmp_path}")
  assert done.returncode == 0, done.stderr
  assert "closed form: D log beta = -0.7375236096" in done.stdout
  assert "7 blocks of at most 1 x 1" in done.stdout
  result, rows = rows_of(tmp_path)
  row = rows["momentum", 7]
  np.testing.assert_allclose(row["log_det"], 7 * math.log(0.9), rtol=1e-12)
  assert row["floats"] == 14 and row["sign"] == 1
  assert row["method"] == "structure"
  assert result["largest_difference_from_dense"] < 1e-12
  # By hand, for a million, with nothing dense.
  done = run(user_env, "--map=adamw", "--size=1000000")
  assert done.returncode == 0, done.stderr
  value = 1e6 * math.log(0.9 * 0.99 * 0.99)
  assert f"closed form: {'D (log beta1 + log beta2'}" in done.stdout
  assert f"= {value:.6f}" in done.stdout
  assert "too large for a dense check" in done.stdout


@pytest.mark.slow
def test_all_maps_agree_with_dense_matrices(user_env, tmp_path):
  done = run(user_env, "--size=4", "--size=9", f"--workdir={tmp_path}")
  assert done.returncode == 0, done.stderr
  result, rows = rows_of(tmp_path)
  assert len(rows) == 26
  for (name, _), row in rows.items():
    assert row["method"] == "structure", name
    assert abs(row["log_det"] - row["dense"]) < 1e-9, name
    assert row["sign"] == row["dense_sign"], name
  closed = {name for (name, _), row in rows.items() if row["formula"]}
  assert len(closed) == 13
  assert result["largest_difference_from_closed_form"] < 1e-9
  assert (tmp_path / "log_det.png").read_bytes().startswith(PNG)


@pytest.mark.slow
def test_a_user_s_own_map(user_env, tmp_path):
  file = tmp_path / "maps.py"
  file.write_text(USERS)
  done = run(user_env, f"--map={file}:scale", "--size=5")
  assert done.returncode == 0, done.stderr
  assert f"log|det J| = {5 * math.log(3):.12g}, sign +1" in done.stdout
  for name, message in (
    ("wrong", "function and a tuple"),
    ("absent", "has no function 'absent'"),
  ):
    done = run(user_env, f"--map={file}:{name}")
    assert done.returncode == 1
    assert message in done.stderr


@pytest.mark.sampled(1)
@pytest.mark.parametrize(
  ("flag", "message"),
  [
    ("--maps=sgd", "Did you mean: map"),
    ("--map=moment", "choose one of sgd, momentum"),
    ("--map=absent.py:f", "absent.py is not a file"),
    ("--size=1", "size"),
  ],
)
def test_a_wrong_flag_is_named(user_env, flag, message):
  done = run(user_env, flag)
  assert done.returncode != 0
  assert message in done.stdout + done.stderr
