"""Products, biases and gains against NumPy and autodiff."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from revmom.cells.sequences import affine
from revmom.numerics import outer_products


def draw(seed, *shape, dtype=jnp.float64):
  return jnp.asarray(np.random.default_rng(seed).normal(size=shape), dtype)


def close(got, expected, tolerance=1e-13):
  np.testing.assert_allclose(got, expected, rtol=tolerance, atol=tolerance)


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
      weights_bar = outer_products(hidden, product_bar, weights.dtype)
      gain_bar = None
      if normalised is not None:
        gain_bar = affine.gain_adjoint(normalised, bars)
      got = hidden_bar, weights_bar, gain_bar
      jax.tree.map(close, got, pull(bars))
