"""The models of images by name, and the script as users run it."""

import csv
import importlib.util
import json
import math
import pathlib
import subprocess
import sys

import jax
import numpy as np
import pytest

SCRIPTS = pathlib.Path(__file__).parents[2] / "scripts"
PNG = b"\x89PNG"
SMALL = (
  "--model=pixelcnn",
  "--hidden_size=8",
  "--depth=2",
  "--steps=10",
  "--batch_size=16",
)


@pytest.fixture(scope="module")
def models():
  path = SCRIPTS / "autoregressive_models.py"
  spec = importlib.util.spec_from_file_location("script_image_models", path)
  module = importlib.util.module_from_spec(spec)
  sys.path.insert(0, str(SCRIPTS))
  try:
    spec.loader.exec_module(module)
  finally:
    sys.path.remove(str(SCRIPTS))
  return module


def run(env, *flags):
  return subprocess.run(
    [sys.executable, str(SCRIPTS / "autoregressive_images.py"), *flags],
    env=env,
    capture_output=True,
    text=True,
    timeout=280,
  )


def result_of(workdir):
  return json.loads((workdir / "result.json").read_text())


def rows_of(path):
  with open(path, newline="") as file:
    return list(csv.DictReader(file))


NAMES = (
  "pixelcnn",
  "gated_pixelcnn",
  "row_lstm",
  "diagonal_bilstm",
  "mdrnn",
  "wavenet",
  "lstm",
  "transformer",
)


def test_every_model_has_a_size(models):
  assert tuple(models.SIZES) == NAMES
  images = np.zeros((1, 8, 8), np.int32)
  for name, size in models.SIZES.items():
    model = models.make(name, 17, size)
    shapes = jax.eval_shape(model.init, jax.random.key(0), images)
    count = sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(shapes))
    assert 35_000 < count < 65_000, name


def test_shapes_of_every_model(models):
  images = np.zeros((2, 4, 5), np.int32)
  for name in NAMES:
    for levels, conditioned in ((2, False), (17, True)):
      model = models.make(name, levels, models.Size(8, 2), conditioned)
      label = np.zeros(2, np.int32) if conditioned else None

      def whole(key, model=model, label=label):
        params = model.init(key, images)
        drawn = model.complete(key, params, images, 2, label)
        return model.log_prob(params, images, label), drawn

      log_prob, drawn = jax.eval_shape(whole, jax.random.key(0))
      assert log_prob.shape == (2,) and drawn.shape == images.shape


def test_independent_pixels(models):
  rng = np.random.default_rng(0)
  train, test = (rng.integers(0, 2, (size, 2, 2)) for size in (9, 3))
  labels = np.zeros(9, np.int32)
  data = models.Data(train, train, test, labels, labels, labels[:3], levels=2)
  nats = 0.0
  for image in test:
    for i, j in np.ndindex(2, 2):
      often = (train[:, i, j] == image[i, j]).sum() + 1
      nats -= math.log(often / 11) / 3
  assert models.independent(data) == pytest.approx(nats)
  assert data.unit == "nats"
  assert data._replace(levels=4).in_unit(4 * math.log(2)) == pytest.approx(1)


@pytest.mark.slow
def test_learns_resumes_and_writes(user_env, tmp_path):
  workdir = tmp_path / "out"
  flags = *SMALL, f"--workdir={workdir}"
  done = run(user_env, *flags)
  assert done.returncode == 0, done.stderr
  assert done.stderr == ""  # no progress bar: it is not a terminal
  assert "bits/dim" in done.stdout
  result = result_of(workdir)
  rows = rows_of(workdir / "metrics.csv")
  assert [int(row["step"]) for row in rows] == list(range(10))
  assert float(rows[-1]["loss"]) < float(rows[0]["loss"])
  assert result["test_loss"] < math.log2(17)
  for name in ("loss", "samples", "completions"):
    assert (workdir / f"{name}.png").read_bytes().startswith(PNG)

  # As if it had been killed after the ninth of ten checkpoints.
  (workdir / "checkpoint" / "10").rename(tmp_path / "gone")
  (workdir / "result.json").unlink()
  again = run(user_env, *flags)
  assert again.returncode == 0, again.stderr
  resumed = result_of(workdir)
  assert resumed["resumed_from"] == 9
  assert resumed["test_loss"] == result["test_loss"]
  losses = [row["loss"] for row in rows_of(workdir / "metrics.csv")]
  assert losses == [row["loss"] for row in rows]

  other = run(user_env, *flags, "--seed=1")
  assert other.returncode == 1
  assert "--seed=0 there, --seed=1 now" in other.stderr


@pytest.mark.sampled(1)
@pytest.mark.parametrize(
  ("flags", "message"),
  [
    (["--models=lstm"], "Did you mean: model"),
    (["--data=binary_mnist"], "needs --data_dir"),
    (["--model=transformer", "--hidden_size=6"], "width=6 and num_heads=4"),
  ],
)
def test_a_wrong_flag_is_named(user_env, flags, message):
  done = run(user_env, *flags)
  assert done.returncode != 0
  assert message in done.stdout + done.stderr
