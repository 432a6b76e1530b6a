"""Runs scripts/log_det.py as a user would."""

import math

import numpy as np
import pytest

USERS = """
import jax.numpy as jnp

def scale(key, size):
  return lambda x: 3 * x[::-1], (jnp.ones(size),)

def wrong(key, size):
  return lambda x: 3 * x
"""


def maps_of(result):
  return {(row["map"], row["size"]): row for row in result["maps"]}


@pytest.mark.slow
def test_the_determinant_of_momentum_comes_out(script, tmp_path):
  written = script.at(tmp_path)
  done = written.run("--map=momentum", "--size=7")
  assert "closed form: D log beta = -0.7375236096" in done.stdout
  assert "7 blocks of at most 1 x 1" in done.stdout
  result = written.result()
  row = maps_of(result)["momentum", 7]
  np.testing.assert_allclose(row["log_det"], 7 * math.log(0.9), rtol=1e-12)
  assert row["floats"] == 14 and row["sign"] == 1
  assert row["method"] == "structure"
  assert result["largest_difference_from_dense"] < 1e-12
  # By hand, for a million, with nothing dense.
  done = script.run("--map=adamw", "--size=1000000")
  value = 1e6 * math.log(0.9 * 0.99 * 0.99)
  assert f"closed form: {'D (log beta1 + log beta2'}" in done.stdout
  assert f"= {value:.6f}" in done.stdout
  assert "too large for a dense check" in done.stdout


@pytest.mark.slow
def test_all_maps_agree_with_dense_matrices(script, tmp_path):
  script = script.at(tmp_path)
  script.run("--size=4", "--size=9")
  result = script.result()
  rows = maps_of(result)
  assert len(rows) == 26
  for (name, _), row in rows.items():
    assert row["method"] == "structure", name
    assert abs(row["log_det"] - row["dense"]) < 1e-9, name
    assert row["sign"] == row["dense_sign"], name
  closed = {name for (name, _), row in rows.items() if row["formula"]}
  assert len(closed) == 13
  assert result["largest_difference_from_closed_form"] < 1e-9
  assert "log_det" in script.figures()


@pytest.mark.slow
def test_a_user_s_own_map(script, tmp_path):
  file = tmp_path / "maps.py"
  file.write_text(USERS)
  done = script.run(f"--map={file}:scale", "--size=5")
  assert f"log|det J| = {5 * math.log(3):.12g}, sign +1" in done.stdout
  for name, message in (
    ("wrong", "function and a tuple"),
    ("absent", "has no function 'absent'"),
  ):
    assert message in script.fails(f"--map={file}:{name}")


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
def test_a_wrong_flag_is_named(script, flag, message):
  assert message in script.fails(flag)
