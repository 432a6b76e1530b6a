"""PixelRNN and MDRNN images: what they see, plain loops, and their caches."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

from revmom.cells import mdlstm
from revmom.models.autoregressive.autoregressive import Autoregressive
from revmom.models.autoregressive.causal_network import uncached
from revmom.models.autoregressive.conditional import (
  bernoulli,
  categorical,
  gaussian,
)
from revmom.models.autoregressive.diagonal_bilstm_layer import (
  diagonal_bilstm_layer,
)
from revmom.models.autoregressive.pixel_mdrnn import pixel_mdrnn
from revmom.models.autoregressive.pixel_rnn import diagonal_bilstm, row_lstm
from revmom.models.autoregressive.row_lstm_layer import row_lstm_layer

LEVELS = 3
MAKE = {
  "row_lstm": lambda layers=1, **more: row_lstm(4, layers, 3, **more),
  "diagonal_bilstm": lambda layers=1, **more: diagonal_bilstm(
    4, layers, 3, **more
  ),
  "pixel_mdrnn": lambda layers=1, **more: pixel_mdrnn(4, layers, **more),
}
every = pytest.mark.parametrize("name", MAKE)


def random_params(model, x, seed=0):
  """Far from where training starts: biases and classes are not zero."""
  like = jax.eval_shape(model.init, jax.random.key(0), x)
  rng = np.random.default_rng(seed)
  draw = lambda leaf: jnp.asarray(0.4 * rng.normal(size=leaf.shape), leaf.dtype)
  return jax.tree.map(draw, like)


def example(name, shape=(2, 3, 4, 2), levels=LEVELS, **options):
  """A model, its parameters, and images."""
  model = Autoregressive(MAKE[name](**options), categorical(levels))
  x = jnp.asarray(np.random.default_rng(7).integers(0, levels, shape), "int32")
  return model, random_params(model, x), x


def what_is_seen(network, height, width, channels):
  """bool [H, W, C, H, W, C]: whether an output depends on an input."""
  x = jax.random.normal(jax.random.key(2), (height, width, channels))
  model = Autoregressive(network, gaussian())

  def jacobian(params):
    outputs = lambda x: network.forward(params, x[None], None)[0, ..., 0]
    return jax.jacrev(outputs)(x)

  # Of several parameters, as a unit of relu may be off for one.
  draws = [random_params(model, x[None], seed) for seed in range(8)]
  stacked = jax.tree.map(lambda *leaves: jnp.stack(leaves), *draws)
  return np.asarray(jax.jit(jax.vmap(jacobian))(stacked) != 0).any(0)


def expected_by_rules(allowed, height, width, channels, ordered):
  """As `what_is_seen`, from a rule for pixels and the order of channels."""
  shape = (height, width, channels)
  seen = np.zeros((*shape, *shape), bool)
  for (i, j, c), (k, l, d) in itertools.product(np.ndindex(*shape), repeat=2):
    same = (i, j) == (k, l)
    seen[i, j, c, k, l, d] = (
      (ordered and d < c) if same else allowed(i, j, k, l)
    )
  return seen


@pytest.mark.slow
def test_two_corners_see_all_pixels_before():
  before = lambda i, j, k, l: (k, l) < (i, j)
  seen = what_is_seen(diagonal_bilstm(3, 1, 3), 4, 5, 2)
  np.testing.assert_array_equal(seen, expected_by_rules(before, 4, 5, 2, True))


@pytest.mark.slow
@pytest.mark.parametrize("schedule", ["rows", "pipelined"])
def test_one_corner_sees_its_quadrant(schedule):
  quadrant = lambda i, j, k, l: k <= i and l <= j
  seen = what_is_seen(pixel_mdrnn(3, 2, schedule=schedule), 4, 5, 2)
  expected = expected_by_rules(quadrant, 4, 5, 2, ordered=False)
  np.testing.assert_array_equal(seen, expected)


def row_lstm_sees(height, width, layers, radius):
  """(i, j) -> the pixels that it sees, by the equations of the layers."""
  inside = lambda k, l: 0 <= k < height and 0 <= l < width
  pixels = list(np.ndindex(height, width))
  sets = {
    (i, j): {
      (k, l)
      for k in range(i - radius, i + 1)
      for l in range(j - radius, j + radius + 1)
      if inside(k, l) and (k, l) < (i, j)
    }
    for i, j in pixels
  }
  for _ in range(layers):
    hidden = {}
    for i, j in pixels:
      sources = [sets[i, l] for l in (j - 1, j) if inside(i, l)]
      sources += [
        hidden[i - 1, l] for l in (j - 1, j, j + 1) if inside(i - 1, l)
      ]
      hidden[i, j] = set().union(*sources)
    sets = {pixel: sets[pixel] | hidden[pixel] for pixel in pixels}
  return sets


@pytest.mark.slow
def test_rows_see_a_triangle():
  height, width, layers = 4, 8, 2
  sets = row_lstm_sees(height, width, layers, radius=1)
  assert (0, 4) not in sets[1, 1]  # a triangle, not all before
  allowed = lambda i, j, k, l: (k, l) in sets[i, j]
  seen = what_is_seen(row_lstm(3, layers, 3), height, width, 2)
  expected = expected_by_rules(allowed, height, width, 2, ordered=True)
  np.testing.assert_array_equal(seen, expected)


def cached_outputs(network, params, inputs, label):
  """Of every position [B, T, C, P], each asked for once for every channel."""

  def at(cache, position):
    outputs = []
    for _ in range(inputs.shape[-1]):
      output, cache = network.step(params, cache, inputs, position)
      outputs.append(output)
    # Channels known or not, the inputs here are the same.
    return cache, jnp.stack(outputs)

  positions = jnp.arange(inputs.shape[1] * inputs.shape[2])
  cache = network.start(params, inputs.shape, label)
  outputs = lax.scan(at, cache, positions)[1]  # [T, C, B, C, P]
  return jnp.moveaxis(outputs, 2, 0)


@pytest.mark.sampled(1)
@every
@pytest.mark.parametrize(("dtype", "layers"), [("float32", 2), ("bfloat16", 1)])
def test_cached_outputs_are_those_of_a_forward_pass(name, dtype, layers):
  model, params, x = example(name, layers=layers, num_classes=2)
  params = jax.tree.map(lambda leaf: leaf.astype(dtype), params)
  label, inputs = jnp.array([1, 0]), model.conditional.encode(x)

  @jax.jit
  def both(params):
    outputs = model.network.forward(params, inputs, label)
    return outputs, cached_outputs(model.network, params, inputs, label)

  full, cached = both(params)
  assert full.dtype == cached.dtype == jnp.float32
  full = full.reshape(2, 12, 1, 2, LEVELS)
  tolerance = 1e-5 if dtype == "float32" else 0.03
  np.testing.assert_allclose(
    cached, jnp.broadcast_to(full, cached.shape), atol=tolerance
  )


@pytest.mark.slow
@every
def test_completions_are_those_without_a_cache(name):
  model, params, x = example(name)
  plain = model._replace(network=uncached(model.network))
  key, known = jax.random.key(3), jnp.arange(3)[:, None, None] < 1
  cached, full = jax.jit(
    lambda params: [m.complete(key, params, x, known) for m in (model, plain)]
  )(params)
  np.testing.assert_array_equal(cached, full)
  np.testing.assert_array_equal(cached[:, :1], x[:, :1])
  assert (cached[:, 1:] != x[:, 1:]).any()


@pytest.mark.sampled(1)
@every
def test_probabilities_sum_to_one_and_samples_have_them(name):
  shape = (2, 2, 1)
  images = np.array(list(itertools.product([0, 1], repeat=4)), np.int32)
  model = Autoregressive(MAKE[name](), bernoulli())
  params = random_params(model, images.reshape(-1, *shape))

  @jax.jit
  def run(params):
    log_probs = model.log_prob(params, images.reshape(-1, *shape))
    return log_probs, model.sample(jax.random.key(0), params, (4000, *shape))

  log_probs, drawn = run(params)
  probabilities = np.exp(np.asarray(log_probs, np.float64))
  assert probabilities.sum() == pytest.approx(1, abs=1e-5)
  codes = np.asarray(drawn).reshape(-1, 4) @ [8, 4, 2, 1]
  shares = np.bincount(codes, minlength=16) / 4000
  slack = 5 * np.sqrt(probabilities / 4000) + 1e-3
  assert np.all(np.abs(shares - probabilities) < slack)


@pytest.mark.slow
@every
def test_second_derivatives(x64, name):
  model, params, x = example(name, shape=(1, 3, 3, 1))
  params = jax.tree.map(lambda leaf: leaf.astype(jnp.float64), params)
  along = random_params(model, x, seed=5)
  along = jax.tree.map(lambda leaf: leaf.astype(jnp.float64), along)

  @jax.jit
  def products(params, shift):
    at = lambda t: jax.tree.map(lambda p, v: p + t * v, params, along)
    loss = lambda params: -model.log_prob(params, x).sum()
    slope = lambda t: jax.grad(lambda t: loss(at(t)))(t)
    return jax.grad(slope)(shift), slope(shift)

  exact, _ = products(params, 0.0)
  step = 1e-5
  slopes = [products(params, shift)[1] for shift in (step, -step)]
  numeric = (slopes[0] - slopes[1]) / (2 * step)
  np.testing.assert_allclose(exact, numeric, rtol=1e-5)


@pytest.mark.slow
def test_vmap_over_parameters():
  model, params, x = example("diagonal_bilstm", shape=(2, 3, 3, 1))
  draws = [params, random_params(model, x, seed=9)]
  stacked = jax.tree.map(lambda *leaves: jnp.stack(leaves), *draws)

  def run(params):
    drawn = model.sample(jax.random.key(0), params, (2, 3, 3, 1))
    return drawn, model.log_prob(params, drawn)

  drawn, log_probs = jax.jit(jax.vmap(run))(stacked)
  alone = jax.jit(run)
  for k, params in enumerate(draws):
    expected, expected_log_probs = alone(params)
    np.testing.assert_array_equal(drawn[k], expected)
    np.testing.assert_allclose(log_probs[k], expected_log_probs, rtol=1e-5)


def sigmoid(x):
  return 1 / (1 + np.exp(-x))


def test_a_row_lstm_is_a_plain_loop():
  layer, (height, width, size) = row_lstm_layer(3, 1), (4, 5, 3)
  params = layer.init(jax.random.key(0), 2, jnp.float32)
  xs = jax.random.normal(jax.random.key(1), (height, width, 1, 2))
  got = layer.forward(layer.masked(params), xs, xs)[:, :, 0]
  of_inputs, bias = map(np.asarray, params.inputs)
  of_states = np.asarray(params.recurrent_weights)
  x = np.pad(np.asarray(xs)[:, :, 0], ((0, 0), (1, 0), (0, 0)))
  h, c = np.zeros((height + 1, width + 2, size)), np.zeros((width, size))
  for i, j in np.ndindex(height, width):
    a = bias + x[i, j] @ of_inputs[0] + x[i, j + 1] @ of_inputs[1]
    a = a + sum(h[i, j + k] @ of_states[k] for k in range(3))
    gates = np.split(a, 4)
    c[j] = sigmoid(gates[1]) * c[j] + sigmoid(gates[0]) * np.tanh(gates[3])
    h[i + 1, j + 1] = sigmoid(gates[2]) * np.tanh(c[j])
  np.testing.assert_allclose(got, h[1:, 1:-1], rtol=1e-5, atol=1e-6)


@pytest.mark.slow
def test_a_diagonal_bilstm_is_two_networks_of_which_one_is_shifted():
  layer = diagonal_bilstm_layer(3, 1)
  params = layer.init(jax.random.key(0), 2, jnp.float32)
  xs = jax.random.normal(jax.random.key(1), (4, 5, 2, 2))
  pixels = jax.random.normal(jax.random.key(2), (4, 5, 2, 1))
  right = mdlstm.apply(params.rightwards, xs)
  read = jnp.concatenate([xs, pixels], -1)
  left = mdlstm.apply(params.leftwards, read[:, ::-1])[:, ::-1]
  got = layer.forward(params, xs, pixels)
  np.testing.assert_allclose(got[0], right[0], rtol=1e-6)
  np.testing.assert_allclose(got[1:], right[1:] + left[:-1], rtol=1e-5)


def test_a_gaussian_mdrnn_is_a_plain_loop():
  scale, classes = 0.7, 2
  network = pixel_mdrnn(4, 2, num_classes=classes)
  model = Autoregressive(network, gaussian(scale))
  x = jax.random.normal(jax.random.key(0), (1, 3, 4, 2))
  params = random_params(model, x)
  got = model.log_prob(params, x, jnp.array([1]))
  weights = jax.tree.map(np.asarray, params)
  image, expected = np.asarray(x[0], np.float64), 0.0
  states = np.zeros((2, 4, 5, 4))  # layer, row + 1, column + 1, unit
  for i, j in np.ndindex(3, 4):
    above, left = states[-1, i, j + 1], states[-1, i + 1, j]
    mean = np.concatenate([above, left]) @ weights.read_out.weights
    error = (image[i, j] - mean - weights.read_out.bias) / scale
    expected -= 0.5 * np.sum(error**2 + np.log(2 * np.pi * scale**2))
    h = np.concatenate([image[i, j], [0, 1]])
    for layer, state in zip(weights.layers, states, strict=True):
      a = h @ layer.input_weights + layer.bias
      a += state[i, j + 1] @ layer.recurrent_weights[0]
      a += state[i + 1, j] @ layer.recurrent_weights[1]
      state[i + 1, j + 1] = h = np.tanh(a)
  np.testing.assert_allclose(got[0], expected, rtol=1e-5)


@pytest.mark.parametrize(
  ("make", "message"),
  [
    (lambda: row_lstm(kernel_size=4), "kernel_size=4, expected an odd"),
    (lambda: diagonal_bilstm(hidden_size=0), "hidden_size=0"),
    (lambda: pixel_mdrnn(num_layers=0), "num_layers=0"),
    (lambda: pixel_mdrnn(schedule="diagonal"), "schedule='diagonal'"),
  ],
)
def test_wrong_sizes_are_named(make, message):
  with pytest.raises(ValueError, match=message):
    make()


@every
def test_wrong_images_are_named(name):
  model, params, x = example(name)
  with pytest.raises(ValueError, match=r"expected \[B, H, W, 2\]"):
    jax.eval_shape(model.log_prob, params, x[..., :1])
  with pytest.raises(ValueError, match="no classes"):
    jax.eval_shape(model.log_prob, params, x, jnp.array([0, 0]))


@pytest.mark.parametrize("make", [row_lstm, diagonal_bilstm])
def test_each_channel_needs_features(make):
  model = Autoregressive(make(2, 1, 3), categorical(LEVELS))
  with pytest.raises(ValueError, match="expected 3 or more"):
    model.init(jax.random.key(0), jnp.zeros((1, 4, 4, 3), jnp.int32))
