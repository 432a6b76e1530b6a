"""The plain cell against loops over positions in NumPy, and its sizes.

What all cells on grids have in common is in `grid_cells_test`.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from revmom.cells import mdrnn

B, D, H = 2, 3, 4


@pytest.mark.parametrize(("inputs", "units"), [(3, 5), (64, 64)])
def test_number_of_weights(inputs, units):
  init = lambda key: mdrnn.init(key, inputs, units, bias=False)
  params = jax.eval_shape(init, jax.random.key(0))
  sizes = [leaf.size for leaf in jax.tree.leaves(params)]
  assert sum(sizes) == inputs * units + 2 * units**2


def problem(shape):
  params = jax.jit(lambda key: mdrnn.init(key, D, H, ndim=len(shape)))(
    jax.random.key(0)
  )
  params = params._replace(bias=jnp.linspace(-1.0, 1.0, H))
  xs = jax.random.normal(jax.random.key(1), (*shape, B, D))
  return jax.tree.map(lambda leaf: leaf.astype(jnp.float64), (params, xs))


def check(params, xs, expected):
  for schedule in ("rows", "wavefront"):
    outputs = jax.jit(mdrnn.apply, static_argnames="schedule")(
      params, xs, schedule=schedule
    )
    np.testing.assert_allclose(outputs, expected, rtol=0, atol=1e-14)


@pytest.mark.slow
def test_one_dimension_is_the_plain_rnn(x64):
  params, xs = problem((6,))
  weights, (recurrent,), bias = map(np.asarray, params)
  h, states = np.zeros((B, H)), []
  for x in np.asarray(xs):
    h = np.tanh(x @ weights + h @ recurrent + bias)
    states.append(h)
  check(params, xs, np.stack(states))


@pytest.mark.slow
def test_two_dimensions_are_a_double_loop(x64):
  params, xs = problem((3, 5))
  weights, (above, left), bias = map(np.asarray, params)
  h = np.zeros((4, 6, B, H))  # with a border of zeros
  for i in range(3):
    for j in range(5):
      h[i + 1, j + 1] = np.tanh(
        xs[i, j] @ weights + h[i, j + 1] @ above + h[i + 1, j] @ left + bias
      )
  check(params, xs, h[1:, 1:])


@pytest.mark.slow
def test_three_dimensions_are_a_triple_loop(x64):
  params, xs = problem((3, 2, 4))
  weights, (first, second, third), bias = map(np.asarray, params)
  h = np.zeros((4, 3, 5, B, H))
  for i in range(3):
    for j in range(2):
      for k in range(4):
        h[i + 1, j + 1, k + 1] = np.tanh(
          xs[i, j, k] @ weights
          + h[i, j + 1, k + 1] @ first
          + h[i + 1, j, k + 1] @ second
          + h[i + 1, j + 1, k] @ third
          + bias
        )
  check(params, xs, h[1:, 1:, 1:])


@pytest.mark.slow
def test_adjoints_of_every_position(x64):
  params, xs = problem((2, 3))
  bars = jax.random.normal(jax.random.key(2), (2, 3, B, H), jnp.float64)

  def with_noise(h_noise, a_noise):
    h = {}
    zero = jnp.zeros((B, H))
    for i in range(2):
      for j in range(3):
        a = a_noise[i, j] + params.bias + xs[i, j] @ params.input_weights
        a = a + h.get((i - 1, j), zero) @ params.recurrent_weights[0]
        a = a + h.get((i, j - 1), zero) @ params.recurrent_weights[1]
        h[i, j] = jnp.tanh(a) + h_noise[i, j]
    return sum(jnp.sum(bars[p] * value) for p, value in h.items())

  expected = jax.grad(with_noise, (0, 1))(*(jnp.zeros_like(bars),) * 2)
  _, residuals = mdrnn.forward(params, xs)
  for wanted in (True, False):
    adjoints = mdrnn.backward(params, residuals, bars, adjoints=wanted).adjoints
    if wanted:
      np.testing.assert_allclose(adjoints.h, expected[0], rtol=0, atol=1e-12)
      np.testing.assert_allclose(adjoints.a, expected[1], rtol=0, atol=1e-12)
    else:
      assert adjoints is None


@pytest.mark.parametrize("size", [0, -1])
def test_wrong_sizes(size):
  for name in ("input_size", "hidden_size"):
    sizes = {"input_size": D, "hidden_size": H, name: size}
    with pytest.raises(ValueError, match=f"{name}={size}; give at least 1"):
      mdrnn.init(jax.random.key(0), **sizes)
