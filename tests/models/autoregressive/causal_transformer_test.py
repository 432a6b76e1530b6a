"""The Transformer against dense algebra in NumPy, and its cache."""

import itertools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.special import erf, softmax

from revmom.models.autoregressive.autoregressive import Autoregressive
from revmom.models.autoregressive.causal_network import uncached
from revmom.models.autoregressive.causal_transformer import causal_transformer
from revmom.models.autoregressive.language_model import tokens

VOCABULARY = 5


def example(length=6, num_classes=0, seed=0):
  """A model, parameters far from where training starts, and texts."""
  network = causal_transformer(8, 2, 2, num_classes)
  model = Autoregressive(network, tokens(VOCABULARY))
  rng = np.random.default_rng(seed + 1)
  x = jnp.asarray(rng.integers(0, VOCABULARY, (2, length)), "int32")
  like = jax.eval_shape(model.init, jax.random.key(0), x)
  draw = lambda leaf: jnp.asarray(0.4 * rng.normal(size=leaf.shape), leaf.dtype)
  return model, jax.tree.map(draw, like), x


def plain_scores(params, text, label, heads):
  """Of one text [T, V], position by position, in float64."""
  params = jax.tree.map(lambda leaf: np.asarray(leaf, np.float64), params)
  x = np.array([params.start, *params.embeddings[text[:-1]]])
  x = x + params.positions[: len(text)] + params.classes[label]
  width = x.shape[1]

  def norm(weights, x):
    centred = x - x.mean(-1, keepdims=True)
    scaled = centred / np.sqrt(x.var(-1, keepdims=True) + 1e-5)
    return scaled * weights.gain + weights.shift

  def gelu(x):  # jax.nn.gelu approximates it by a tanh
    return 0.5 * x * (1 + erf(x / math.sqrt(2)))

  for layer in range(len(params.blocks.attention_norm.gain)):
    block = jax.tree.map(lambda leaf, layer=layer: leaf[layer], params.blocks)
    q, k, v = np.split(
      norm(block.attention_norm, x) @ block.query_key_value.weights
      + block.query_key_value.bias,
      3,
      -1,
    )
    mixed = np.zeros_like(x)
    for t, head in np.ndindex(len(text), heads):
      own = slice(head * width // heads, (head + 1) * width // heads)
      scores = k[: t + 1, own] @ q[t, own] / math.sqrt(width // heads)
      mixed[t, own] = softmax(scores) @ v[: t + 1, own]
    x = x + mixed @ block.attention_out.weights + block.attention_out.bias
    hidden = norm(block.mlp_norm, x) @ block.mlp_in.weights + block.mlp_in.bias
    x = x + gelu(hidden) @ block.mlp_out.weights + block.mlp_out.bias
  return norm(params.norm, x) @ params.embeddings.T


@pytest.mark.slow
def test_it_is_a_transformer():
  model, params, x = example(num_classes=3)
  label = jnp.array([2, 0])
  got = model.network.forward(params, model.conditional.encode(x), label)
  for i in range(2):
    expected = plain_scores(params, np.asarray(x[i]), int(label[i]), heads=2)
    np.testing.assert_allclose(got[i], expected, atol=5e-3)


@pytest.mark.sampled(1)
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_cached_outputs_are_those_of_a_forward_pass(dtype):
  model, params, x = example(num_classes=3)
  params = jax.tree.map(lambda leaf: leaf.astype(dtype), params)
  inputs, label = model.conditional.encode(x), jnp.array([0, 1])
  network = model.network

  @jax.jit
  def both(params):
    def step(cache, position):
      outputs, cache = network.step(params, cache, inputs, position)
      return cache, outputs

    cache = network.start(params, inputs.shape, label)
    outputs = jax.lax.scan(step, cache, jnp.arange(6))[1]
    full = network.forward(params, inputs, label)
    return jnp.moveaxis(outputs, 0, 1), full

  cached, full = both(params)
  assert cached.dtype == full.dtype == jnp.float32
  tolerance = 1e-5 if dtype == "float32" else 0.05
  np.testing.assert_allclose(cached, full, atol=tolerance)


@pytest.mark.slow
def test_an_output_sees_all_tokens_before():
  model, params, x = example()
  x, encode = x[:1], model.conditional.encode
  # Tokens are integers: what another one in each place changes.
  changed = jnp.where(jnp.eye(6, dtype=bool), (x + 1) % VOCABULARY, x)
  outputs = model.network.forward(params, encode(changed), None)
  alike = model.network.forward(params, encode(x), None)
  seen = (np.abs(np.asarray(outputs - alike)) > 1e-6).any(-1).T
  np.testing.assert_array_equal(seen, np.tri(6, k=-1, dtype=bool))


@pytest.mark.slow
def test_probabilities_sum_to_one_and_samples_have_them():
  model, params, _ = example(length=2)
  texts = np.array(list(itertools.product(range(VOCABULARY), repeat=2)))
  drawn = model.sample(jax.random.key(0), params, (4000, 2))
  plain = model._replace(network=uncached(model.network))
  same = plain.sample(jax.random.key(0), params, (4000, 2))
  np.testing.assert_array_equal(drawn, same)
  log_probs = np.asarray(model.log_prob(params, texts.astype(np.int32)))
  probabilities = np.exp(log_probs.astype(np.float64))
  assert probabilities.sum() == pytest.approx(1, abs=1e-5)
  shares = np.bincount(np.asarray(drawn) @ [VOCABULARY, 1], minlength=25) / 4000
  slack = 5 * np.sqrt(probabilities / 4000) + 1e-3
  assert np.all(np.abs(shares - probabilities) < slack)


@pytest.mark.slow
def test_second_derivatives(x64):
  model, params, x = example()
  _, along, _ = example(seed=7)
  params, along = (
    jax.tree.map(lambda leaf: leaf.astype(jnp.float64), tree)
    for tree in (params, along)
  )

  @jax.jit
  def products(shift):
    at = lambda t: jax.tree.map(lambda p, v: p + t * v, params, along)
    slope = jax.grad(lambda t: model.log_prob(at(t), x).sum())
    return jax.grad(slope)(shift), slope(shift)

  step = 1e-5
  numeric = (products(step)[1] - products(-step)[1]) / (2 * step)
  np.testing.assert_allclose(products(0.0)[0], numeric, rtol=1e-5)


@pytest.mark.slow
def test_vmap_over_parameters():
  model, params, x = example()
  draws = [params, example(seed=4)[1]]
  stacked = jax.tree.map(lambda *leaves: jnp.stack(leaves), *draws)
  together = jax.jit(jax.vmap(lambda params: model.log_prob(params, x)))(
    stacked
  )
  for k, params in enumerate(draws):
    alone = model.log_prob(params, x)
    np.testing.assert_allclose(together[k], alone, rtol=1e-5)


@pytest.mark.parametrize(
  ("sizes", "message"),
  [((8, 2, 3), "width=8 and num_heads=3"), ((8, 0, 2), "num_layers=0")],
)
def test_wrong_sizes_are_named(sizes, message):
  with pytest.raises(ValueError, match=message):
    causal_transformer(*sizes)


@pytest.mark.slow
def test_events_may_be_shorter_and_not_longer():
  model, params, x = example()
  shorter = model.element_log_probs(params, x[:, :4])
  whole = model.element_log_probs(params, x)
  np.testing.assert_allclose(shorter, whole[:, :4], rtol=1e-5)
  longer = jnp.zeros((1, 7), jnp.int32)
  with pytest.raises(ValueError, match="events of 7 tokens, expected 6"):
    model.log_prob(params, longer)
