"""Inverses of mixtures with steps, kinks and indices: right, NaN or refused."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

from revmom.jacobian import NotInvertible, inverse

A = jnp.asarray(np.random.default_rng(0).normal(size=(4, 4)))
X = np.array([0.3, -1.2, 2.6, 0.7])
MASK = jnp.array([True, False, True, False])

STEPS = {
  "x + round(x)": lambda x: x + jnp.round(x),
  "2 x + round(x)": lambda x: 2 * x + jnp.round(x),
  "A x + round(x)": lambda x: A.astype(x.dtype) @ x + jnp.round(x),
  "x + floor(x + 1/2)": lambda x: x + jnp.floor(x + 0.5),
  "x + 5 (x > 2)": lambda x: x + 5 * (x > 2).astype(x.dtype),
  "x + mean of rounds": lambda x: x + jnp.mean(jnp.round(x)),
  "x + integers": lambda x: x + x.astype(jnp.int32).astype(x.dtype),
  "x + stop_gradient(x)": lambda x: x + lax.stop_gradient(x),
  "x + x[argmax]": lambda x: x + x[jnp.argmax(x)],
}


@pytest.mark.parametrize("name", STEPS)
def test_steps_are_right_or_refused(x64, name):
  """A step has slope 0 nearly everywhere, and is not affine all the same."""
  f = STEPS[name]
  for shift in (0.0, 1.7, -40.3):
    x = jnp.asarray(X + shift)
    try:
      back = inverse(f)(f(x))
    except NotInvertible:
      continue
    wrong = ~np.isnan(back) & (np.abs(back - x) > 1e-9)
    assert not wrong.any(), (x, back)


def hermitian(x):
  f = jnp.fft.rfft(x)
  return jnp.concatenate([f.real, f.imag[1:-1]])


def mixed(x):
  return A.astype(x.dtype) @ x + 3 * x


def gated(x):
  a, b = jnp.split(x, 2)
  gate = jax.nn.softplus(a) + jnp.exp(jax.nn.log_sigmoid(a))
  return jnp.concatenate([a, b * gate + jax.nn.mish(a)])


RIGHT = {
  "noise": lambda x: x + jax.random.normal(jax.random.key(0), x.shape, x.dtype),
  "rfft": hermitian,
  "softplus of what is known": gated,
  "x + softplus(x)": lambda x: x + jax.nn.softplus(x),
  "exp(x) + log2(exp(x))": lambda x: jnp.exp(x) + jnp.log2(jnp.exp(x)),
  "masked cases": lambda x: jnp.where(MASK, 2 * x, x + jnp.tanh(x)),
  "masked erf": lambda x: jnp.where(MASK, -x, jax.scipy.special.erf(x)),
  "an empty piece": lambda x: jnp.concatenate([x[:0], 2 * x]),
  "affine, then kinks": lambda x: jax.nn.leaky_relu(jnp.exp(mixed(x))),
}


SLOW = ["rfft"]


@pytest.mark.parametrize(
  "name",
  [
    *(name for name in RIGHT if name not in SLOW),
    *(pytest.param(name, marks=pytest.mark.slow) for name in SLOW),
  ],
)
def test_right(x64, name):
  x = jnp.asarray(X)
  f = RIGHT[name]
  np.testing.assert_allclose(inverse(f)(f(x)), x, 1e-9, 1e-9)


def test_a_refusal_names_the_line_and_the_way_out():
  with pytest.raises(
    NotInvertible, match="piecewise_inverse_test.py:.*`custom"
  ):
    inverse(STEPS["x + round(x)"])(jnp.ones(3))


def test_ends_of_the_range():
  x = jnp.array([1e8, -1e8])
  back = inverse(jnp.arctan)(jnp.arctan(x))
  np.testing.assert_array_equal(jnp.sign(back), [1, -1])
  assert inverse(jax.nn.softplus)(jnp.array(0.0)) == -jnp.inf


def test_a_traced_singular_matrix_gives_nan(x64):
  def back(a, y):
    return inverse(lambda x: x + (a - 1) * jnp.mean(x))(y)

  assert np.isnan(jax.jit(back)(0.0, jnp.arange(4.0))).all()


def test_fourth_derivative_of_a_root(x64):
  """Of x + x^3 at 0: y - y^3 + 3 y^5 - ..., by Lagrange's inversion."""
  g = inverse(lambda x: x + x**3)
  for _ in range(3):
    g = jax.grad(g)
  np.testing.assert_allclose(g(jnp.array(0.0)), -6, 1e-9)
