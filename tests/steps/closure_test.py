"""Closed-over arrays become arguments, whatever traces them."""

import jax
import jax.numpy as jnp
import numpy as np

from revmom.steps.closure import hoist


def test_a_function_without_closure_is_itself():
  pure, constants, _ = hoist(lambda x, y: x * y["a"], 2.0, {"a": 3.0})
  assert constants == []
  assert float(pure(constants, 2.0, {"a": 5.0})) == 10


def test_closed_over_arrays_are_found():
  array = jnp.arange(3.0)
  structured = lambda x: {"sum": jnp.sum(array * x), "x": [x]}
  pure, constants, _ = hoist(structured, jnp.zeros(3))
  assert len(constants) == 1
  x = jnp.array([1.0, 2.0, 3.0])
  out = pure(constants, x)
  assert float(out["sum"]) == 8
  np.testing.assert_array_equal(out["x"][0], x)
  assert float(pure([2 * array], x)["sum"]) == 16


def test_shapes_are_enough_as_examples():
  array = jnp.ones(2)
  example = jax.ShapeDtypeStruct((2,), jnp.float32)
  pure, constants, shape = hoist(lambda x: x @ array, example)
  assert (shape.shape, shape.dtype) == ((), jnp.float32)
  assert float(pure(constants, jnp.ones(2))) == 2


def test_tracers_are_found():
  def outer(array):
    pure, constants, _ = hoist(lambda x: jnp.sum(array * x), jnp.zeros(2))
    (constant,) = constants
    return jax.grad(lambda c: pure([c], jnp.ones(2)))(constant)

  array = jnp.array([3.0, 4.0])
  np.testing.assert_array_equal(jax.jit(outer)(array), [1, 1])
  np.testing.assert_array_equal(jax.vmap(outer)(jnp.ones((4, 2))).shape, (4, 2))


def test_gradients_reach_through():
  def outer(array):
    pure, constants, _ = hoist(lambda x: jnp.sum(array**2 * x), jnp.zeros(2))
    return pure(constants, jnp.ones(2))

  array = jnp.array([3.0, 4.0])
  np.testing.assert_array_equal(jax.grad(outer)(array), [6, 8])


def test_integers_and_keys_pass():
  labels, key = jnp.array([1, 0]), jax.random.key(3)

  def draw(x):
    return jax.random.normal(jax.random.fold_in(key, 1), (2,)) + x[labels]

  pure, constants, _ = hoist(draw, jnp.zeros(2))
  assert len(constants) == 2
  x = jnp.array([1.0, 2.0])
  np.testing.assert_array_equal(pure(constants, x), draw(x))


def test_a_closed_over_scalar_of_numpy():
  scale = np.float32(3)
  pure, constants, _ = hoist(lambda x: scale * x, jnp.ones(2))
  np.testing.assert_array_equal(pure(constants, jnp.ones(2)), [3, 3])
