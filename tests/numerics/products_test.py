"""Products, and in which types they accumulate."""

import jax.numpy as jnp
import numpy as np

from revmom.numerics import accumulator, outer_products, product


def test_states_of_short_floats_are_float32(x64):
  for dtype in (jnp.bfloat16, jnp.float16, jnp.float32):
    assert accumulator(dtype) == jnp.float32
  assert accumulator(jnp.float64) == jnp.float64


def test_products_of_short_floats_accumulate_in_float32():
  inputs = jnp.ones((1, 1000), jnp.bfloat16)
  weights = jnp.ones((1000, 1), jnp.bfloat16)
  result = product(inputs, weights)
  # 1000 has no room in the eight bits of a bfloat16 that counts by ones.
  assert result.dtype == jnp.float32 and float(result[0, 0]) == 1000
  bars = jnp.full((1, 1), 1 / 3)
  assert outer_products(inputs, bars, jnp.bfloat16).dtype == jnp.float32


def test_outer_products_are_sums_over_leading_axes():
  left, right = np.ones((2, 3, 4)), np.arange(30.0).reshape(2, 3, 5)
  expected = np.einsum("abi,abj->ij", left, right)
  got = outer_products(jnp.asarray(left), jnp.asarray(right), jnp.float32)
  np.testing.assert_array_equal(got, expected)
