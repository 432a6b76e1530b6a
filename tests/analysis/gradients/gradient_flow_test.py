"""Norms by taps, against autodiff of each layer alone, in float64."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from revmom.analysis import gradient_flow
from revmom.analysis.gradients import norms


def layer(params, x):
  weights, bias = params
  return jnp.tanh(x @ weights + bias)


def network(key, depth, width, dtype=jnp.float32):
  keys = jax.random.split(key, 3)
  weights = jax.random.normal(keys[0], (depth, width, width), dtype)
  biases = jax.random.normal(keys[1], (depth, width), dtype)
  x = jax.random.normal(keys[2], (3, width), dtype)
  return (weights * 2 / width**0.5, biases), x


def squares(y):
  return jnp.sum(y.astype(jnp.float32) ** 2)


def by_loops(params, x, loss):
  """(activation, its gradient, gradient of parameters) of the input and layers.

  One gradient for each layer, of the rest of the network.
  """
  layers = [jax.tree.map(lambda leaf, i=i: leaf[i], params) for i in range(4)]
  activations = [x]
  for own in layers:
    activations.append(layer(own, activations[-1]))

  def rest(start, layers, x):
    for own in layers[start:]:
      x = layer(own, x)
    return loss(x)

  bars = [jax.grad(rest, 2)(i, layers, a) for i, a in enumerate(activations)]
  parameter_bars = jax.grad(rest, 1)(0, layers, x)
  return activations, bars, parameter_bars


@pytest.mark.slow
@pytest.mark.parametrize("seed, width", [(0, 1), (1, 6)])
def test_norms_are_those_of_one_gradient_per_layer(x64, seed, width):
  params, x = network(jax.random.key(seed), 4, width, jnp.float64)
  loss = lambda y: jnp.sum(jnp.sin(y) ** 2)
  flow = gradient_flow(layer, params, x, loss=loss)
  activations, bars, parameter_bars = by_loops(params, x, loss)
  norm = lambda tree: np.sqrt(
    sum(float(np.sum(np.asarray(leaf) ** 2)) for leaf in jax.tree.leaves(tree))
  )
  close = lambda got, wanted: np.testing.assert_allclose(got, wanted, 1e-12)
  close(flow.activations.norm, [norm(a) for a in activations])
  close(flow.gradients.norm, [norm(b) for b in bars])
  close(flow.gradients.rms, [norm(b) / b.size**0.5 for b in bars])
  close(flow.parameter_gradients.norm, [0, *map(norm, parameter_bars)])
  close(flow.activations.elements, [x.size] * 5)
  assert flow.problems == []


@pytest.mark.slow
def test_a_list_a_scan_and_jit_agree(x64):
  loss = lambda y: jnp.sum(y * y)
  params, x = network(jax.random.key(0), 4, 5, jnp.float64)
  flow = gradient_flow(layer, params, x, loss=loss, spectra=True)
  rows = [jax.tree.map(lambda leaf, i=i: leaf[i], params) for i in range(4)]
  listed = gradient_flow([layer] * 4, rows, x, loss=loss, spectra=True)
  jitted = jax.jit(
    lambda params, x: gradient_flow(layer, params, x, loss=loss, spectra=True)
  )(params, x)
  assert jitted.names == flow.names
  for other in (listed, jitted):
    for got, wanted in zip(
      jax.tree.leaves(other), jax.tree.leaves(flow), strict=True
    ):
      # Logarithms of the smallest singular values have lost seven digits.
      np.testing.assert_allclose(got, wanted, rtol=1e-7, atol=1e-8)
  assert listed.names[1] == "layer 0 layer"


@pytest.mark.slow
def test_bfloat16_differs_by_rounding():
  params, x = network(jax.random.key(0), 4, 16)
  exact = gradient_flow(layer, params, x)
  short = jax.tree.map(lambda leaf: leaf.astype(jnp.bfloat16), (params, x))
  flow = gradient_flow(layer, *short)
  assert flow.gradients.norm.dtype == jnp.float32
  for got, wanted in zip(flow[2:6], exact[2:6], strict=True):
    np.testing.assert_allclose(got.norm, wanted.norm, rtol=0.03)


def test_norms_beyond_the_range_of_squares():
  scales = jnp.array([1e-30, 1e-10, 1.0, 1e15, 1e30])
  for scale in scales:
    got = norms.norms(norms.sums(scale * jnp.array([3.0, 0.0, -4.0])))
    np.testing.assert_allclose(got.norm, 5 * scale, rtol=1e-6)
    np.testing.assert_allclose(got.rms, 5 * scale / 3**0.5, rtol=1e-6)
    np.testing.assert_allclose(got.zeros, 1 / 3, rtol=1e-6)
  mixed = norms.norms(norms.sums((jnp.array([1e-25, 4e12]), jnp.array([3e12]))))
  np.testing.assert_allclose(mixed.norm, 5e12, rtol=1e-6)


@pytest.mark.slow
def test_gradients_far_below_one_are_not_zero():
  # Squares of gradients of 1e-27 are below float32.
  weights = jnp.full((90, 1, 1), 0.5)
  flow = gradient_flow(lambda w, x: w @ x, weights, jnp.ones(1))
  np.testing.assert_allclose(flow.gradients.norm[0], 0.5**90, rtol=1e-6)
  assert flow.problems == []


@pytest.mark.slow
def test_taps_within_transformations(x64):
  weights = jax.random.normal(jax.random.key(0), (3, 4, 4))
  xs = jax.random.normal(jax.random.key(1), (5, 4))

  def run(token):
    @jax.checkpoint
    def body(x, w):
      return norms.tap(jnp.tanh(w @ x), token), None

    return jnp.sum(jax.vmap(lambda x: jax.lax.scan(body, x, weights)[0])(xs))

  found = norms.norms(jax.jit(jax.grad(run))(norms.tokens(1)[0]))
  total = 0.0
  for x in xs:
    for w in weights:
      x = jnp.tanh(w @ x)
      total += float(jnp.sum(x**2))
  np.testing.assert_allclose(found.norm[0] ** 2, total, rtol=1e-12)
  assert found.elements[0] == 60


@pytest.mark.slow
@pytest.mark.parametrize(
  "change, layer_name, what",
  [
    (lambda w: w.at[2].set(-1.0), "layer 2", "all activations are zero"),
    (lambda w: w.at[1, 0, 0].set(jnp.inf), "layer 1", "not finite"),
    (lambda w: w.at[3].set(jnp.nan), "layer 3", "parameters are not finite"),
  ],
)
def test_trouble_is_reported_by_name(change, layer_name, what):
  weights = change(jnp.ones((5, 3, 3)) / 3)
  flow = gradient_flow(
    lambda w, x: jax.nn.relu(w @ x), weights, jnp.ones(3), spectra=True
  )
  assert any(
    problem.startswith(layer_name) and what in problem
    for problem in flow.problems
  ), flow.problems
  # No layer behind is left unmentioned where its figures mean nothing.
  for name, norm in zip(flow.names, flow.gradients.norm, strict=True):
    if not norm > 0:
      assert any(p.startswith(f"{name}:") for p in flow.problems), name
  assert "PROBLEM" in str(flow)


@pytest.mark.slow
def test_dead_gradients_and_unreached_layers():
  stop = lambda _, x: jax.lax.stop_gradient(x)
  linear = lambda w, x: w @ x
  flow = gradient_flow(
    [linear, stop, linear], [jnp.eye(2), None, jnp.eye(2)], jnp.ones(2)
  )
  text = "\n".join(flow.problems)
  assert "layer 0: the loss does not depend on its result" in text
  assert "layer 0: the gradient of its parameters is zero" in text
  assert "layer 1" not in text


@pytest.mark.slow
def test_one_element_that_is_not_zero_is_not_dead():
  flow = gradient_flow(
    [lambda _, x: x.at[0].set(1.0)], [None], jnp.zeros(2**25)
  )
  assert not [p for p in flow.problems if p.startswith("layer 0: all")]


@pytest.mark.slow
def test_integers_are_left_alone():
  embed = lambda table, tokens: table[tokens]
  flow = gradient_flow(
    [embed, lambda w, x: x @ w],
    [jnp.ones((5, 3)), jnp.ones((3, 2))],
    jnp.array([1, 4]),
  )
  assert flow.activations.elements.tolist() == [0, 6, 4]
  assert flow.problems == ["input: the loss does not depend on its result"]
  with pytest.raises(ValueError, match="no floats"):
    gradient_flow([embed], [jnp.ones((5, 3))], jnp.array([1]), spectra=True)


class Callable:
  """A module of another library."""

  def __call__(self, x):
    return x


@pytest.mark.parametrize(
  "layers, params, message",
  [
    ([], [], "no layers"),
    (object(), None, "neither a Flax module nor a function"),
    (Callable(), None, "Callable and no Flax module.*Give a list of func"),
    (Callable(), jax.nn.relu, "Callable and no Flax module"),
    ([layer, 3], [None, None], "layer 1 is a int"),
    ([layer], [None, None], "list or tuple of 1"),
    (layer, (jnp.ones((2, 3, 3)), jnp.ones((4, 3))), "leading axis"),
    (layer, (jnp.ones((2, 3, 4)), jnp.ones((2, 4))), "must keep shape"),
    (layer, (jnp.ones((0, 3, 3)), jnp.ones((0, 3))), "first axis is 0"),
  ],
)
def test_what_does_not_fit_is_an_error(layers, params, message):
  with pytest.raises(ValueError, match=message):
    gradient_flow(layers, params, jnp.ones((1, 3)))


@pytest.mark.slow
def test_options_are_for_modules():
  with pytest.raises(ValueError, match="functools.partial"):
    gradient_flow(layer, network(jax.random.key(0), 2, 3)[0], 1.0, train=True)


@pytest.mark.parametrize("size", [1e-37, 1.0, 8.6e37, 2e38])
def test_norms_at_the_ends_of_the_range(size):
  x = np.float32(size) * np.array([1.0, -0.5, 0.25], np.float32)
  got = jax.jit(lambda x: norms.norms(norms.sums(x)))(x)
  exact = np.linalg.norm(x.astype(np.float64))
  np.testing.assert_allclose(got.norm, exact, rtol=1e-5)
  np.testing.assert_allclose(got.rms, exact / 3**0.5, rtol=1e-5)
  unit, factor = norms.scaled(jnp.asarray(x))
  got = jnp.linalg.norm(unit) * factor[0]
  np.testing.assert_allclose(got, exact, rtol=1e-5)


def test_what_explodes_or_vanishes_is_named():
  linear = lambda w, x: w @ x
  explosion = jax.jit(lambda w: gradient_flow(linear, w, X))(
    np.stack([np.eye(2, dtype=np.float32) * 1e19] * 2)
  )
  text = "\n".join(explosion.problems)
  assert "layer 0: activations explode" in text
  assert "gradients explode" in text and "dead" not in text
  rng = np.random.default_rng(0)
  weights = rng.normal(size=(13, 32, 32)).astype(np.float32) / 32**0.5
  sigmoids = jax.jit(
    lambda w: gradient_flow(lambda w, x: jax.nn.sigmoid(w @ x), w, jnp.ones(32))
  )(weights.astype(np.float32))
  (problem,) = sigmoids.problems
  ratios = sigmoids.gradients.norm / sigmoids.gradients.norm[-1]
  row = np.flatnonzero(ratios < 1e-4)[-1]
  assert problem.startswith(f"{sigmoids.names[row]}: gradients vanish")


X = jnp.ones(2)
