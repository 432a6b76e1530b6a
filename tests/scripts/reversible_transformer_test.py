"""The three kinds of layers, and the script as users run it."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

SMALL = "--depths=2,3", "--steps=2", "--batch_size=4", "--width=4"


@pytest.fixture(scope="module")
def network(load):
  return load("streams.network")


def test_restored_layers_are_those_that_are_kept(network):
  """Two streams by hand; blocks with factors of zero on average."""
  params = network.init(0, 3, (4, 4), 5, 4)
  rng = np.random.default_rng(0)
  layers = jax.tree.map(
    lambda a: jnp.asarray(0.5 * rng.normal(size=a.shape), a.dtype),
    params["layers"],
  )
  x = jnp.asarray(rng.normal(size=(2, 4, 4)), jnp.float32)

  def by_hand(x):
    a = b = x
    for i in range(3):
      layer = jax.tree.map(lambda w, i=i: w[i], layers)
      a = a + network.attention(layer, b) / 3**0.5
      b = b + network.perceptron(layer, a) / 3**0.5
    return (a + b) / 2

  ours, expected, bdia, plain = jax.jit(
    lambda x: (
      network.through("revnet", layers, x, None),
      by_hand(x),
      network.through("bdia", layers, x, None),
      network.through("plain", layers, x, None),
    )
  )(x)
  np.testing.assert_allclose(ours, expected, atol=1e-4)
  np.testing.assert_array_equal(bdia, plain)


@pytest.mark.slow
def test_writes_and_resumes(script, tmp_path):
  script = script.at(tmp_path)
  done = script.run(*SMALL)
  assert done.stderr == ""
  result, rows = script.result(), script.rows()
  assert len(rows) == 3 * 2 * 2  # kinds, depths, steps
  assert all(np.isfinite(float(row["loss"])) for row in rows)
  assert result["bdia_3_memory_ratio"] > 0
  assert {"costs", "losses"} <= script.figures()
  script.resume(*SMALL)
  resumed = script.result()
  assert resumed["resumed_from"] > 0 and result["resumed_from"] == 0
  assert resumed["revnet_3_accuracy"] == result["revnet_3_accuracy"]


def test_a_wrong_flag_is_named(script):
  assert "--width=5; it must be even" in script.fails("--width=5")
