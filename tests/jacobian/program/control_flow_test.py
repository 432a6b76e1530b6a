"""JAX's calls, loops and branches are read alike, whichever JAX wrote them.

What a form says is run in plain Python, against the primitive itself.
"""

from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax
from jax.custom_batching import custom_vmap
from jax.extend.core import jaxpr_as_fun
from jax.sharding import PartitionSpec

from revmom.jacobian.program import control_flow
from revmom.jacobian.program.control_flow import (
  CALLS,
  RULES,
  branches_of,
  called,
  narrowed_scan,
  policy_of,
  scan_form,
  while_form,
)
from revmom.jacobian.program.dead_code import live
from revmom.jacobian.program.equations import run, subprograms, trace

X = np.linspace(0.5, 1.5, 4, dtype=np.float32)
PLAIN = lambda x: jnp.sin(x) * X


# Rules that are wrong on purpose, so that they tell whether they were used.
@jax.custom_jvp
def forward(x):
  return PLAIN(x)


@jax.custom_vjp
def reverse(x):
  return PLAIN(x)


@custom_vmap
def batched(x):
  return PLAIN(x)


forward.defjvp(lambda x, v: (forward(*x), 7 * v[0]))
reverse.defvjp(lambda x: (reverse(x), None), lambda _, bar: (7 * bar,))
batched.def_vmap(lambda size, of, x: (7 * x, True))


def root(x):
  newton = lambda f, y: lax.fori_loop(0, 9, lambda _, y: (y + x / y) / 2, y)
  solve = lambda f, y: y / f(jnp.ones_like(y))
  return lax.custom_root(lambda y: y * y - x, x, newton, solve)


def saved(x):
  step = lambda c, y: (c * jnp.sin(x[0]) + y * jnp.exp(x[1]), None)
  total = lambda x: lax.scan(step, 0.0, x)[0]
  policy = jax.checkpoint_policies.everything_saveable
  return jax.grad(jax.checkpoint(total, policy=policy))(x)


def looped(x):
  """Two constants, a nested carry, two xs and two ys."""

  def step(carry, x):
    a, (b, count) = carry
    a = jnp.tanh(w[0] * a + x[0])
    return (a, (b + w[1] * x[1], count + 1)), (a, b)

  w = jnp.sin(x)
  xs = jnp.outer(x, X), jnp.outer(x, x)
  return lax.scan(step, (x, (x, 0)), xs, reverse=True, unroll=2)


def halved(x):
  step = lambda c: (c[0] * x[1] / 2, c[1] + c[0])
  return lax.while_loop(lambda c: c[0][0] > x[0], step, (8 * x, x))


def transposed(x):
  total = lambda x: lax.scan(lambda c, y: (c + 2 * y, None), 0.0, x)[0]
  return jax.linear_transpose(total, x)(x[0])[0]


def switched(x):
  branches = [jnp.sin, lambda x: x * X, jnp.tan]
  return lax.switch(x.astype(int)[-1], branches, x)


def by_scan(equation, values):
  form = scan_form(equation)
  assert form.unroll == equation.params["unroll"]
  stop = form.constants + form.carry
  constants, carry = values[: form.constants], values[form.constants : stop]
  rows: list = [None] * form.length
  steps = range(form.length)
  for t in reversed(steps) if form.reverse else steps:
    row = [x[t] for x in values[stop:]]
    results = jaxpr_as_fun(form.body)(*constants, *carry, *row)
    carry, rows[t] = results[: form.carry], results[form.carry :]
  return [*carry, *map(jnp.stack, zip(*rows, strict=True))]


def by_while(equation, values):
  form = while_form(equation)
  first = form.condition_constants
  stop = first + form.body_constants
  carry = values[stop:]
  while jaxpr_as_fun(form.condition)(*values[:first], *carry)[0]:
    carry = jaxpr_as_fun(form.body)(*values[first:stop], *carry)
  return carry


def by_cond(equation, values):
  return jaxpr_as_fun(branches_of(equation)[values[0]])(*values[1:])


def by_call(equation, values):
  return jaxpr_as_fun(called(equation))(*values)


# By each of the names that a supported JAX gives to it.
FORMS = {
  "jit": (jax.jit(PLAIN), by_call),
  "remat2": (jax.checkpoint(PLAIN), by_call),
  "closed_call eval_jaxpr": (saved, by_call),
  "composite": (lax.composite(PLAIN, name="test.plain"), by_call),
  "custom_jvp_call": (forward, by_call),
  "custom_vjp_call": (reverse, by_call),
  "custom_vmap_call": (batched, by_call),
  "custom_jvp_call call_hi_primitive": (root, by_call),
  "scan": (looped, by_scan),
  "scan of a gradient": (jax.grad(lambda x: looped(x)[0][0].sum()), by_scan),
  "scan transposed": (transposed, by_scan),
  "while": (halved, by_while),
  "cond": (switched, by_cond),
}


def find(closed, names):
  """The last equation of one of the names, at any depth."""
  for equation in reversed(closed.jaxpr.eqns):
    if equation.primitive.name in names:
      return equation
    for inner in subprograms(equation):
      if found := find(inner, names):
        return found
  return None


def close(got, want):
  for a, b in zip(got, want, strict=True):
    np.testing.assert_allclose(a, b, rtol=1e-6)


@pytest.mark.parametrize("names", FORMS)
def test_a_form_is_what_its_primitive_does(names):
  function, by = FORMS[names]
  equation = find(jax.make_jaxpr(function)(X), names.split())
  values = [
    jnp.asarray(X[: np.prod(v.aval.shape, dtype=int)])
    .reshape(v.aval.shape)
    .astype(v.aval.dtype)
    if np.prod(v.aval.shape) <= 4
    else jnp.outer(X, X).astype(v.aval.dtype)
    for v in equation.invars
  ]
  params = equation.primitive.get_bind_params(equation.params)
  want = equation.primitive.bind(*values, **params)
  if not equation.primitive.multiple_results:
    want = [want]
  close(by(equation, values), want)


@pytest.mark.parametrize("names", FORMS)
def test_an_inlined_program_is_its_function(names):
  function, _ = FORMS[names]
  program, _ = trace(function, X)
  close(run(program, [X]), jax.tree.leaves(function(X)))
  assert CALLS.isdisjoint(e.name for e in program.equations)


@pytest.mark.parametrize(
  ("function", "transform"),
  [
    (forward, lambda f: jax.jvp(f, (X,), (X,))[1]),
    (reverse, lambda f: jax.vjp(f, X)[1](X)[0]),
    (batched, lambda f: jax.vmap(f)(X)),
    (root, lambda f: jax.jvp(f, (X,), (X,))[1]),
  ],
  ids=["custom_jvp", "custom_vjp", "custom_vmap", "custom_root"],
)
def test_a_kept_call_brings_its_rule(function, transform):
  keep = lambda equation: equation.primitive.name in RULES
  program, _ = trace(function, X, keep=keep)
  (kept,) = [e.name for e in program.equations if e.name in RULES]
  close([transform(lambda x: run(program, [x])[0])], [transform(function)])


def test_shards_stay_closed():
  split = PartitionSpec("i")
  with jax.set_mesh(jax.make_mesh((1,), ("i",))):
    x = jax.device_put(X, split)
    shards = jax.shard_map(PLAIN, in_specs=split, out_specs=split)
    program, _ = trace(shards, x)
    assert [e.name for e in program.equations] == ["shard_map"]
    close(run(program, [x]), [shards(x)])


def test_a_derivative_of_a_checkpoint_has_no_policy():
  policy = jax.checkpoint_policies.everything_saveable
  function = jax.checkpoint(lambda x: jnp.sin(x).sum(), policy=policy)
  equation = lambda f: find(jax.make_jaxpr(f)(X), ["remat2"])
  assert policy_of(equation(function)) is policy
  assert policy_of(equation(jax.grad(function))) is None


def test_narrowed_scan_computes_the_same():
  program, _ = trace(lambda x: looped(x)[1][0], X)
  narrow = live(program)
  np.testing.assert_array_equal(run(narrow, [X])[0], run(program, [X])[0])
  (scan,) = [e for e in narrow.equations if e.name == "scan"]
  assert scan_form(scan).carry == 1
  assert len(scan.outputs) == 2


@pytest.mark.parametrize("params", [{}, {"ft_in": 3}, {"num_consts": 1}])
def test_unknown_form_names_primitive_and_version(params):
  for name, read in {
    "scan": scan_form,
    "while": while_form,
    "cond": branches_of,
    "jit": called,
    "remat2": policy_of,
    control_flow.HIGH: called,
    "scan ": lambda e: narrowed_scan(e, None, [], []),
  }.items():
    primitive = SimpleNamespace(name=name.strip())
    with pytest.raises(
      ValueError, match=rf"jax {jax.__version__}.*`{name.strip()}`"
    ):
      read(SimpleNamespace(primitive=primitive, params=params))


def test_an_operation_that_does_not_expand_is_named():
  class Strange:
    in_avals = (1.0,)

  primitive = SimpleNamespace(name=control_flow.HIGH)
  equation = SimpleNamespace(primitive=primitive, params={"_prim": Strange()})
  with pytest.raises(ValueError, match="`call_hi_primitive` with Strange"):
    called(equation)


def test_a_missing_parameter_of_any_primitive_is_named():
  program, _ = trace(jnp.sort, X)
  with pytest.raises(ValueError, match=r"`sort` with parameters \['dimension'"):
    program.equations[-1].params["axis"]
