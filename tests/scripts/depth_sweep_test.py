"""The sweep over depths: its parts, and the script as users run it."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

SMALL = (
  "--depths=2,4",
  "--channels=2",
  "--steps=3",
  "--batch_size=10",
  "--map_depths=2,3",
  "--map_gains=0.5,2",
  "--map_width=4",
  "--map_steps=3",
)


@pytest.fixture(scope="module")
def networks(load):
  return load("depth.networks")


def test_blocks_of_pixels_become_one_position(networks):
  images = np.arange(2 * 3 * 4, dtype=np.float32).reshape(2, 3, 4)
  got = np.asarray(networks.blocks(jnp.asarray(images)))
  assert got.shape == (2, 2, 2, 4)  # padded to whole blocks
  np.testing.assert_array_equal(got[1, 0, 1], images[1, :2, 2:].ravel())
  np.testing.assert_array_equal(got[0, 1, 0], [*images[0, 2, :2], 0, 0])


@pytest.mark.slow
def test_a_shallow_network_in_a_deep_program(networks):
  """Layers beyond the depth have no part in losses and gradients."""
  images = jax.random.uniform(jax.random.key(0), (5, 4, 4))
  labels = jnp.arange(5)
  for network in networks.NETWORKS.values():
    params = networks.init(jax.random.key(1), network, images, 3, 2, 4)
    cut = jax.tree.map(lambda leaf: leaf[:2], params.layers)
    heads = params.heads
    if network.supervised:
      heads = jax.tree.map(lambda leaf: leaf[:2], heads)
    shallow = params._replace(layers=cut, heads=heads)
    grads = jax.jit(
      lambda params, depth, network=network: networks.gradients(
        network, params, images, labels, depth
      )
    )
    deep, expected = grads(params, 2), grads(shallow, 2)
    np.testing.assert_allclose(deep[:2], expected, rtol=1e-5)
    assert not deep[2:].any() and expected.all()


@pytest.mark.slow
def test_writes_and_resumes(script, tmp_path):
  script = script.at(tmp_path)
  done = script.run(*SMALL)
  assert done.stderr == ""  # no progress bar: it is not a terminal
  assert "identity path alone: pre-norm 1," in done.stdout
  result, rows = script.result(), script.rows()
  assert result["edge_sigma_w_squared"] == pytest.approx(1.761, abs=1e-3)
  assert result["pre_norm_residual_identity_ratio"] == 1
  assert result["post_norm_residual_identity_ratio"] < 1
  assert result["fixup_4_gradient_ratio"] == pytest.approx(1)
  assert script.figures() >= {"gradients", "training", "trainable"}
  assert len(rows) == 7 * 2 * 3  # networks, depths, steps
  assert all(float(row["loss"]) > 0 for row in rows)

  script.resume(*SMALL)  # before the last of eleven
  resumed = script.result()
  assert resumed.pop("resumed_from") == 10 and result.pop("resumed_from") == 0
  del resumed["seconds"], result["seconds"]
  assert resumed == result


@pytest.mark.slow
def test_a_training_that_explodes_stops(script, tmp_path):
  error = script.at(tmp_path).stops(*SMALL, "--learning_rate=1e38")
  assert "plain of 2 layers: the loss of step" in error
  assert "lower --learning_rate" in error


@pytest.mark.sampled(1)
@pytest.mark.parametrize(
  ("flags", "message"),
  [
    (["--depths=2,x"], "--depths=2,x: expected integers between commas"),
    (["--map_gains=-1,2"], "--map_gains=-1,2: expected numbers between commas"),
    (["--dataset=mnist"], "needs --data_dir"),
  ],
)
def test_a_wrong_flag_is_named(script, flags, message):
  assert message in script.fails(*flags)
