"""Bounds that hold for any weights and inputs, and one that does not."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from revmom.analysis import (
  chain_bound,
  compare,
  layer_spectra,
  recurrence_bound,
  residual_bounds,
  residual_counterexample,
)

seeds = st.integers(0, 2**31 - 1)
LOG4 = np.log(4.0)


@jax.jit
def sigmoid_chain(x):
  """Units x -> sigmoid(x), 200 of them."""
  weights = jnp.ones((200, 1, 1))
  spectra = layer_spectra(lambda w, x: jax.nn.sigmoid(w @ x), weights, x[None])
  return spectra, compare(
    chain_bound(weights, "sigmoid"), spectra.products.log_largest.value
  )


@pytest.mark.slow
@settings(max_examples=25, deadline=None)
@given(st.floats(-30, 30, width=32))
def test_a_chain_of_sigmoids_vanishes_and_cannot_explode(x):
  """D1: |df/dx| <= 4^-n for every n up to 200, 1e-120."""
  spectra, comparison = sigmoid_chain(jnp.float32(x))
  assert comparison.holds.all()
  np.testing.assert_allclose(
    comparison.log_bound, -LOG4 * np.arange(1, 201), rtol=1e-5
  )
  # The derivative in float64: s (1 - s), n times.
  log, value = 0.0, np.float64(x)
  for n in range(200):
    value = 1 / (1 + np.exp(-value))
    log += np.log(value) + np.log1p(-value)
    if n == 0 and abs(x) > 10:
      log = np.float64(comparison.log_measured[0])  # s (1 - s) has cancelled
    np.testing.assert_allclose(
      comparison.log_measured[n], log, rtol=1e-4, atol=1e-3
    )
  assert spectra.log_largest_bound[-1] >= comparison.log_measured[-1] - 0.1


@jax.jit
def tanh_chain(x):
  weights = jnp.ones((200, 1, 1))
  spectra = layer_spectra(lambda w, x: jnp.tanh(w @ x), weights, x[None])
  return compare(
    chain_bound(weights, "tanh"), spectra.products.log_largest.value
  )


@settings(max_examples=15, deadline=None)
@given(st.floats(-5, 5, width=32))
def test_a_chain_of_tanh_is_bounded_by_one(x):
  """D2."""
  assert tanh_chain(jnp.float32(x)).holds.all()


def test_the_bound_of_tanh_is_reached_at_zero():
  np.testing.assert_array_equal(tanh_chain(jnp.float32(0)).log_measured, 0)


@jax.jit
def recurrence(key, gain):
  """x_{t+1} = tanh(W x_t), W [6, 6], 30 steps."""
  keys = jax.random.split(key, 2)
  weights = gain * jax.random.normal(keys[0], (6, 6))
  spectra = layer_spectra(
    lambda w, x: jnp.tanh(w @ x),
    jnp.broadcast_to(weights, (29, 6, 6)),
    jax.random.normal(keys[1], (6,)),
  )
  log = jnp.concatenate([jnp.zeros(1), spectra.products.log_largest.value])
  weights_only = compare(recurrence_bound(weights, 30), log)
  return weights_only, compare(
    spectra.log_largest_bound, spectra.products.log_largest.value
  )


@pytest.mark.slow
@settings(max_examples=25, deadline=None)
@given(seeds, st.floats(0.0625, 5, width=32))
def test_recurrences_obey_powers_of_the_largest_singular_value(seed, gain):
  """D3, and the tighter bound composed of the steps' own Jacobians."""
  of_weights, composed = recurrence(jax.random.key(seed), jnp.float32(gain))
  assert of_weights.holds.all() and composed.holds.all()
  tolerance = of_weights.tolerance
  assert np.all(composed.log_bound <= of_weights.log_bound[1:] + tolerance)


@settings(max_examples=25, deadline=None)
@given(seeds, st.floats(0.0078125, 10, width=32))
def test_bounds_of_residual_maps(seed, scale):
  """D4, for J with a split spectrum, against NumPy's float64."""
  rng = np.random.default_rng(seed)
  size = int(rng.choice([2, 5]))
  left, right = np.linalg.qr(rng.normal(size=(2, size, size)))[0]
  values = np.where(np.arange(size) < size // 2, scale, 1e-3)
  jacobian = (left * values) @ right.T
  bounds = residual_bounds(jnp.asarray(jacobian, jnp.float32))
  measured = np.linalg.svd(np.eye(size) + jacobian, compute_uv=False)
  np.testing.assert_allclose(bounds.measured, measured, atol=1e-4)
  slack = 1e-4
  assert measured[0] <= bounds.largest_at_most + slack
  assert measured[0] >= bounds.largest_at_least - slack
  assert np.all(measured >= bounds.all_at_least - slack)
  assert bool(bounds.claim_fails) == (
    measured[-1] < bounds.claimed_at_least - 1e-6
  ) or np.isclose(measured[-1], bounds.claimed_at_least, atol=1e-4)


@settings(max_examples=15, deadline=None)
@given(seeds, st.sampled_from([2, 7]), st.floats(1.5, 20, width=32))
def test_the_counterexample(seed, size, factor):
  """D4: b u v^T with u . v = -1/b makes I + J singular."""
  jacobian = residual_counterexample(jax.random.key(seed), size, factor)
  s = np.linalg.svd(np.asarray(jacobian, np.float64), compute_uv=False)
  np.testing.assert_allclose(s[0], factor, rtol=1e-5)
  np.testing.assert_allclose(s[1:], 0, atol=1e-5 * factor)
  together = np.eye(size) + np.asarray(jacobian, np.float64)
  least = np.linalg.svd(together, compute_uv=False)[-1]
  assert least < 1e-5 * factor
  bounds = residual_bounds(jacobian)
  assert bool(bounds.claim_fails)
  np.testing.assert_allclose(bounds.claimed_at_least, 1, atol=1e-5)
  assert bounds.all_at_least < 0


@settings(max_examples=20, deadline=None)
@given(
  seeds,
  st.sampled_from(["sigmoid", "tanh", "relu", "linear"]),
  st.integers(1, 6),
)
def test_chains_of_any_depth_and_width(seed, name, depth):
  rng = np.random.default_rng(seed)
  sizes = rng.integers(1, 6, depth + 1)
  weights = [rng.normal(size=(m, n)) for n, m in zip(sizes, sizes[1:])]  # noqa: B905
  x = rng.normal(size=sizes[0])
  product = np.eye(sizes[0])
  sigmoid = lambda v: 1 / (1 + np.exp(-v))
  slopes = {
    "sigmoid": (sigmoid, lambda v: sigmoid(v) * sigmoid(-v)),
    "tanh": (np.tanh, lambda v: 1 - np.tanh(v) ** 2),
    "relu": (lambda v: np.maximum(v, 0), lambda v: (v > 0) * 1.0),
    "linear": (lambda v: v, np.ones_like),
  }
  phi, slope = slopes[name]
  bound = chain_bound([jnp.asarray(w, jnp.float32) for w in weights], name)
  for log_bound, w in zip(bound, weights, strict=True):
    product = slope(w @ x)[:, None] * (w @ product)
    x = phi(w @ x)
    largest = np.linalg.svd(product, compute_uv=False)[0]
    assert largest <= np.exp(np.float64(log_bound)) * (1 + 1e-5)


def test_violations_show():
  comparison = compare(jnp.zeros(3), jnp.array([-1.0, 0.1, jnp.nan]))
  assert comparison.holds.tolist() == [True, False, False]
  assert "NO" in str(comparison)
  below = compare(jnp.zeros(2), jnp.array([-1.0, 1.0]), upper=False)
  assert below.holds.tolist() == [False, True]
  assert "at least" in str(below)


def test_what_does_not_fit_is_an_error():
  with pytest.raises(ValueError, match="nonlinearity='gelu'"):
    chain_bound([jnp.eye(2)], "gelu")
  with pytest.raises(ValueError, match="expected \\[n\\]"):
    compare(jnp.zeros(2), jnp.zeros(3))
  with pytest.raises(ValueError, match="two dimensions"):
    residual_counterexample(jax.random.key(0), 1)
  with pytest.raises(ValueError, match="above -1"):
    residual_counterexample(jax.random.key(0), 3, 1.0)
