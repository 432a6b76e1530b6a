"""Programs keep their values, and loops lose what they carry for nothing."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

import revmom
from revmom.jacobian.program.dead_code import live
from revmom.jacobian.program.equations import run, trace


def grow(x):
  return x + 0.5 * jnp.tanh(x)


def dropped_sum(x):
  step = lambda c, _: ((grow(c[0]), c[1] + jnp.sum(c[0])), c[1])
  return lax.scan(step, (x, 0.0), length=3)[0][0]


def dropped_cycle(x):
  """Two values that only each other read, and a counter."""

  def step(carry, t):
    x, a, b, count = carry
    return (grow(x) * t, b + jnp.sum(x), 2 * a, count + 1), count * a

  return lax.scan(step, (x, 0.0, 1.0, 0), jnp.array([1.0, 2.0]))[0][0]


def delayed(x):
  """What comes first is read by the second, a step later: all is needed."""
  step = lambda c, _: ((2 * c[1], grow(c[0])), None)
  return lax.scan(step, (x[:2], x[2:]), length=2)[0]


def in_while(x):
  def step(carry):
    x, total, count = carry
    return grow(x), total + jnp.sum(x), count + 1

  return lax.while_loop(lambda c: c[2] < 3, step, (x, 0.0, 0))[0]


def in_cond(x):
  yes = lambda x, total: (grow(x), total + jnp.sum(x))
  no = lambda x, total: (2 * x, total)
  return lax.cond(jnp.asarray(True), yes, no, x, 1.0)[0]


def nested(x):
  """The outer loop's total is read by the inner one's alone."""

  def outer(carry, _):
    step = lambda c, _: ((grow(c[0]), c[1] + jnp.sum(c[0])), None)
    return lax.scan(step, carry, length=2)[0], None

  return lax.scan(outer, (x, 0.0), length=2)[0][0]


FUNCTIONS = [dropped_sum, dropped_cycle, delayed, in_while, in_cond, nested]
X = np.linspace(-1, 1, 4)


@pytest.mark.parametrize("f", FUNCTIONS, ids=lambda f: f.__name__)
def test_determinant_by_structure(f, x64):
  x = jnp.asarray(X)
  got = revmom.log_det(f, method="structure")(x)
  leaves = lambda x: jnp.concatenate(jax.tree.leaves(f(x)))
  sign, value = np.linalg.slogdet(jax.jacfwd(leaves)(x))
  np.testing.assert_allclose(got.value, value, rtol=1e-9)
  assert got.sign == sign and abs(value) > 0.1
  assert any(block.kind in ("scan", "while", "cond") for block in got.report)
  assert all(block.largest == 1 for block in got.report)


@pytest.mark.parametrize("f", FUNCTIONS, ids=lambda f: f.__name__)
def test_values_stay(f):
  x = jnp.asarray(X, jnp.float32)
  program = trace(f, x)[0]
  narrow = live(program)
  for got, whole in zip(run(narrow, [x]), run(program, [x]), strict=True):
    np.testing.assert_array_equal(got, whole)
  count = lambda p: [len(e.outputs) for e in p.equations if e.name != "lt"]
  fewer = [a < b for a, b in zip(count(narrow), count(program), strict=True)]
  assert any(fewer) == (f is not delayed)


def test_a_dropped_random_key():
  def f(x, key):
    step = lambda c, _: ((2 * c[0], jax.random.split(c[1])[0]), None)
    return lax.scan(step, (x, key), length=2)[0][0]

  got = revmom.log_det(lambda x: f(x, jax.random.key(0)))(jnp.ones(3))
  np.testing.assert_allclose(got.value, 6 * np.log(2), rtol=1e-6)


def test_inverse_of_a_loop_with_a_dropped_sum(x64):
  def f(x):
    step = lambda c, _: ((jnp.sinh(c[0]), c[1] + c[0].sum()), None)
    return lax.scan(step, (x, 0.0), length=2)[0][0]

  x = jnp.asarray(X)
  np.testing.assert_allclose(revmom.inverse(f)(f(x)), x, rtol=1e-9)
