"""The densities in the plane, and the script as users run it."""

import numpy as np
import pytest

SMALL = "--depth=2", "--hidden=8", "--batch_size=32"


@pytest.mark.parametrize(
  "name", ["two_moons", "eight_gaussians", "rings", "pinwheel"]
)
def test_densities_are_those_of_their_samples(load, name):
  toy = load("densities.toys").TOYS[name]
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


def test_images_are_integers_again(load):
  models = load("densities.models")
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


def test_units(load):
  models = load("densities.models")
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
def test_learns_resumes_and_writes(script, tmp_path):
  script = script.at(tmp_path)
  flags = "--data=rings", "--steps=40", *SMALL
  done = script.run(*flags)
  assert done.stderr == ""  # no progress bar: it is not a terminal
  result, rows = script.result(), script.rows()
  assert [int(row["step"]) for row in rows] == list(range(40))
  assert float(rows[-1]["loss"]) < float(rows[0]["loss"])
  assert sum(bool(row["validation_loss"]) for row in rows) == 10
  lacking = result["test_loss"] - result["true_entropy"]
  assert result["kl"] == pytest.approx(lacking, abs=1e-6) and lacking > 0
  assert 0.9 < result["integral"] < 1.001  # wide tails are outside the square
  assert max(result["inversion_error"], result["log_det_error"]) < 1e-5
  assert result["noise_lost"] == 0
  assert script.figures() >= {"loss", "density", "inversion"}

  script.resume(*flags)  # after the ninth of ten checkpoints
  resumed = script.result()
  assert resumed["resumed_from"] == 36
  for name in ("test_loss", "kl", "integral", "inversion_error"):
    assert resumed[name] == result[name]
  assert "--seed=0 there, --seed=1 now" in script.fails(*flags, "--seed=1")


@pytest.mark.slow
def test_images(script, tmp_path):
  script = script.at(tmp_path)
  flags = "--model=nice", "--depth=2", "--hidden=8", "--steps=12"
  done = script.run("--data=digits", *flags)
  result, rows = script.result(), script.rows()
  assert "bits/dim" in done.stdout
  assert float(rows[-1]["loss"]) < float(rows[0]["loss"])
  assert result["test_loss"] < 7  # a grey level has 4.1 bits
  assert max(result["inversion_error"], result["log_det_error"]) < 1e-3
  assert script.figures() >= {"loss", "samples", "inversion"}


@pytest.mark.slow
def test_a_training_that_explodes_stops(script, tmp_path):
  flags = *SMALL, "--steps=5", "--learning_rate=1e38"
  assert "lower --learning_rate" in script.at(tmp_path).stops(*flags)


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
def test_a_wrong_flag_is_named(script, flags, message):
  assert message in script.fails(*flags)
