"""Runs scripts/maclaurin2015.py as a user would, and checks its pieces."""

import csv
import importlib
import io
import json
import pathlib
import subprocess
import sys
import zipfile

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

SCRIPTS = pathlib.Path(__file__).parents[2] / "scripts"
SCRIPT = SCRIPTS / "maclaurin2015.py"
PNG = b"\x89PNG"


@pytest.fixture
def script(monkeypatch):
  """Imports a module that scripts share."""
  monkeypatch.syspath_prepend(str(SCRIPTS))
  return importlib.import_module


def run(env, *flags):
  return subprocess.run(
    [sys.executable, str(SCRIPT), *flags],
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


@pytest.mark.parametrize(
  ("flags", "key", "rows", "images"),
  [
    (["--figure=2", "--meta_steps=2"], "test_loss_after", 3, 4),
    (["--figure=5", "--seeds=2"], "loss", 3, 1),
    (["--figure=8", "--meta_steps=2"], "validation_after", 2, 3),
    (["--figure=9", "--meta_steps=2"], "validation_after", 2, 2),
    (["--figure=10", "--meta_steps=1"], "test_learned", 1, 2),
    (["--figure=11", "--points=2"], "difference_error", 9, 1),
  ],
)
@pytest.mark.slow
def test_every_figure_is_made(user_env, tmp_path, flags, key, rows, images):
  done = run(user_env, *flags, "--steps=3", f"--workdir={tmp_path}")
  assert done.returncode == 0, done.stderr
  assert done.stderr == ""
  assert "published | measured" in done.stdout
  result = result_of(tmp_path)
  assert np.isfinite(result[key])
  assert all(not isinstance(value, dict | list) for value in result.values())
  assert len(rows_of(tmp_path)) == rows
  found = list(tmp_path.glob("*.png"))
  assert len(found) == images
  assert all(path.read_bytes().startswith(PNG) for path in found)


@pytest.mark.slow
def test_the_toy_has_the_stored_losses(user_env, tmp_path):
  done = run(user_env, "--figure=1", f"--workdir={tmp_path}")
  assert done.returncode == 0, done.stderr
  result = result_of(tmp_path)
  expected = {
    "loss_start": 630.42,
    "loss_before_last_step_0": 414.85,
    "loss_before_last_step_1": 376.70,
    "loss_before_last_step_2": 347.38,
    "loss_final_0": 395.30,
    "loss_final_1": 356.57,
    "loss_final_2": 356.34,
  }
  for key, value in expected.items():
    assert result[key] == pytest.approx(value, abs=0.01)
    assert result[f"published_{key}"] == value
  assert (tmp_path / "figure_1.png").read_bytes().startswith(PNG)
  assert len(rows_of(tmp_path)) == 3 * 51


@pytest.mark.slow
def test_meta_learning_descends(user_env, tmp_path):
  """With all of the paper's settings, on the digits."""
  for figure, loss, factor in (("8", "validation", 2), ("9", "validation", 2)):
    workdir = tmp_path / figure
    done = run(user_env, f"--figure={figure}", f"--workdir={workdir}")
    assert done.returncode == 0, done.stderr
    result = result_of(workdir)
    assert result[f"{loss}_after"] < result[f"{loss}_before"] / factor


@pytest.mark.slow
def test_sharing_goes_on_where_it_stopped(user_env, tmp_path):
  flags = "--figure=10", "--steps=5"
  whole, broken = tmp_path / "whole", tmp_path / "broken"
  for number, workdir in ((2, whole), (1, broken), (2, broken)):
    done = run(
      user_env, *flags, f"--meta_steps={number}", f"--workdir={workdir}"
    )
    assert done.returncode == 0, done.stderr
  results = [result_of(workdir) for workdir in (whole, broken)]
  for result in results:
    del result["seconds"]
  assert results[0] == results[1]
  assert rows_of(whole) == rows_of(broken)
  fewer = run(user_env, *flags, "--meta_steps=1", f"--workdir={whole}")
  assert fewer.returncode == 1
  assert "holds 2 meta iterations, more than --meta_steps=1" in fewer.stderr


@pytest.mark.sampled(1)
@pytest.mark.parametrize(
  ("flags", "message"),
  [
    (["--figure=3"], "<1|2|5|8|9|10|11>"),
    (["--figure=1", "--points=3"], "figure 1 takes --meta_steps, --steps"),
    (["--meta_steps=3"], "figure 11 takes --points, --steps"),
    (["--points=1001"], "points"),
    (["--figures=2"], "Did you mean: figure"),
    (["--dataset=mnist"], "needs --data_dir"),
    (["--data_dir=images"], "come with scikit-learn"),
    (["--dataset=omniglot"], "is for --figure=10"),
    (["--figure=10", "--dataset=mnist"], "--dataset=omniglot or digits"),
    (["--figure=10", "--dataset=omniglot"], "needs --data_dir"),
    (["--figure=10", "--characters=3"], "needs --dataset=omniglot"),
    (["digits"], "flags begin --"),
  ],
)
def test_a_wrong_flag_is_named(user_env, flags, message):
  done = run(user_env, *flags)
  assert done.returncode != 0
  assert message in done.stdout + done.stderr


def test_early_adam_is_the_formula(script):
  rng = np.random.default_rng(0)
  gradients = rng.normal(size=(6, 5)) * 1e-3
  x, m, v = np.zeros(5), np.zeros(5), np.zeros(5)
  optimizer = script("schedules").early_adam(0.04)
  params = jnp.zeros(5)
  state = optimizer.init(params)
  for i, g in enumerate(gradients):
    weight = 1 - 0.9 * 1e-4**i
    m = weight * g + (1 - weight) * m
    v = 0.01 * g**2 + 0.99 * v
    x = x - 0.04 * (m / (1 - 0.9 ** (i + 1))) / (
      np.sqrt(v / (1 - 0.99 ** (i + 1))) + 1e-4
    )
    updates, state = optimizer.update(jnp.asarray(g, jnp.float32), state)
    params = optax.apply_updates(params, updates)
    np.testing.assert_allclose(params, x, rtol=2e-5)
  # A gradient that stays the same moves by .04, then 5.3 times as much.
  state = optimizer.init(params)
  moves = []
  for _ in range(3):
    updates, state = optimizer.update(jnp.ones(5), state)
    moves.append(-float(updates[0]))
  ratios = [1, 1 / (1 - 0.9**2), 1 / (1 - 0.9**3)]
  np.testing.assert_allclose(moves, 0.04 * np.array(ratios), rtol=3e-4)


def digits(count):
  from sklearn.datasets import load_digits

  data = load_digits()
  return data.data[:count] / 16, data.target[:count].astype(np.int32)


@pytest.mark.slow
def test_the_chaos_sweep_trains_as_numpy_does(script, x64):
  images, labels = digits(500)
  chaos = script("maclaurin_chaos").chaos_objective
  objective = jax.jit(jax.value_and_grad(chaos(images, labels, 6, 0)))
  loss, derivative = objective(jnp.float64(0.7))

  sizes = [64, 200, 50, 10]
  draws = np.random.RandomState(0)
  count = sum((a + 1) * b for a, b in zip(sizes[:-1], sizes[1:], strict=True))
  draws.randn(count)  # the velocity, times zero
  vector = draws.randn(count) * np.exp(-2)
  params, at = [], 0
  for a, b in zip(sizes[:-1], sizes[1:], strict=True):
    for shape in ((a, b), (b,)):
      size = int(np.prod(shape))
      params.append(vector[at : at + size].reshape(shape))
      at += size

  def loss_and_gradient(params, x, y):
    activities = [x]
    for w, b in zip(params[::2], params[1::2], strict=True):
      scores = activities[-1] @ w + b
      activities.append(np.tanh(scores))
    scores = scores - scores.max(1, keepdims=True)
    logs = scores - np.log(np.exp(scores).sum(1, keepdims=True))
    rows = np.arange(len(y))
    bar = np.exp(logs)
    bar[rows, y] -= 1
    bar /= len(y)
    bars = []
    for i in (2, 1, 0):
      bars = [activities[i].T @ bar, bar.sum(0), *bars]
      bar = (bar @ params[2 * i].T) * (1 - activities[i] ** 2)
    return -logs[rows, y].mean(), bars

  velocity = [np.zeros_like(p) for p in params]
  for step in range(6):
    part = slice(step % 2 * 250, step % 2 * 250 + 250)
    _, bars = loss_and_gradient(params, images[part], labels[part])
    velocity = [
      58983 / 65536 * v - (1 - 0.9) * g
      for v, g in zip(velocity, bars, strict=True)
    ]
    params = [
      p + np.exp(0.7) * v for p, v in zip(params, velocity, strict=True)
    ]
  expected, _ = loss_and_gradient(params, images, labels)
  np.testing.assert_allclose(loss, expected, rtol=1e-10)

  spacing = 1e-5
  ends = [
    float(objective(jnp.float64(0.7 + s))[0]) for s in (spacing, -spacing)
  ]
  difference = (ends[0] - ends[1]) / (2 * spacing)
  np.testing.assert_allclose(derivative, difference, rtol=1e-6)


def test_a_short_training_file_leaves_the_rest_to_the_test_file(
  script, monkeypatch
):
  shared = script("maclaurin_shared")
  label = np.arange(100, dtype=np.int32)
  image = lambda labels: np.ones((1, 2, 2), np.float32) * labels[:, None, None]
  data = shared.datasets.Data(
    image(label[:50]),
    label[:50],
    image(label[50:60]),
    label[50:60],
    image(label[60:]),
    label[60:],
  )
  monkeypatch.setattr(shared.datasets, "load", lambda *_: data)
  config = shared.Config(dataset="mnist")
  enough, notes = shared.split(config, (30, 20, 10))
  assert notes == []
  np.testing.assert_array_equal(enough.train_labels, label[:30])
  np.testing.assert_array_equal(enough.validation_labels, label[30:50])
  np.testing.assert_array_equal(enough.test_labels, label[50:60])
  short, notes = shared.split(config, (60, 60, 10))
  assert "30 validation and 10 test images come from the test file" in notes[0]
  np.testing.assert_array_equal(short.train_labels, label[:60])
  held_out = np.concatenate([short.validation_labels, short.test_labels])
  np.testing.assert_array_equal(np.sort(held_out), label[60:])
  np.testing.assert_array_equal(short.test_images[:, 0, 0], short.test_labels)


def test_figures_stop_at_what_is_not_finite(script):
  check = script("maclaurin_shared").check_finite
  check("a loss", {"a": jnp.ones(2)}, "")
  with pytest.raises(FloatingPointError, match="a loss is not finite: lower"):
    check("a loss", {"a": jnp.ones(2), "b": jnp.array([0.0, np.nan])}, "lower")


def test_padding_and_sharing_of_tasks(script):
  sharing = script("maclaurin_sharing")
  drawings = script("omniglot").Drawings
  rng = np.random.default_rng(0)
  images = rng.random((2, 3, 4, 5))
  images[1, 2] = 0  # the second task has two characters only
  data = sharing.examples(drawings(images, np.array([3, 2])))
  z = [
    jnp.asarray(rng.normal(size=shape), jnp.float32)
    for shape in ((2, 5, 6), (2, 6), (2, 6, 3), (2, 3))
  ]
  mixing = [rng.random((2, 2)).astype(np.float32) for _ in range(2)]
  expected = 0.0
  for task, characters in ((0, 3), (1, 2)):
    w = [
      sum(mixing[i // 2][task, j] * np.asarray(z[i][j]) for j in range(2))
      for i in range(4)
    ]
    x = images[task, :characters].reshape(-1, 5)
    scores = np.tanh(x @ w[0] + w[1]) @ w[2] + w[3]
    logs = scores - np.log(np.exp(scores).sum(1, keepdims=True))
    labels = np.repeat(np.arange(characters), 4)
    expected -= logs[np.arange(len(labels)), labels].mean()
  found = sharing.task_losses([jnp.asarray(t) for t in mixing], z, data)
  np.testing.assert_allclose(found, expected, rtol=1e-5)
  np.testing.assert_allclose(sharing.transform(4, 0.5), 0.5 * np.eye(4) + 0.125)


def test_partitions_deal_every_drawing_once(script):
  sharing = script("maclaurin_sharing")
  drawings = script("omniglot").Drawings
  images = np.arange(2 * 3 * 15.0).reshape(2, 3, 15, 1) * np.ones(4)
  dealt = sharing.partition(
    np.random.default_rng(0), drawings(images, np.array([3, 3])), [12, 3]
  )
  assert [part.images.shape[2] for part in dealt] == [12, 3]
  together = np.concatenate([part.images for part in dealt], 2)
  assert not np.array_equal(together, images)
  np.testing.assert_array_equal(np.sort(together, 2), images)


def write_alphabets(path, names, characters=3, drawings=16):
  """A zip file like Omniglot's: white paper, a black square in a corner."""
  from PIL import Image

  with zipfile.ZipFile(path, "w") as archive:
    for alphabet in names:
      for character in range(1, characters + 1):
        for drawing in range(1, drawings + 1):
          pixels = np.full((105, 105), 255, np.uint8)
          pixels[:15, : 15 * character] = 0
          content = io.BytesIO()
          Image.fromarray(pixels).convert("1").save(content, "PNG")
          archive.writestr(
            f"images/{alphabet}/character{character:02}/1_{drawing:02}.png",
            content.getvalue(),
          )


def test_omniglot_is_read(script, tmp_path):
  omniglot = script("omniglot")
  names = ["A", "B", "C", "D", "E", "F"]
  write_alphabets(tmp_path / "images_background.zip", names)
  found, drawings = omniglot.load(str(tmp_path))
  assert found == names[:5]
  assert drawings.images.shape == (5, 3, 15, 28 * 28)
  np.testing.assert_array_equal(drawings.characters, [3] * 5)
  image = drawings.images[4, 1, 14].reshape(28, 28)  # ink is 1
  np.testing.assert_array_equal(image[:4, :8], 1)
  assert image.sum() == 4 * 8
  both = omniglot.with_turned(drawings).images
  np.testing.assert_array_equal(both[9, 1, 14].reshape(28, 28), np.rot90(image))
  chosen = ["F", "E", "D", "C", "B"]
  assert omniglot.load(str(tmp_path), chosen, 2)[0] == chosen
  assert omniglot.load(str(tmp_path), chosen, 2)[1].images.shape[1] == 2
  with pytest.raises(ValueError, match="takes 5 alphabets, but got A, Z"):
    omniglot.load(str(tmp_path), ["A", "Z"])


def test_omniglot_that_is_incomplete(script, tmp_path):
  omniglot = script("omniglot")
  with pytest.raises(FileNotFoundError, match="holds no zip file"):
    omniglot.load(str(tmp_path))
  write_alphabets(tmp_path / "few.zip", "ABCDE", 1, 3)
  with pytest.raises(ValueError, match="character01 has 3 drawings; 15 are"):
    omniglot.load(str(tmp_path))
