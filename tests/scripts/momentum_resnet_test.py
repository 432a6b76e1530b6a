"""The truncating store, rings, and the script as users run it."""

import numpy as np
import pytest

SMALL = (
  "--gammas=0.5",
  "--depths=3,60",
  "--memory_depths=2,9",
  "--ring_depth=3",
  "--ring_steps=2",
  "--image_depths=2",
  "--image_steps=2",
)


@pytest.fixture(scope="module")
def bit_store(load):
  return load("momentum_layers.bit_store")


def test_the_store_restores_positive_numbers_and_loses_negative_ones(bit_store):
  start = np.array([0.7, 0.3, -0.7, -0.3])
  store = bit_store.Store(start)
  before = store.integers
  for _ in range(20):
    store.multiply(*bit_store.ratio(0.5))
  for _ in range(20):
    store.multiply(*bit_store.ratio(0.5)[::-1])
  same = store.integers == before
  np.testing.assert_array_equal(same, start > 0)


def test_gradients_by_hand_are_those_of_differences(bit_store):
  rng = np.random.default_rng(0)
  layers = bit_store.Layers(
    rng.normal(size=(3, 4, 5)), rng.normal(size=(3, 5, 4))
  )
  x, gamma = rng.normal(size=(2, 4)), 0.7

  def loss(w):
    at, v = x, 0 * x
    for own, other in zip(w, layers.v, strict=True):
      v = gamma * v + (1 - gamma) * bit_store.residual(own, other, at)
      at = at + v
    return np.mean(at**2)

  gradient, _ = bit_store.kept_gradient(layers, x, gamma)
  along = rng.normal(size=layers.w.shape)
  change = loss(layers.w + 1e-6 * along) - loss(layers.w - 1e-6 * along)
  np.testing.assert_allclose(np.sum(gradient * along), change / 2e-6, rtol=1e-6)


@pytest.mark.slow
def test_writes_and_resumes(script, tmp_path):
  script = script.at(tmp_path)
  done = script.run(*SMALL)
  assert done.stderr == ""
  result = script.result()
  assert result["all_restored"]
  assert result["error_0.5_60_revmom"] < 1e-5
  assert result["error_0.5_60_truncating_store"] > 0.1
  assert result["memory_ratio_9"] > 1
  assert {"errors", "memory", "rings", "images"} <= script.figures()
  script.resume(*SMALL)
  resumed = script.result()
  assert resumed.pop("resumed_from") > 0 and result.pop("resumed_from") == 0
  del resumed["seconds"], result["seconds"]
  assert resumed == result


def test_a_wrong_flag_is_named(script):
  assert "--gammas=0: expected numbers" in script.fails("--gammas=0")
