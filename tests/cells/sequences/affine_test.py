"""Products and normalisation against NumPy and autodiff."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from revmom.cells.sequences import affine


def draw(seed, *shape, dtype=jnp.float64):
  return jnp.asarray(np.random.default_rng(seed).normal(size=shape), dtype)


def close(got, expected, tolerance=1e-13):
  np.testing.assert_allclose(got, expected, rtol=tolerance, atol=tolerance)


def test_states_of_short_floats_are_float32(x64):
  for dtype in (jnp.bfloat16, jnp.float16, jnp.float32):
    assert affine.accumulator(dtype) == jnp.float32
  assert affine.accumulator(jnp.float64) == jnp.float64


def test_products_of_short_floats_accumulate_in_float32():
  inputs = jnp.ones((1, 1000), jnp.bfloat16)
  weights = jnp.ones((1000, 1), jnp.bfloat16)
  result = affine.product(inputs, weights)
  # 1000 has no room in the eight bits of a bfloat16 that counts by ones.
  assert result.dtype == jnp.float32 and float(result[0, 0]) == 1000
  bars = jnp.full((1, 1), 1 / 3)
  assert affine.weights_adjoint(inputs, bars, jnp.bfloat16).dtype == jnp.float32


def test_sigmoid(x64):
  values = jnp.linspace(-40, 40, 801)
  close(affine.sigmoid(values), 1 / (1 + np.exp(-np.asarray(values))), 1e-15)


def test_normalise(x64):
  values = np.asarray(draw(0, 2, 3, 5)) * 7 + 3
  result, scale = affine.normalise(jnp.asarray(values))
  deviation = np.sqrt(values.var(-1, keepdims=True) + 1e-5)
  close(result, (values - values.mean(-1, keepdims=True)) / deviation)
  close(scale, 1 / deviation)


def test_a_constant_has_a_finite_adjoint(x64):
  normalised = affine.normalise(jnp.full((2, 4), 3.0))
  close(normalised.values, np.zeros((2, 4)))
  assert bool(
    jnp.all(jnp.isfinite(affine.normalise_adjoint(normalised, draw(0, 2, 4))))
  )


@pytest.mark.parametrize("leading", [(3,), (2, 3)])
@pytest.mark.parametrize("gain", [False, True])
@pytest.mark.parametrize("bias", [False, True])
def test_project_and_its_adjoint(x64, leading, gain, bias):
  arguments = (
    draw(1, *leading, 4),
    draw(2, 4, 5),
    draw(3, 5) if gain else None,
    draw(4, 5) if bias else None,
  )
  inputs, weights, scale, shift = map(np.asarray, arguments)
  expected = inputs @ weights
  if gain:
    centred = expected - expected.mean(-1, keepdims=True)
    expected = centred / np.sqrt(expected.var(-1, keepdims=True) + 1e-5) * scale
  if bias:
    expected = expected + shift
  with jax.disable_jit():
    result, pull = jax.vjp(affine.project, *arguments)
    bars = draw(5, *leading, 5)
    adjoints = affine.project_adjoint(*arguments, bars)
    close(result, expected)
    jax.tree.map(close, adjoints, pull(bars))


def test_gained_product_and_its_adjoint(x64):
  hidden, weights, gain, bars = (
    draw(1, 3, 4),
    draw(2, 4, 5),
    draw(3, 5),
    draw(4, 3, 5),
  )
  with jax.disable_jit():
    for gains in (None, gain):
      _, pull = jax.vjp(affine.gained_product, hidden, weights, gains)
      normalised = affine.normalised_product(hidden, weights, gains)
      product_bar, hidden_bar = affine.product_adjoint(
        weights.T, gains, normalised, bars
      )
      weights_bar = affine.weights_adjoint(hidden, product_bar, weights.dtype)
      gain_bar = None
      if normalised is not None:
        gain_bar = affine.gain_adjoint(normalised, bars)
      got = hidden_bar, weights_bar, gain_bar
      jax.tree.map(close, got, pull(bars))
