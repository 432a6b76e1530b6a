"""The models of images by name, and the script as users run it."""

import math

import jax
import numpy as np
import pytest

SMALL = (
  "--model=pixelcnn",
  "--hidden_size=8",
  "--depth=2",
  "--steps=10",
  "--batch_size=16",
)


@pytest.fixture(scope="module")
def models(load):
  return load("autoregressive.models")


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
def test_learns_resumes_and_writes(script, tmp_path):
  script = script.at(tmp_path)
  done = script.run(*SMALL)
  assert done.stderr == ""  # no progress bar: it is not a terminal
  assert "bits/dim" in done.stdout
  result, rows = script.result(), script.rows()
  assert [int(row["step"]) for row in rows] == list(range(10))
  assert float(rows[-1]["loss"]) < float(rows[0]["loss"])
  assert result["test_loss"] < math.log2(17)
  assert script.figures() >= {"loss", "samples", "completions"}

  script.resume(*SMALL)  # after the ninth of ten checkpoints
  resumed = script.result()
  assert resumed["resumed_from"] == 9
  assert resumed["test_loss"] == result["test_loss"]
  losses = [row["loss"] for row in script.rows()]
  assert losses == [row["loss"] for row in rows]

  assert "--seed=0 there, --seed=1 now" in script.fails(*SMALL, "--seed=1")


@pytest.mark.sampled(1)
@pytest.mark.parametrize(
  ("flags", "message"),
  [
    (["--models=lstm"], "Did you mean: model"),
    (["--data=binary_mnist"], "needs --data_dir"),
    (["--model=transformer", "--hidden_size=6"], "width=6 and num_heads=4"),
  ],
)
def test_a_wrong_flag_is_named(script, flags, message):
  assert message in script.fails(*flags)


def test_a_step_donates_what_it_is_given(load, models):
  """No buffer of a state is shared between two of its arrays."""
  training = load("autoregressive.training")
  config = training.Config(conditioned=True, hidden_size=4, depth=1)
  data = models.load("digits", None)
  model = training.model_of(config, data.levels)
  before = training.start(config, model, data)
  with jax.numpy_dtype_promotion("standard"):
    step = training.training_step(config, model, data)
    after, _ = step(before, np.int32(0))
    _, loss = step(after, np.int32(1))
  assert np.isfinite(loss)
  assert jax.tree.leaves(before.params)[0].is_deleted()
