"""Programs against the functions that they are traced from."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

from revmom.jacobian.program.control_flow import CALLS
from revmom.jacobian.program.dependence import dependent
from revmom.jacobian.program.equations import inline, run, subprograms, trace

X = np.linspace(-1.0, 1.0, 5).astype(np.float32)
SCALE = np.float32(1.5)


@jax.custom_vjp
def cube(x):
  return x * x * x


cube.defvjp(lambda x: (cube(x), x), lambda x, bar: (3 * bar * x * x,))


def calls(x):
  inner = jax.jit(lambda x: jax.jit(jnp.sin)(x) * SCALE)
  return {"a": cube(inner(x)), "b": jax.checkpoint(jax.nn.softplus)(x)}


def loops(x, count):
  counter, x = lax.fori_loop(
    0, 3, lambda i, state: (state[0] + 1, jnp.sin(state[1])), (0.0, x)
  )
  total, partial = lax.scan(lambda c, x: (c + x, c), jnp.float32(0), x)
  y = lax.while_loop(
    lambda s: s[0] < count, lambda s: (s[0] + 1, 2 * s[1]), (0, x)
  )
  return counter, total, partial, y, lax.cond(count > 1, jnp.exp, jnp.sin, x)


def assert_same(got, want):
  assert len(got) == len(want)
  for a, b in zip(got, want, strict=True):
    np.testing.assert_allclose(a, b, rtol=1e-6)


@pytest.mark.parametrize(("f", "args"), [(calls, (X,)), (loops, (X, 2))])
def test_a_program_is_its_function(f, args):
  program, structure = trace(f, *args)
  want, same_structure = jax.tree.flatten(f(*args))
  assert structure == same_structure
  leaves = jax.tree.leaves(args)
  assert_same(run(program, leaves), want)
  assert_same(jax.jit(lambda *leaves: run(program, leaves))(*leaves), want)


def test_calls_are_inlined():
  program, _ = trace(calls, X)
  names = {equation.name for equation in program.equations}
  assert names.isdisjoint(CALLS)
  assert {"sin", "log1p"} <= names


def test_a_call_may_be_kept():
  kept = lambda equation: equation.primitive.name == "custom_vjp_call"
  program, _ = trace(calls, X, keep=kept)
  names = [equation.name for equation in program.equations]
  assert names.count("custom_vjp_call") == 1
  # The rule comes along.
  bar = jax.grad(lambda x: jnp.sum(run(program, [x])[0]))(X)
  want = jax.grad(lambda x: jnp.sum(calls(x)["a"]))(X)
  np.testing.assert_allclose(bar, want, rtol=1e-6)


def test_programs_under_transformations():
  program, _ = trace(calls, X)
  f = lambda x: run(program, [x])
  g = lambda x: jax.tree.leaves(calls(x))
  assert_same(jax.vmap(f)(X[:, None]), jax.vmap(g)(X[:, None]))
  tangent = np.ones_like(X)
  # No forward derivative stops at a custom reverse one.
  slope = 3 * (SCALE * np.sin(X)) ** 2 * SCALE * np.cos(X)
  got = jax.jvp(f, (X,), (tangent,))[1][0]
  np.testing.assert_allclose(got, slope, rtol=1e-5)


def test_constants_may_be_traced():
  def value(scale, x):
    program, _ = trace(lambda x: jax.jit(lambda x: x * scale)(x), x)
    return jnp.sum(run(program, [x])[0])

  got = jax.jit(jax.grad(value))(SCALE, X)
  np.testing.assert_allclose(got, np.sum(X), atol=1e-6)


def test_what_no_output_needs_is_left_out():
  def f(x):
    jnp.exp(x)
    return jax.grad(lambda x: jnp.sum(x**2))(x)

  program, _ = trace(f, X)
  assert "reduce_sum" not in [equation.name for equation in program.equations]


def test_every_value_has_its_own_variable():
  twice = jax.jit(jnp.sin)
  program, _ = trace(lambda x: twice(twice(x)), X)
  made = [v for equation in program.equations for v in equation.outputs]
  assert len(made) == len(set(made)) == 2


def test_loops_and_branches_stay_and_open():
  program, _ = trace(loops, X, 2)
  found = {e.name: subprograms(e) for e in program.equations if subprograms(e)}
  assert {name: len(subs) for name, subs in found.items()} == {
    "scan": 1,
    "while": 2,
    "cond": 2,
  }
  (body,) = found["scan"]
  assert [e.name for e in inline(body).equations][-1] == "add"


def reached(f, *args, of=0):
  """Whether each output depends on one of the arguments."""
  program, _ = trace(f, *args)
  found = dependent(program.equations, [program.inputs[of]])
  return [v in found for v in program.outputs]


def test_dependence_through_loops_and_branches():
  assert reached(loops, X, 2) == [False, True, True, False, True, True]
  # Of the count: how often the loop runs, and which branch.
  assert reached(loops, X, 2, of=1) == [False] * 3 + [True] * 3


def test_dependence_travels_around_a_loop():
  def swaps(a, b, c):
    return lax.fori_loop(0, 3, lambda i, s: (s[1], s[0], s[2]), (a, b, c))

  assert reached(swaps, 1.0, 2.0, 3.0) == [True, True, False]


def test_dependence_in_a_chosen_sense():
  program, _ = trace(lambda x: (x, (x > 0).astype(jnp.float32)), X)
  smooth = lambda equation, k: equation.outputs[k].dtype == jnp.float32
  found = dependent(program.equations, program.inputs, smooth)
  assert [v in found for v in program.outputs] == [True, False]
