"""The update-gate convolutional network against plain loops."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from revmom.models.layers import layer, ugcnn
from revmom.models.layers.nnx import UGCNN


def plain(params, images):
  """Equations (1) to (3), pixel by pixel in NumPy."""
  weights, bias = (np.asarray(p, np.float64) for p in params)
  images = np.asarray(images, np.float64)
  size, channels = weights.shape[0], images.shape[-1]
  before, after = (size - 1) // 2, size // 2
  padded = np.pad(images, [(0, 0), (before, after), (before, after), (0, 0)])
  result = np.empty_like(images)
  for i, j in np.ndindex(*images.shape[1:3]):
    window = padded[:, i : i + size, j : j + size]
    sums = np.einsum("bijc,ijcd->bd", window, weights) + bias
    gate = 1 / (1 + np.exp(-sums[:, :channels]))
    candidate = np.tanh(sums[:, channels:])
    result[:, i, j] = gate * images[:, i, j] + (1 - gate) * candidate
  return result


@pytest.mark.slow
@pytest.mark.parametrize("kernel", [1, 2, 3])
def test_equations(x64, kernel):
  images = jax.random.normal(jax.random.key(0), (2, 4, 5, 3))
  params = jax.jit(lambda key: ugcnn.init(key, 3, kernel, dtype=jnp.float64))(
    jax.random.key(1)
  )
  bias = jax.random.normal(jax.random.key(2), (6,))
  params = params._replace(bias=bias)
  np.testing.assert_allclose(
    ugcnn.apply(params, images), plain(params, images), atol=1e-12
  )


@pytest.mark.slow
def test_a_bias_keeps_or_replaces_images():
  images = jax.random.normal(jax.random.key(0), (2, 4, 4, 3))
  kept = ugcnn.init(jax.random.key(1), 3, update_bias=50.0)
  np.testing.assert_array_equal(ugcnn.apply(kept, images), images)
  replaced = ugcnn.init(jax.random.key(1), 3, update_bias=-50.0)
  both = layer.convolve(layer.Affine(*replaced), images)
  np.testing.assert_allclose(
    ugcnn.apply(replaced, images), jnp.tanh(both[..., 3:]), atol=1e-6
  )


@pytest.mark.slow
def test_gradients_through_many_layers(x64):
  """Those of the stack are autodiff's of a Python loop of plain layers."""
  images = jax.random.normal(jax.random.key(0), (2, 3, 3, 2))
  net = layer.repeated(ugcnn.ugcnn(update_bias=2.0), 30)
  params = jax.jit(lambda key: net.init(key, images))(jax.random.key(1))
  assert params.bias.dtype == jnp.float64
  got = jax.jit(jax.grad(lambda p: jnp.sum(jnp.sin(net.apply(p, images)))))(
    params
  )
  step, direction = 1e-6, jax.random.normal(jax.random.key(2), (30, 4))

  def loss(shift):
    x = np.asarray(images)
    for number in range(30):
      one = jax.tree.map(lambda leaf, n=number: leaf[n], params)
      x = plain(one._replace(bias=one.bias + shift * direction[number]), x)
    return np.sum(np.sin(x))

  expected = (loss(step) - loss(-step)) / (2 * step)
  np.testing.assert_allclose(jnp.sum(got.bias * direction), expected, rtol=1e-6)


def test_the_module_is_the_function():
  images = jax.random.normal(jax.random.key(0), (2, 4, 4, 3))
  module = UGCNN(3, update_bias=0.5, rngs=nnx.Rngs(0))
  np.testing.assert_array_equal(
    module(images), ugcnn.apply(module.weights(), images)
  )
  short = UGCNN(3, dtype=jnp.bfloat16, rngs=nnx.Rngs(0))
  assert short(images).dtype == jnp.bfloat16
  gradients = nnx.grad(lambda m: jnp.sum(m(images)))(module)
  assert all(g.any() for g in jax.tree.leaves(gradients))


def test_wrong_input():
  params = ugcnn.init(jax.random.key(0), 3)
  with pytest.raises(ValueError, match="images have 2 channels; expected 3"):
    ugcnn.apply(params, jnp.ones((1, 4, 4, 2)))
  with pytest.raises(ValueError, match=r"expected images \[B, H, W, C\]"):
    ugcnn.apply(params, jnp.ones((4, 4, 3)))
  with pytest.raises(ValueError, match="would be empty"):
    ugcnn.init(jax.random.key(0), 0)
