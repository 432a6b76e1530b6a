"""Language models against a plain loop, and their caches."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from revmom.cells import elman, gru, lstm, ugrnn
from revmom.models.autoregressive.autoregressive import Autoregressive
from revmom.models.autoregressive.causal_network import uncached
from revmom.models.autoregressive.language_model import (
  init,
  initial,
  language_model,
  log_probs,
  tokens,
)

CELLS = {cell.name: cell for cell in (elman.cell, gru.cell, lstm.cell)}


def shaken(params, seed=1):
  """Parameters far from where training starts; h_0 is not zero."""
  rng = np.random.default_rng(seed)
  noise = lambda leaf: 0.4 * rng.normal(size=leaf.shape).astype(leaf.dtype)
  return jax.tree.map(
    lambda leaf: jnp.asarray(leaf + noise(leaf)), jax.device_get(params)
  )


def plain_log_probs(params, cell, text, label=None):
  """log softmax(e . h_{t-1})[w_t], one token after the other."""
  classes = 0 if label is None else params.classes[label]
  carry = cell.initial_carry(params.cell, 1)
  leaves, structure = jax.tree.flatten(carry)
  carry = structure.unflatten([leaves[0] + classes, *leaves[1:]])
  values, step = [], jax.jit(cell.step)
  for token in text:
    h = np.asarray(jax.tree.leaves(carry)[0][0], np.float64)
    scores = np.asarray(params.embeddings, np.float64) @ h
    values.append(scores[token] - np.log(np.exp(scores).sum()))
    read = (params.embeddings[token] + classes)[None]
    carry, _ = step(params.cell, carry, read)
  return np.array(values)


@pytest.mark.sampled(1)
@pytest.mark.parametrize("name", CELLS)
@pytest.mark.parametrize("classes", [0, 2])
def test_probabilities_are_those_of_a_plain_loop(name, classes):
  cell = CELLS[name]
  params = shaken(
    jax.jit(lambda key: init(key, 7, 5, cell=cell, num_classes=classes))(
      jax.random.key(0)
    )
  )
  text = np.random.default_rng(2).integers(0, 7, (9, 2), np.int32)
  label = jnp.array([1, 0]) if classes else None
  network = language_model(5, cell=cell, num_classes=classes)
  model = Autoregressive(network, tokens(7))

  @jax.jit
  def run(params):
    # In two windows, with the state carried from one to the next.
    carry = initial(params, 2, label, cell=cell)
    first, carry = log_probs(params, text[:4], carry, label, cell=cell)
    second, _ = log_probs(params, text[4:], carry, label, cell=cell)
    whole = model.element_log_probs(params, text.T, label)
    return jnp.concatenate([first, second]), whole

  got, whole = run(params)
  for i in range(2):
    its_label = int(label[i]) if classes else None
    expected = plain_log_probs(params, cell, np.asarray(text[:, i]), its_label)
    np.testing.assert_allclose(got[:, i], expected, rtol=1e-5)
    np.testing.assert_allclose(whole[i], expected, rtol=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_cached_outputs_are_those_of_a_forward_pass(dtype):
  network = language_model(4, 6, num_classes=2)
  model = Autoregressive(network, tokens(5))
  x = jax.random.randint(jax.random.key(0), (2, 9), 0, 5)
  params = shaken(model.init(jax.random.key(1), x))
  params = jax.tree.map(lambda leaf: leaf.astype(dtype), params)
  inputs, label = tokens(5).encode(x), jnp.array([0, 1])

  @jax.jit
  def both(params):
    def step(cache, position):
      outputs, cache = network.step(params, cache, inputs, position)
      return cache, outputs

    cache = network.start(params, inputs.shape, label)
    outputs = jax.lax.scan(step, cache, jnp.arange(9))[1]
    full = network.forward(params, inputs, label)
    return jnp.moveaxis(outputs, 0, 1), full

  cached, full = both(params)
  tolerance = 1e-5 if dtype == "float32" else 0.03
  np.testing.assert_allclose(cached, full, atol=tolerance)


@pytest.mark.slow
def test_an_output_sees_all_tokens_before():
  network = language_model(4)
  model = Autoregressive(network, tokens(5))
  x = jnp.array([[1, 4, 0, 2, 3, 1]])
  params = shaken(model.init(jax.random.key(1), x))
  # Tokens are integers: what another one in each place changes.
  changed = jnp.where(jnp.eye(6, dtype=bool), (x + 1) % 5, x)
  outputs = network.forward(params, tokens(5).encode(changed), None)
  alike = network.forward(params, tokens(5).encode(x), None)
  seen = (
    (np.abs(np.asarray(outputs - alike)) > 1e-6).any(-1).T
  )  # [output, input]
  np.testing.assert_array_equal(seen, np.tri(6, k=-1, dtype=bool))


@pytest.mark.slow
def test_probabilities_sum_to_one_and_samples_have_them():
  texts = np.array(list(itertools.product(range(3), repeat=3)), np.int32)
  network = language_model(4)
  model = Autoregressive(network, tokens(3))
  params = shaken(model.init(jax.random.key(1), texts))
  drawn = model.sample(jax.random.key(0), params, (4000, 3))
  plain = Autoregressive(uncached(network), tokens(3))
  same = plain.sample(jax.random.key(0), params, (4000, 3))
  np.testing.assert_array_equal(drawn, same)
  log_probs = np.asarray(model.log_prob(params, texts), np.float64)
  probabilities = np.exp(log_probs)
  assert probabilities.sum() == pytest.approx(1, abs=1e-5)
  shares = np.bincount(np.asarray(drawn) @ [9, 3, 1], minlength=27) / 4000
  slack = 5 * np.sqrt(probabilities / 4000) + 1e-3
  assert np.all(np.abs(shares - probabilities) < slack)


@pytest.mark.slow
def test_second_derivatives(x64):
  network = language_model(3, cell=ugrnn.cell)
  model = Autoregressive(network, tokens(4))
  x = jnp.array([[1, 3, 0, 2]])
  params = model.init(jax.random.key(0), x)
  params = jax.tree.map(lambda leaf: leaf.astype(jnp.float64), params)
  params, along = shaken(params, 2), shaken(params, 3)

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
  model = Autoregressive(language_model(4, cell=gru.cell), tokens(5))
  x = jnp.array([[1, 4, 0], [2, 2, 3]])
  params = model.init(jax.random.key(0), x)
  draws = [shaken(params, 2), shaken(params, 3)]
  stacked = jax.tree.map(lambda *leaves: jnp.stack(leaves), *draws)
  together = jax.vmap(lambda params: model.log_prob(params, x))(stacked)
  for k, params in enumerate(draws):
    alone = model.log_prob(params, x)
    np.testing.assert_allclose(together[k], alone, rtol=1e-5)


def test_only_an_lstm_projects():
  with pytest.raises(ValueError, match="only the LSTM has a projection"):
    init(jax.random.key(0), 7, 5, 6, cell=gru.cell)
  assert init(jax.random.key(0), 7, 5, 6).cell.projection.shape == (6, 5)


def test_tokens_are_integers():
  with pytest.raises(ValueError, match="expected integers"):
    tokens(3).encode(jnp.array([0.0]))


@pytest.mark.parametrize("shape", [(0, 2), (3, 0), (0, 0)])
def test_nothing_has_no_tokens(shape):
  params = shaken(init(jax.random.key(0), 5, 4))
  carry = initial(params, shape[1])
  values, after = log_probs(params, jnp.zeros(shape, jnp.int32), carry)
  assert values.shape == shape
  jax.tree.map(np.testing.assert_array_equal, after, carry)
