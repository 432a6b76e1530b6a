"""Runs scripts/maclaurin2015.py as a user would, and checks its pieces."""

import io
import zipfile

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest


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
def test_every_figure_is_made(script, tmp_path, flags, key, rows, images):
  script = script.at(tmp_path)
  done = script.run(*flags, "--steps=3")
  assert done.stderr == ""
  assert "published | measured" in done.stdout
  result = script.result()
  assert np.isfinite(result[key])
  assert all(not isinstance(value, dict | list) for value in result.values())
  assert len(script.rows()) == rows
  assert len(script.figures()) == images


@pytest.mark.slow
def test_the_toy_has_the_stored_losses(script, tmp_path):
  script = script.at(tmp_path)
  script.run("--figure=1")
  result = script.result()
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
  assert "figure_1" in script.figures()
  assert len(script.rows()) == 3 * 51


@pytest.mark.slow
def test_meta_learning_descends(script, tmp_path):
  """With all of the paper's settings, on the digits."""
  for figure, loss, factor in (("8", "validation", 2), ("9", "validation", 2)):
    script = script.at(tmp_path / figure)
    script.run(f"--figure={figure}")
    result = script.result()
    assert result[f"{loss}_after"] < result[f"{loss}_before"] / factor


@pytest.mark.slow
def test_sharing_goes_on_where_it_stopped(script, tmp_path):
  flags = "--figure=10", "--steps=5"
  whole, broken = (script.at(tmp_path / name) for name in ("whole", "broken"))
  for number, script in ((2, whole), (1, broken), (2, broken)):
    script.run(*flags, f"--meta_steps={number}")
  assert broken.bits() == whole.bits()
  error = whole.fails(*flags, "--meta_steps=1")
  assert "holds 2 meta iterations, more than --meta_steps=1" in error


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
def test_a_wrong_flag_is_named(script, flags, message):
  assert message in script.fails(*flags)


def test_early_adam_is_the_formula(load):
  rng = np.random.default_rng(0)
  gradients = rng.normal(size=(6, 5)) * 1e-3
  x, m, v = np.zeros(5), np.zeros(5), np.zeros(5)
  optimizer = load("schedules.elementary").early_adam(0.04)
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
def test_the_chaos_sweep_trains_as_numpy_does(load, x64):
  images, labels = digits(500)
  chaos = load("maclaurin.chaos").chaos_objective
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
  load, monkeypatch
):
  common = load("maclaurin.common")
  label = np.arange(100, dtype=np.int32)
  image = lambda labels: np.ones((1, 2, 2), np.float32) * labels[:, None, None]
  data = common.image_data.Data(
    image(label[:50]),
    label[:50],
    image(label[50:60]),
    label[50:60],
    image(label[60:]),
    label[60:],
  )
  monkeypatch.setattr(common.image_data, "load", lambda *_: data)
  config = common.Config(dataset="mnist")
  enough, notes = common.split(config, (30, 20, 10))
  assert notes == []
  np.testing.assert_array_equal(enough.train_labels, label[:30])
  np.testing.assert_array_equal(enough.validation_labels, label[30:50])
  np.testing.assert_array_equal(enough.test_labels, label[50:60])
  short, notes = common.split(config, (60, 60, 10))
  assert "30 validation and 10 test images come from the test file" in notes[0]
  np.testing.assert_array_equal(short.train_labels, label[:60])
  held_out = np.concatenate([short.validation_labels, short.test_labels])
  np.testing.assert_array_equal(np.sort(held_out), label[60:])
  np.testing.assert_array_equal(short.test_images[:, 0, 0], short.test_labels)


def test_figures_stop_at_what_is_not_finite(load):
  check = load("shared.runs").check_finite
  check("a loss", {"a": jnp.ones(2)}, "")
  with pytest.raises(FloatingPointError, match="a loss is not finite: lower"):
    check("a loss", {"a": jnp.ones(2), "b": jnp.array([0.0, np.nan])}, "lower")


def test_padding_and_sharing_of_tasks(load):
  sharing = load("maclaurin.sharing")
  drawings = load("maclaurin.omniglot").Drawings
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


def test_partitions_deal_every_drawing_once(load):
  sharing = load("maclaurin.sharing")
  drawings = load("maclaurin.omniglot").Drawings
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


def test_omniglot_is_read(load, tmp_path):
  omniglot = load("maclaurin.omniglot")
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


def test_omniglot_that_is_incomplete(load, tmp_path):
  omniglot = load("maclaurin.omniglot")
  with pytest.raises(FileNotFoundError, match="holds no zip file"):
    omniglot.load(str(tmp_path))
  write_alphabets(tmp_path / "few.zip", "ABCDE", 1, 3)
  with pytest.raises(ValueError, match="character01 has 3 drawings; 15 are"):
    omniglot.load(str(tmp_path))


def test_a_damaged_zip_file_is_named(load, tmp_path):
  """Cut short, or with one bit changed: right, or an error of one line."""
  omniglot, path = (
    load("maclaurin.omniglot"),
    tmp_path / "images_background.zip",
  )
  write_alphabets(path, "ABCDE", 1, 15)
  whole, rng = path.read_bytes(), np.random.default_rng(0)
  _, expected = omniglot.load(str(tmp_path))
  good = 0
  for number in range(40):
    content = bytearray(whole)
    content[rng.integers(len(whole))] ^= 1 << rng.integers(8)
    half = rng.integers(len(whole)) if number % 2 else None
    path.write_bytes(content[:half])
    try:
      _, drawings = omniglot.load(str(tmp_path))
    except ValueError as error:
      assert "\n" not in str(error)
      assert path.name in str(error) or "takes 5 alphabets" in str(error)
    else:  # a time, or another part without a meaning here
      np.testing.assert_array_equal(drawings.images, expected.images)
      good += 1
  assert good < 10
