"""Fences keep values, and keep compilers from fusing across them."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from revmom.exact.fence import fence, isolate, origin

STEP = jnp.array(3, jnp.int32)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_values_are_kept_bit_for_bit(dtype, x64):
  values = np.array([0.0, -0.0, 1.5, -3e-39, np.inf, -np.inf, np.nan], dtype)
  kept = np.asarray(jax.jit(fence)(jnp.asarray(values), STEP))
  assert kept.tobytes() == values.tobytes()


def test_it_differentiates_as_the_identity():
  cube = lambda x, step: fence(x * x, step) * x
  grad, hessian = jax.grad(cube), jax.jacfwd(jax.grad(cube))
  both = jax.jit(lambda x, step: (grad(x, step), hessian(x, step)))
  assert both(jnp.array(2.0), STEP) == (12.0, 12.0)


def draws():
  rng = np.random.default_rng(0)
  return [rng.normal(size=4096).astype(np.float32) for _ in range(3)]


def test_a_product_is_rounded_before_a_sum():
  a, b, c = draws()

  @jax.jit
  def separate(a, b, c, step):
    return fence(a * b, step) + c

  np.testing.assert_array_equal(separate(a, b, c, STEP), a * b + c)


def test_without_it_the_same_equation_may_have_other_bits():
  """The counter-test: where nothing is fused, the test above says nothing."""
  a, b, c = draws()
  fused = np.asarray(jax.jit(lambda a, b, c: a * b + c)(a, b, c))
  np.testing.assert_allclose(fused, a * b + c, atol=1e-6)
  if np.array_equal(fused, a * b + c):
    pytest.skip("this compiler fused nothing, so that fences can't be tested")


def test_a_short_loop_is_not_compiled_as_one_function():
  """XLA on CPU would make one of a loop that touches little memory."""

  def step(carry, t):
    value, gradient = isolate(jax.value_and_grad(jnp.sum), t, carry)
    return carry - gradient, value

  @jax.jit
  def loop(integers):
    steps = origin([integers]) + jnp.arange(3)
    return jax.lax.scan(step, integers.astype(jnp.float32), steps)

  compiled = loop.lower(jnp.arange(2)).compile()
  assert "xla_cpu_small_call" not in compiled.as_text()
  assert "conditional" in compiled.as_text()
