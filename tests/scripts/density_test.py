"""The densities in the plane, and the script as users run it."""

import csv
import importlib
import json
import pathlib
import subprocess
import sys

import numpy as np
import pytest

SCRIPTS = pathlib.Path(__file__).parents[2] / "scripts"
PNG = b"\x89PNG"
SMALL = "--depth=2", "--hidden=8", "--batch_size=32"


@pytest.fixture
def script(monkeypatch):
  """Imports a module that scripts share."""
  monkeypatch.syspath_prepend(str(SCRIPTS))
  return importlib.import_module


def run(env, *flags):
  return subprocess.run(
    [sys.executable, str(SCRIPTS / "density.py"), *flags],
    env=env,
    capture_output=True,
    text=True,
    timeout=280,
  )


def result_of(workdir):
  return json.loads((workdir / "result.json").read_text())


def rows_of(workdir):
  with open(workdir / "metrics.csv", newline="") as file:
    return list(csv.DictReader(file))


def is_png(path):
  return path.read_bytes().startswith(PNG)


@pytest.mark.parametrize(
  "name", ["two_moons", "eight_gaussians", "rings", "pinwheel"]
)
def test_densities_are_those_of_their_samples(script, name):
  toy = script("two_dimensional").TOYS[name]
  size, side = 5.5, 440
  centres = ((np.arange(side) + 0.5) / side * 2 - 1) * size
  grid = np.stack(np.meshgrid(centres, centres), -1).reshape(-1, 2)
  log_p = np.concatenate([toy.log_prob(x) for x in np.split(grid, 40)])
  mass = np.exp(log_p) * (2 * size / side) ** 2
  np.testing.assert_allclose(mass.sum(), 1, atol=2e-4)

  count = 20_000
  x = toy.sample(np.random.default_rng(0), count)
  assert np.abs(x).max() < size
  log_p_of_samples = np.concatenate([toy.log_prob(c) for c in np.split(x, 40)])
  # What makes moments and the entropy, over samples and over the plane.
  for of_samples, of_plane in (
    (log_p_of_samples, log_p),
    *(
      (x[:, i] * x[:, j], grid[:, i] * grid[:, j]) for i, j in ((0, 1), (1, 1))
    ),
    *((np.cos(2 * x[:, i]), np.cos(2 * grid[:, i])) for i in (0, 1)),
  ):
    expected = np.sum(mass * of_plane, where=mass > 0)
    allowed = 4.5 * of_samples.std() / count**0.5
    assert abs(of_samples.mean() - expected) < allowed + 1e-3


def test_images_are_integers_again(script):
  models = script("density_models")
  from sklearn.datasets import load_digits

  images = models.load("digits", None, "glow", 0)
  assert images.levels == 17 and images.event == (8, 8, 1)
  together = np.concatenate([images.train, images.validation, images.test])
  plain = load_digits().images
  np.testing.assert_array_equal(
    np.sort(together.reshape(-1, 64).sum(1)), np.sort(plain.sum((1, 2)))
  )
  assert together.min() == 0 and together.max() == 16
  vectors = models.load("digits", None, "nice", 0)
  assert vectors.event == (64,) and vectors.image == (8, 8)
  np.testing.assert_array_equal(vectors.test, images.test.reshape(-1, 64))


def test_units(script):
  models = script("density_models")
  log_prob = np.float32([-64 * np.log(2)])  # a bit more than uniform on [0, 1]
  images = models.load("digits", None, "nice", 0)
  np.testing.assert_allclose(
    images.losses(log_prob), [np.log2(17) + 1], rtol=1e-6
  )
  points = models.load("rings", None, "nice", 0)
  np.testing.assert_array_equal(points.losses(log_prob), -log_prob)
  # 1980.50 nats of 784 bytes.
  assert models.PUBLISHED["mnist", "nice"] == pytest.approx(4.36, abs=5e-3)


@pytest.mark.slow
def test_learns_resumes_and_writes(user_env, tmp_path):
  workdir = tmp_path / "out"
  flags = "--data=rings", "--steps=40", *SMALL, f"--workdir={workdir}"
  done = run(user_env, *flags)
  assert done.returncode == 0, done.stderr
  assert done.stderr == ""  # no progress bar: it is not a terminal
  result, rows = result_of(workdir), rows_of(workdir)
  assert [int(row["step"]) for row in rows] == list(range(40))
  assert float(rows[-1]["loss"]) < float(rows[0]["loss"])
  assert sum(bool(row["validation_loss"]) for row in rows) == 10
  lacking = result["test_loss"] - result["true_entropy"]
  assert result["kl"] == pytest.approx(lacking, abs=1e-6) and lacking > 0
  assert 0.9 < result["integral"] < 1.001  # wide tails are outside the square
  assert max(result["inversion_error"], result["log_det_error"]) < 1e-5
  assert result["noise_lost"] == 0
  for name in ("loss", "density", "inversion"):
    assert is_png(workdir / f"{name}.png")

  # As if it had been killed after the ninth of ten checkpoints.
  (workdir / "checkpoint" / "40").rename(tmp_path / "gone")
  (workdir / "result.json").unlink()
  again = run(user_env, *flags)
  assert again.returncode == 0, again.stderr
  resumed = result_of(workdir)
  assert resumed["resumed_from"] == 36
  for name in ("test_loss", "kl", "integral", "inversion_error"):
    assert resumed[name] == result[name]
  other = run(user_env, *flags, "--seed=1")
  assert other.returncode == 1
  assert "--seed=0 there, --seed=1 now" in other.stderr


@pytest.mark.slow
def test_images(user_env, tmp_path):
  flags = "--model=nice", "--depth=2", "--hidden=8", "--steps=12"
  done = run(user_env, "--data=digits", *flags, f"--workdir={tmp_path}")
  assert done.returncode == 0, done.stderr
  result, rows = result_of(tmp_path), rows_of(tmp_path)
  assert "bits/dim" in done.stdout
  assert float(rows[-1]["loss"]) < float(rows[0]["loss"])
  assert result["test_loss"] < 7  # a grey level has 4.1 bits
  assert max(result["inversion_error"], result["log_det_error"]) < 1e-3
  for name in ("loss", "samples", "inversion"):
    assert is_png(tmp_path / f"{name}.png")


@pytest.mark.slow
def test_a_training_that_explodes_stops(user_env, tmp_path):
  flags = *SMALL, "--steps=5", "--learning_rate=1e38", f"--workdir={tmp_path}"
  done = run(user_env, *flags)
  assert done.returncode == 1
  assert "lower --learning_rate" in done.stderr
  assert not (tmp_path / "result.json").exists()


@pytest.mark.sampled(1)
@pytest.mark.parametrize(
  ("flags", "message"),
  [
    (["--dataset=digits"], "Did you mean: data"),
    (["--data_dir=images"], "holds no two_moons: they are drawn"),
    (["--data=digits", "--depth=3"], "RealNVP of images has 7 couplings"),
    (["--depth=3"], "expected an even number"),
  ],
)
def test_a_wrong_flag_is_named(user_env, flags, message):
  done = run(user_env, *flags)
  assert done.returncode != 0
  assert message in done.stdout + done.stderr
