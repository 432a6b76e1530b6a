"""What PixelCNNs compute, what they see, and that their rows hold it."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.flatten_util import ravel_pytree

import revmom
from revmom.models.autoregressive.autoregressive import Autoregressive
from revmom.models.autoregressive.conditional import categorical
from revmom.models.autoregressive.gated_pixelcnn import gated_pixelcnn
from revmom.models.autoregressive.pixelcnn import pixelcnn

MAKE = {"plain": pixelcnn, "gated": gated_pixelcnn}
# Kernel sizes, channels, features.
CASES = [((3,), 1, 12), ((3, 3, 3), 1, 12), ((5, 3), 3, 32), ((3, 5), 2, 21)]


def random_params(network, event, num_outputs):
  init = lambda key, x: network.init(key, x, num_outputs)
  x = jax.ShapeDtypeStruct((1, *event), jnp.float32)
  like = jax.eval_shape(init, jax.random.key(0), x)
  rng = np.random.default_rng(0)
  return jax.tree.map(lambda leaf: rng.normal(size=leaf.shape) * 0.5, like)


def seen_of(kind, kernel_sizes, channel, channels):
  """Theory: (down, right, channel) that an output sees, from the masks.

  Follows all paths from an output to inputs, layer by layer.
  """
  horizontal, vertical = {(0, 0, channel)}, set()
  for number in reversed(range(len(kernel_sizes))):
    radius = kernel_sizes[number] // 2
    across, first = range(-radius, radius + 1), number == 0
    come, below = set(), vertical | {(i, j) for i, j, _ in horizontal}
    for i, j, group in horizontal:
      hidden = group if first else group + 1  # mask A, mask B
      come |= {(i, j, other) for other in range(hidden)}
      for other in range(channels):
        come |= {(i, j - left, other) for left in range(1, radius + 1)}
        if kind == "plain":
          ups = range(1, radius + 1)
          come |= {(i - up, j + right, other) for up in ups for right in across}
    ups = range(1 if first else 0, radius + 1)
    vertical = {
      (i - up, j + right) for i, j in below for up in ups for right in across
    }
    horizontal = come
  if kind == "plain":
    return horizontal
  every = range(channels)
  return horizontal | {(i, j, other) for i, j in vertical for other in every}


@pytest.mark.sampled(2)
@pytest.mark.parametrize(("kernel_sizes", "channels", "features"), CASES)
@pytest.mark.parametrize("kind", MAKE)
def test_it_sees_what_it_may_and_its_steps_are_its_outputs(
  x64, kind, kernel_sizes, channels, features
):
  network = MAKE[kind](kernel_sizes, features, num_classes=2)
  height, width, num_outputs = 4, 6, 2
  event = height, width, channels
  params = random_params(network, event, num_outputs)
  inputs = np.random.default_rng(1).normal(size=(6, *event))
  label = np.array([1, 0, 1, 1, 0, 0])

  @jax.jit
  def run(params, inputs):
    of_all = lambda inputs: network.forward(params, inputs, label).sum(0)
    forward = network.forward(params, inputs, label)

    def step(cache, position):
      # What is not known yet must not matter: all of it is wrong.
      known = jnp.arange(height * width) < position
      ahead = known.reshape(height, width, 1)
      outputs, cache = network.step(
        params, cache, jnp.where(ahead, inputs, 1e3), position
      )
      first = outputs[:, 0]
      # Once more, with the channels of this position.
      ahead = jnp.arange(height * width) <= position
      ahead = ahead.reshape(height, width, 1)
      outputs, cache = network.step(
        params, cache, jnp.where(ahead, inputs, 1e3), position
      )
      return cache, outputs.at[:, 0].set(first)

    cache = network.start(params, inputs.shape, label)
    cached = jax.lax.scan(step, cache, jnp.arange(height * width))[1]
    cached = jnp.moveaxis(cached, 0, 1).reshape(forward.shape)
    return forward, cached, jax.jacrev(of_all)(inputs)

  forward, cached, jacobian = run(params, inputs)
  np.testing.assert_allclose(cached, forward, rtol=1e-9, atol=1e-10)

  # [H, W, C, H, W, C]: of outputs by inputs.
  seen = (np.asarray(jacobian) != 0).any((3, 4))
  theory = [
    seen_of(kind, kernel_sizes, channel, channels)
    for channel in range(channels)
  ]
  for i, j, c, k, l, d in np.ndindex(*event, *event):
    allowed = (k - i, l - j, d) in theory[c]
    assert seen[i, j, c, k, l, d] == allowed, (i, j, c, k, l, d)
  # The last channel is the hardest to see, and by the first one.
  whole = {(i, j) for i, j, d in theory[0] if d == channels - 1}
  assert network.receptive_field == whole


def test_the_blind_spot():
  """A fifth layer shows the plain network more, but not to the right."""
  for depth in (5, 12):
    plain = pixelcnn((3,) * depth).receptive_field
    assert (-1, 1) in plain and (-1, 2) not in plain and (-3, 4) not in plain
    gated = gated_pixelcnn((3,) * depth).receptive_field
    ahead = {(-down, 2 + down) for down in range(1, depth - 1)}
    assert ahead <= gated and not ahead & plain
    sides = range(-depth, depth + 1)
    assert gated == {
      (i, j) for i in range(-depth, 1) for j in sides if i or j < 0
    }


def plain_pixelcnn(params, image, label):
  """The equations in NumPy, by loops, without masks."""
  height, width, channels = image.shape
  h, of_h = image, np.arange(channels)
  for number, (layer, table) in enumerate(
    zip(params.layers, params.classes, strict=True)
  ):
    kernel, features = layer.weights.shape[1], layer.bias.size
    of_result = np.array([f * channels // features for f in range(features)])
    result = np.tile(layer.bias + table[label], (height, width, 1))
    for i, j, a, b in np.ndindex(height, width, kernel // 2 + 1, kernel):
      k, l = i + a - kernel // 2, j + b - kernel // 2
      if not (0 <= k < height and 0 <= l < width) or (k == i and l > j):
        continue
      for f in range(features):
        for d in range(h.shape[-1]):
          if (k, l) == (i, j):
            if of_h[d] > of_result[f] or (
              number == 0 and of_h[d] == of_result[f]
            ):
              continue
          result[i, j, f] += layer.weights[a, b, d, f] * h[k, l, d]
    h, of_h = np.maximum(result, 0), of_result
  outputs = np.tile(params.last.bias, (height, width, 1))
  num_outputs = params.last.bias.size // channels
  for g in range(params.last.bias.size):
    for d in range(h.shape[-1]):
      if of_h[d] <= g // num_outputs:
        outputs[..., g] += params.last.weights[d, g] * h[..., d]
  return outputs.reshape(*image.shape, -1)


def test_plain_equations(x64):
  network = pixelcnn((5, 3), 5, num_classes=2)
  event = 3, 4, 2
  params = random_params(network, event, 2)
  inputs = np.random.default_rng(1).normal(size=(2, *event))
  got = jax.jit(network.forward)(params, inputs, np.array([1, 0]))
  for image, label, outputs in zip(inputs, (1, 0), got, strict=True):
    expected = plain_pixelcnn(params, image, label)
    np.testing.assert_allclose(outputs, expected, rtol=1e-10, atol=1e-12)


def gated_equations(params, image, label):
  """The equations in NumPy for one channel, pixel by pixel."""
  height, width, _ = image.shape
  sigmoid = lambda a: 1 / (1 + np.exp(-a))

  def gate(a):
    first, second = np.split(a, 2, -1)
    return np.tanh(first) * sigmoid(second)

  def at(x, i, j):
    inside = 0 <= i < height and 0 <= j < width
    return x[i, j] if inside else np.zeros(x.shape[-1])

  v = h = image
  for number, block in enumerate(params.blocks):
    rows, kernel = block.vertical.weights.shape[:2]
    r = kernel // 2
    u = np.zeros((height, width, block.vertical.bias.size))
    w = np.zeros_like(u)
    for i, j in np.ndindex(height, width):
      u[i, j] = block.vertical.bias + block.vertical_classes[label]
      for a, b in np.ndindex(rows, kernel):
        u[i, j] += at(v, i + a - r, j + b - r) @ block.vertical.weights[a, b]
      w[i, j] = block.horizontal.bias + block.horizontal_classes[label]
      w[i, j] += u[i, j] @ block.between
      for b in range(r + 1 if number else r):
        w[i, j] += at(h, i, j + b - r) @ block.horizontal.weights[0, b]
    out = gate(w) @ block.out.weights + block.out.bias
    v, h = gate(u), h + out if number else out
  relu = lambda a: np.maximum(a, 0)
  hidden = relu(relu(h) @ params.hidden.weights + params.hidden.bias)
  return (hidden @ params.last.weights + params.last.bias)[:, :, None]


def test_gated_equations(x64):
  network = gated_pixelcnn((3, 5, 3), 4, num_classes=2)
  event = 4, 5, 1
  params = random_params(network, event, 2)
  inputs = np.random.default_rng(1).normal(size=(2, *event))
  got = jax.jit(network.forward)(params, inputs, np.array([1, 0]))
  for image, label, outputs in zip(inputs, (1, 0), got, strict=True):
    expected = gated_equations(params, image, label)
    np.testing.assert_allclose(outputs, expected, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("kind", MAKE)
def test_features_may_be_as_many_as_channels(x64, kind):
  """Then shapes don't tell the first block from others."""
  network = MAKE[kind]((3, 3), 3)
  params = random_params(network, (2, 2, 3), 1)
  inputs = np.random.default_rng(1).normal(size=(1, 2, 2, 3))
  jacobian = jax.jit(jax.jacrev(lambda x: network.forward(params, x, None)))
  seen = np.asarray(jacobian(inputs)).reshape(12, 12) != 0
  assert not np.triu(seen).any() and seen.any()


@pytest.mark.parametrize("kind", MAKE)
def test_masked_weights_have_no_gradient_and_the_others_have(kind, x64):
  network = MAKE[kind]((3, 3), 6, num_classes=2)
  model = Autoregressive(network, categorical(4))
  event = 4, 4, 2
  params = random_params(network, event, 4)
  x = np.random.default_rng(0).integers(4, size=(8, *event))
  label = np.arange(8) % 2
  loss = lambda params: model.log_prob(params, x, label).sum()
  gradient = jax.jit(jax.grad(loss))(params)
  for leaf in jax.tree.leaves(gradient):
    assert np.isfinite(leaf).all() and (np.asarray(leaf) != 0).any()
  first = (
    gradient.layers[0] if kind == "plain" else gradient.blocks[0].horizontal
  )
  own = np.asarray(first.weights)[-1]  # taps of the own row
  own = own[1] if kind == "plain" else own[-1]  # at the centre
  of_features = np.tile([0, 0, 0, 1, 1, 1], own.shape[-1] // 6)
  np.testing.assert_array_equal(own != 0, np.arange(2)[:, None] < of_features)


@pytest.mark.slow
def test_hypergradients_of_training(x64):
  """Through ten steps, beside central differences, short ones for relu."""
  model = Autoregressive(pixelcnn((3, 3), 4), categorical(3))
  rng = np.random.default_rng(0)
  batches = rng.integers(3, size=(10, 4, 3, 3, 1))
  params = random_params(model.network, (3, 3, 1), 3)
  loss_fn = lambda params, x: -model.log_prob(params, x).mean() / 9

  @jax.jit
  def objective(learning_rate, momentum, params):
    optimizer = revmom.sgd(
      learning_rate, momentum, grid=revmom.Grid(integer="int64")
    )
    run = revmom.train(loss_fn, optimizer, params, batches)
    return loss_fn(run.params, batches[0])

  point = jnp.array(0.3), jnp.array(0.8)
  gradient = jax.jit(jax.grad(objective, argnums=(0, 1)))(*point, params)
  for which in range(2):
    moved = [
      [value + sign * 1e-6 * (which == i) for i, value in enumerate(point)]
      for sign in (1, -1)
    ]
    up, down = (objective(*each, params) for each in moved)
    assert abs(gradient[which]) > 1e-4
    np.testing.assert_allclose(gradient[which], (up - down) / 2e-6, rtol=2e-4)


@pytest.mark.slow
def test_second_derivatives(x64):
  model = Autoregressive(gated_pixelcnn((3,), 2), categorical(3))
  params = random_params(model.network, (2, 3, 1), 3)
  x = np.random.default_rng(0).integers(3, size=(2, 2, 3, 1))
  flat, unravel = ravel_pytree(params)
  direction = np.random.default_rng(1).normal(size=flat.shape)
  loss = lambda flat: model.log_prob(unravel(flat), x).sum()
  gradient = jax.grad(loss)

  @jax.jit
  def run(flat):
    reverse = jax.grad(lambda flat: gradient(flat) @ direction)(flat)
    return reverse, jax.jvp(gradient, (flat,), (direction,))[1], gradient(flat)

  over_reverse, over_forward, _ = run(flat)
  up, down = (run(flat + sign * 1e-5 * direction)[2] for sign in (1, -1))
  expected = (up - down) / 2e-5
  np.testing.assert_allclose(over_reverse, over_forward, rtol=1e-9, atol=1e-12)
  np.testing.assert_allclose(over_reverse, expected, rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("make", MAKE.values())
def test_errors(make):
  for sizes in ((), (4,), (1,), (3, 2)):
    with pytest.raises(ValueError, match="expected one or more odd numbers"):
      make(sizes)
  with pytest.raises(ValueError, match="features=0"):
    make((3,), 0)
  network = make((3,), 2)
  x = jax.ShapeDtypeStruct((1, 4, 4, 3), jnp.float32)
  with pytest.raises(ValueError, match="got 2 features, expected 3 or more"):
    jax.eval_shape(lambda x: network.init(jax.random.key(0), x, 1), x)
  params = random_params(network, (4, 4, 1), 1)
  with pytest.raises(ValueError, match=r"expected \[B, H, W, 1\]"):
    jax.eval_shape(network.forward, params, x, None)
