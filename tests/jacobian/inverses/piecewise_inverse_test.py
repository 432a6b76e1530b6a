"""Inverses of mixtures with steps, masks and indices: right, NaN or refused."""

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


def gated(x):
  a, b = jnp.split(x, 2)
  gate = jax.nn.softplus(a) + jnp.exp(jax.nn.log_sigmoid(a))
  return jnp.concatenate([a, b * gate + jax.nn.mish(a)])


RIGHT = {
  "noise": lambda x: x + jax.random.normal(jax.random.key(0), x.shape, x.dtype),
  "softplus of what is known": gated,
  "masked erf": lambda x: jnp.where(MASK, -x, jax.scipy.special.erf(x)),
  "an empty piece": lambda x: jnp.concatenate([x[:0], 2 * x]),
}


@pytest.mark.parametrize("name", RIGHT)
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


RANK_2 = np.array([[1.0, 2, 3], [2, 1, 0], [3, 3, 3]])
# Of a number that is 0 when it runs, what can't be undone then.
VANISHING = {
  "product": lambda s, x: (RANK_2 + s * jnp.eye(3)) @ x,
  "scattered": lambda s, x: x.at[:].multiply(s),
  "scaled": lambda s, x: s * x,
  "divided": lambda s, x: s / x,
  "power of 1": lambda s, x: (1 + s) ** x,
  "power of 0": lambda s, x: s**x,
}


@pytest.mark.parametrize("name", VANISHING)
def test_what_is_singular_only_when_it_runs_gives_nan(x64, name):
  f = VANISHING[name]
  back = jax.jit(lambda s, y: inverse(lambda x: f(s, x))(y))
  y = jnp.array([0.5, 1.5, 2.5])
  assert np.isnan(back(0.0, y)).all()
  x = back(0.3, y)
  np.testing.assert_allclose(f(0.3, x), y, 1e-9)


def test_a_known_singular_matrix_is_refused():
  with pytest.raises(NotInvertible, match="by a singular matrix .*_test.py"):
    inverse(lambda x: RANK_2.astype("float32") @ x)(jnp.ones(3))


def test_numbers_of_python():
  assert inverse(jnp.exp)(1.0) == 0
  assert inverse(lambda x, y: (x + y, y))((3.0, 1.0)) == (2, 1)
