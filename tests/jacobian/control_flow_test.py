"""JAX's loops and branches are read alike, whichever JAX wrote them."""

from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

from revmom.jacobian.control_flow import (
  branches_of,
  narrowed_scan,
  scan_form,
  while_form,
)
from revmom.jacobian.dead_code import live
from revmom.jacobian.program import run, trace


def equation_of(function, *args):
  name = {"scan", "while", "cond"}
  eqns = jax.make_jaxpr(function)(*args).jaxpr.eqns
  return next(e for e in reversed(eqns) if e.primitive.name in name)


def looped(w, xs):
  """Two constants, a nested carry, two xs and two ys."""

  def step(carry, x):
    a, (b, count) = carry
    a = jnp.tanh(w[0] * a + x[0])
    return (a, (b + w[1] * x[1], count + 1)), (a, b)

  start = jnp.ones(2), (jnp.zeros(2), 0)
  return lax.scan(step, start, xs, reverse=True, unroll=2)


ARGS = (jnp.arange(4.0).reshape(2, 2), (jnp.ones((4, 2)), jnp.ones((4, 2))))


def test_scan_is_taken_apart():
  equation = equation_of(looped, *ARGS)
  form = scan_form(equation)
  shapes = [v.aval.shape for v in equation.invars[form.constants :]]
  assert (form.carry, form.length, form.reverse, form.unroll) == (3, 4, True, 2)
  assert shapes == [(2,), (2,), (), (4, 2), (4, 2)]
  assert len(form.body.jaxpr.invars) == len(equation.invars)


def test_scan_of_a_gradient_is_taken_apart():
  objective = lambda w, xs: looped(w, xs)[0][0].sum()
  equation = equation_of(jax.grad(objective), *ARGS)
  form = scan_form(equation)
  stop = form.constants + form.carry
  for outer, inner in zip(
    equation.invars[:stop], form.body.jaxpr.invars[:stop], strict=True
  ):
    assert outer.aval.shape == inner.aval.shape
  for v in equation.invars[stop:]:
    assert v.aval.shape[0] == form.length


def test_narrowed_scan_computes_the_same():
  program, _ = trace(lambda w, xs: looped(w, xs)[1][0], *ARGS)
  narrow = live(program)
  leaves = jax.tree.leaves(ARGS)
  np.testing.assert_array_equal(run(narrow, leaves)[0], run(program, leaves)[0])
  (scan,) = [e for e in narrow.equations if e.name == "scan"]
  assert scan_form(scan).carry == 1
  assert len(scan.outputs) == 2


def test_while_and_cond_are_taken_apart():
  loop = lambda x, y: lax.while_loop(lambda c: c < x, lambda c: c * y, 1.0)
  form = while_form(equation_of(loop, 8.0, 2.0))
  assert (form.condition_constants, form.body_constants) == (1, 1)
  assert [len(p.jaxpr.invars) for p in (form.condition, form.body)] == [2, 2]
  switch = lambda k, x: lax.switch(k, [jnp.sin, jnp.cos, jnp.tan], x)
  names = [
    b.jaxpr.eqns[0].primitive.name
    for b in branches_of(equation_of(switch, 0, 1.0))
  ]
  assert names == ["sin", "cos", "tan"]


@pytest.mark.parametrize("params", [{}, {"ft_in": 3}, {"num_consts": 1}])
def test_unknown_form_names_primitive_and_version(params):
  primitive = SimpleNamespace(name="scan")
  strange = SimpleNamespace(primitive=primitive, params=params)
  for read in (
    scan_form,
    while_form,
    branches_of,
    lambda e: narrowed_scan(e, None, [], []),
  ):
    with pytest.raises(ValueError, match=rf"jax {jax.__version__}.*`scan`"):
      read(strange)
