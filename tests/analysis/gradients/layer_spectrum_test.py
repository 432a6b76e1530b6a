"""Spectra of Jacobians, against dense SVD and products in float64."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from revmom.analysis import layer_spectra
from revmom.analysis.gradients import linear_maps
from revmom.analysis.gradients.spectrum import (
  dense_spectrum,
  krylov_matrices,
  krylov_spectrum,
)


def tanh_layer(weights, x):
  return jnp.tanh(weights @ x)


def jacobians_of(layers, params, x):
  """Dense, and in NumPy's float64."""
  found = []
  compiled = {
    f: jax.jit(lambda *a, f=f: (jax.jacfwd(f, 1)(*a), f(*a))) for f in layers
  }
  for layer, own in zip(layers, params, strict=True):
    jacobian, x = compiled[layer](own, x)
    found.append(np.asarray(jacobian, np.float64))
  return found


@pytest.mark.slow
@pytest.mark.parametrize("seed, gain", [(0, 0.7), (1, 1.5)])
def test_spectra_are_those_of_dense_svd(seed, gain):
  keys = jax.random.split(jax.random.key(seed), 2)
  weights = gain * jax.random.normal(keys[0], (6, 7, 7)) / 7**0.5
  x = jax.random.normal(keys[1], (7,))
  spectra = layer_spectra(tanh_layer, weights, x)
  product = np.eye(7)
  for i, jacobian in enumerate(
    jacobians_of([tanh_layer] * 6, list(weights), x)
  ):
    product = jacobian @ product
    for spectrum, matrix in (
      (spectra.layers, jacobian),
      (spectra.products, product),
    ):
      s = np.linalg.svd(matrix, compute_uv=False)
      got = np.exp(np.asarray(spectrum.log_values[i], np.float64))
      np.testing.assert_allclose(got, s, atol=4e-6 * s[0])
      np.testing.assert_allclose(
        np.exp(spectrum.log_mean_square.value[i]), np.mean(s**2), rtol=1e-4
      )
      np.testing.assert_allclose(
        spectrum.spread.value[i],
        np.mean(s**4) / np.mean(s**2) ** 2 - 1,
        rtol=1e-3,
        atol=1e-4,
      )


@pytest.mark.slow
def test_layers_of_different_sizes():
  """The square roots of all eigenvalues of J^T J, zeros included."""
  keys = jax.random.split(jax.random.key(0), 4)
  shapes = (5, 3), (2, 5), (4, 2)
  params = [
    jax.random.normal(key, shape)
    for key, shape in zip(keys, shapes, strict=False)
  ]
  x = jax.random.normal(keys[3], (3,))
  spectra = jax.jit(
    lambda params, x: layer_spectra([tanh_layer] * 3, params, x)
  )(params, x)
  product = np.eye(3)
  for i, jacobian in enumerate(jacobians_of([tanh_layer] * 3, params, x)):
    product = jacobian @ product
    for spectrum, matrix in (
      (spectra.layers, jacobian),
      (spectra.products, product),
    ):
      columns = matrix.shape[1]
      s = np.linalg.svd(matrix, compute_uv=False)
      s = np.pad(s, (0, columns))[:columns]
      np.testing.assert_allclose(
        np.exp(spectrum.log_values[i, :columns]), s, atol=1e-5 * s[0]
      )
      np.testing.assert_allclose(spectrum.weights[i].sum(), 1, rtol=1e-6)
      np.testing.assert_allclose(
        np.exp(spectrum.log_mean_square.value[i]), np.mean(s**2), rtol=1e-4
      )
      np.testing.assert_allclose(
        np.exp(spectrum.log_smallest.value[i]), s[-1], atol=1e-5 * s[0]
      )


@pytest.mark.slow
@pytest.mark.parametrize("dense", [512, 4])
def test_products_do_not_leave_the_range_of_floats(monkeypatch, dense):
  monkeypatch.setattr(linear_maps, "DENSE", dense)
  frames = np.linalg.qr(np.random.default_rng(0).normal(size=(60, 6, 6)))[0]
  for scale in (1e-5, 1e5):
    layer = lambda w, x, scale=scale: jnp.tanh(w @ (x * scale) * 1e-9) * 1e9
    spectra = layer_spectra(
      layer, jnp.asarray(frames, jnp.float32), jnp.zeros(6)
    )
    last = jax.tree.map(lambda leaf: leaf[-1], spectra.products)
    wanted = 60 * np.log(scale)  # 1e-300 and 1e300
    np.testing.assert_allclose(last.log_values[:1], wanted, rtol=1e-5)
    np.testing.assert_allclose(last.log_largest.value, wanted, rtol=1e-5)
    np.testing.assert_allclose(
      last.log_mean_square.value, 2 * wanted, rtol=1e-5
    )
    np.testing.assert_allclose(last.spread.value, 0, atol=1e-3)
    assert spectra.problems == []


@pytest.mark.slow
def test_a_residual_stack_that_explodes():
  """relu, width 16, 120 layers: mean s^2 beyond float32, in float64 here."""
  keys = jax.random.split(jax.random.key(0), 2)
  weights = jax.random.normal(keys[0], (120, 16, 16)) * (2 / 16) ** 0.5
  layer = lambda w, x: x + jax.nn.relu(w @ x)
  x = jax.random.normal(keys[1], (16,)) * 1e-15
  spectra = layer_spectra(layer, weights, x)
  product = np.eye(16)
  for jacobian in jacobians_of([layer] * 120, list(weights), x):
    product = jacobian @ product
  s = np.linalg.svd(product, compute_uv=False)
  mean_square = np.exp(np.float64(spectra.products.log_mean_square.value[-1]))
  assert mean_square > 1e38
  np.testing.assert_allclose(mean_square, np.mean(s**2), rtol=1e-3)
  np.testing.assert_allclose(
    np.float64(spectra.products.log_largest.value[-1]), np.log(s[0]), rtol=1e-5
  )


@pytest.mark.slow
def test_bounds_compose_and_hold():
  keys = jax.random.split(jax.random.key(3), 2)
  weights = jax.random.normal(keys[0], (10, 8, 8)) / 8**0.5
  spectra = layer_spectra(tanh_layer, weights, jax.random.normal(keys[1], (8,)))
  log = np.log(
    [
      np.linalg.svd(j, compute_uv=False)[[0, -1]]
      for j in jacobians_of(
        [tanh_layer] * 10, list(weights), jax.random.normal(keys[1], (8,))
      )
    ]
  )
  np.testing.assert_allclose(
    spectra.log_largest_bound, np.cumsum(log[:, 0]), atol=1e-3
  )
  assert np.all(
    spectra.products.log_largest.value <= spectra.log_largest_bound + 1e-5
  )
  assert np.all(
    spectra.products.log_smallest.interval[:, 1] >= spectra.log_smallest_bound
  )


def known_matrix(key, shape, values):
  """A random matrix with given singular values."""
  rows, columns = shape
  left = jnp.linalg.qr(jax.random.normal(key, (rows, len(values))))[0]
  right = jnp.linalg.qr(
    jax.random.normal(jax.random.fold_in(key, 1), (columns, len(values)))
  )[0]
  return (left * values) @ right.T


@pytest.mark.parametrize(
  "shape, values",
  [
    # Ill conditioned.
    ((90, 90), 10.0 ** jnp.linspace(-4, 1, 90)),
    # One stands out.
    pytest.param(
      (90, 60),
      jnp.concatenate([jnp.ones(59), jnp.full(1, 30.0)]),
      marks=pytest.mark.slow,
    ),
    pytest.param((90, 90), jnp.linspace(0.1, 1.0, 90), marks=pytest.mark.slow),
    # 50 directions are lost.
    pytest.param((40, 90), jnp.linspace(1.0, 2.0, 40), marks=pytest.mark.slow),
  ],
)
def test_krylov_intervals_cover(shape, values):
  """Of 200 estimates, each from random directions of its own.

  The 95 % intervals of eight directions may miss 21 times, which binomial
  chance passes once in 1000 tests.  The largest value may never be missed.
  """
  matrix = known_matrix(jax.random.key(0), shape, values)

  @jax.jit
  def estimate(keys):
    matrices = jax.vmap(
      lambda key: krylov_matrices(
        lambda v: matrix @ v, lambda u: u @ matrix, shape, jnp.float32, key
      )
    )(keys)
    return krylov_spectrum(matrices, np.full(200, shape[1]))

  got = estimate(jax.random.split(jax.random.key(1), 200))
  s = np.pad(np.asarray(values, np.float64), (0, shape[1] - len(values)))
  inside = lambda figure, truth: np.sum(
    (figure.interval[:, 0] <= truth + 1e-4)
    & (truth <= figure.interval[:, 1] + 1e-4)
  )
  assert inside(got.log_largest, np.log(s.max())) == 200
  width = np.diff(got.log_largest.interval)
  assert np.all(width < 0.05)
  assert inside(got.log_mean_square, np.log(np.mean(s**2))) >= 179
  spread = np.mean(s**4) / np.mean(s**2) ** 2 - 1
  assert inside(got.spread, spread) >= 179
  assert np.all(np.exp(got.log_smallest.interval[:, 1]) >= s.min() - 1e-6)
  np.testing.assert_allclose(got.weights.sum(-1), 1, rtol=1e-5)
  np.testing.assert_allclose(
    np.sum(got.weights * np.exp(2 * got.log_values), -1),
    np.exp(got.log_mean_square.value),
    rtol=1e-4,
  )


@pytest.mark.slow
@pytest.mark.parametrize("scanned", [True, False])
def test_matrix_free_spectra_of_a_stack(monkeypatch, scanned):
  keys = jax.random.split(jax.random.key(5), 2)
  weights = jax.random.normal(keys[0], (3, 40, 40)) / 40**0.5
  x = jax.random.normal(keys[1], (40,))
  network = (tanh_layer, weights) if scanned else ([tanh_layer] * 3, [*weights])
  dense = layer_spectra(*network, x)
  monkeypatch.setattr(linear_maps, "DENSE", 16)
  free = jax.jit(lambda x: layer_spectra(*network, x))(x)
  for got, wanted in (
    (free.layers, dense.layers),
    (free.products, jax.tree.map(lambda leaf: leaf[-1:], dense.products)),
  ):
    low, high = np.asarray(got.log_largest.interval).T
    truth = np.asarray(wanted.log_largest.value)
    assert np.all((low <= truth + 1e-4) & (truth <= high)) and np.all(
      high - low < 0.05
    )
    assert np.all(got.log_smallest.interval[:, 1] >= wanted.log_smallest.value)
  assert np.all(free.log_largest_bound >= dense.log_largest_bound - 1e-4)


def test_zero_and_infinite_jacobians_are_reported():
  layer = lambda w, x: jax.nn.relu(w * x)
  factors = jnp.array([[1.0], [-1.0], [1.0]])
  spectra = layer_spectra(layer, factors, jnp.ones(2))
  assert spectra.problems[:1] == ["layer 1: its Jacobian is zero"]
  spectra = layer_spectra(layer, factors.at[2].set(jnp.inf), jnp.ones(2))
  assert "layer 2: its Jacobian is not finite" in spectra.problems


@pytest.mark.slow
def test_a_batch_has_the_spectra_of_its_examples():
  weights = jax.random.normal(jax.random.key(0), (2, 4, 4))
  xs = jax.random.normal(jax.random.key(1), (3, 4))
  layer = lambda w, x: jnp.tanh(x @ w)
  together = layer_spectra(layer, weights, xs).products.log_values[-1]
  alone = [layer_spectra(layer, weights, x).products.log_values[-1] for x in xs]
  np.testing.assert_allclose(
    np.exp(together), np.sort(np.exp(np.concatenate(alone)))[::-1], atol=1e-5
  )


@pytest.mark.slow
def test_an_isometry():
  frame = jnp.linalg.qr(jax.random.normal(jax.random.key(0), (9, 9)))[0]
  spectrum = dense_spectrum(frame[None], np.array([9]))
  np.testing.assert_allclose(spectrum.log_values, 0, atol=1e-6)
  np.testing.assert_allclose(spectrum.spread.value, 0, atol=1e-6)
