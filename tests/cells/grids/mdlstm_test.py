"""The memory cells against their equations, written out position by position.

What all cells on grids have in common is in `grid_cells_test`.
"""

import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from revmom.cells import mdlstm

CELLS = ["graves", "peephole", "stable", "leaky"]
B, D, H = 2, 3, 2


def draw(cell, ndim, dtype=jnp.float64):
  """Parameters of which none is zero."""
  kind = "graves" if cell == "peephole" else cell
  init = functools.partial(
    mdlstm.init, ndim=ndim, cell=kind, peephole=cell == "peephole"
  )
  params = jax.eval_shape(lambda: init(jax.random.key(0), D, H))
  rng = np.random.default_rng(0)
  return jax.tree.map(
    lambda leaf: jnp.asarray(0.6 * rng.normal(size=leaf.shape), dtype), params
  )


def sigma(a):
  return 1 / (1 + jnp.exp(-a))


def equations(cell, a, c, peephole):
  """The gates of a cell by name, as functions of what was computed before."""
  n = len(c)
  zero = jnp.zeros_like(c[0])
  if cell in ("graves", "peephole"):
    p = [zero] * (n + 2) if peephole is None else list(peephole)
    yield "g", lambda v: jnp.tanh(a[0])
    yield "i", lambda v: sigma(a[1] + p[0] * sum(c))
    for d in range(n):
      yield f"f{d}", lambda v, d=d: sigma(a[3 + d] + p[2 + d] * c[d])
    yield (
      "c",
      lambda v: v["i"] * v["g"] + sum(v[f"f{d}"] * c[d] for d in range(n)),
    )
    yield "o", lambda v: sigma(a[2] + p[1] * v["c"])
    yield "h", lambda v: v["o"] * jnp.tanh(v["c"])
    return
  total = 1 + sum(jnp.exp(a[4 + d]) for d in range(n - 1))
  for d in range(n):
    logit = jnp.exp(a[4 + d]) if d < n - 1 else jnp.ones_like(zero)
    yield f"share{d}", lambda v, logit=logit: logit / total
  old = lambda v: sum(v[f"share{d}"] * c[d] for d in range(n))
  yield "g", lambda v: jnp.tanh(a[0])
  yield "f", lambda v: sigma(a[3])
  if cell == "stable":
    yield "i", lambda v: sigma(a[1])
    yield "o", lambda v: sigma(a[2])
    yield "c", lambda v: v["i"] * v["g"] + v["f"] * old(v)
    yield "h", lambda v: v["o"] * jnp.tanh(v["c"])
  else:
    yield "o", lambda v: sigma(a[1])
    yield "o_old", lambda v: sigma(a[2])
    yield "c", lambda v: (1 - v["f"]) * v["g"] + v["f"] * old(v)
    yield "h", lambda v: jnp.tanh(v["o"] * v["c"] + v["o_old"] * old(v))


def reference(cell, params, xs, direction, noise=None):
  """All values at all positions; `noise` is added to each of them."""
  shape, n = xs.shape[:-2], xs.ndim - 2
  zero = {"h": jnp.zeros((B, H)), "c": jnp.zeros((B, H))}
  axes = [range(size)[::d] for size, d in zip(shape, direction, strict=True)]
  at = {}
  for position in itertools.product(*axes):
    before = [
      at.get(tuple(np.subtract(position, np.eye(n, dtype=int)[d] * step)), zero)
      for d, step in enumerate(direction)
    ]
    a = xs[position] @ params.input_weights + params.bias
    for d in range(n):
      a = a + before[d]["h"] @ params.recurrent_weights[d]
    a = [a[:, k * H : (k + 1) * H] for k in range(n + 3)]
    values = {}
    gates = equations(cell, a, [b["c"] for b in before], params.peephole)
    for name, value in gates:
      values[name] = value(values)
      if noise is not None:
        values[name] = values[name] + noise[name][position]
    at[position] = values
  stack = lambda name: jnp.stack(
    [at[position][name] for position in np.ndindex(*shape)]
  ).reshape(*shape, B, H)
  return {name: stack(name) for name in next(iter(at.values()))}


def draw_inputs(shape):
  rng = np.random.default_rng(1)
  draw = lambda *shape: jnp.asarray(rng.normal(size=shape), jnp.float64)
  return draw(*shape, B, D), draw(*shape, B, H)


def by_name(cell, adjoints):
  """The adjoints as a dict of the names in `equations`."""
  result = {"h": adjoints.h, "c": adjoints.c}
  for name, value in adjoints.gates._asdict().items():
    if isinstance(value, tuple):
      result |= {f"{name}{d}": each for d, each in enumerate(value)}
    else:
      result[name] = value
  return result


slow = functools.partial(pytest.param, marks=pytest.mark.slow)


@pytest.mark.sampled(2)
@pytest.mark.parametrize("cell", CELLS)
@pytest.mark.parametrize(
  ("shape", "direction"),
  [((2, 3), (1, -1)), slow((3,), (-1,)), slow((2, 1, 2), (-1, 1, 1))],
)
def test_values_and_adjoints(x64, cell, shape, direction):
  params = draw(cell, len(shape))
  xs, bars = draw_inputs(shape)
  values, pullback = jax.vjp(
    lambda noise: reference(cell, params, xs, direction, noise),
    jax.tree.map(jnp.zeros_like, reference(cell, params, xs, direction)),
  )
  only_h = {name: jnp.zeros_like(value) for name, value in values.items()}
  (expected,) = pullback(only_h | {"h": bars})
  close = functools.partial(np.testing.assert_allclose, rtol=0, atol=1e-12)
  for schedule in ("rows", "wavefront"):
    with jax.disable_jit():
      outputs, residuals = mdlstm.forward(
        params, xs, direction=direction, schedule=schedule
      )
      gradients = mdlstm.backward(params, residuals, bars, adjoints=True)
    close(outputs, values["h"])
    close(residuals.memory, values["c"])
    found = by_name(cell, gradients.adjoints)
    assert found.keys() == expected.keys()
    for name, value in found.items():
      close(value, expected[name])


@pytest.mark.slow
def test_shares_sum_to_one_and_bound_the_memory():
  for cell in ("stable", "leaky"):
    params = draw(cell, 3, jnp.float32)
    xs = 3 * jax.random.normal(jax.random.key(2), (4, 4, 4, B, D))
    _, residuals = jax.jit(mdlstm.forward)(params, xs)
    np.testing.assert_allclose(sum(residuals.gates.share), 1, atol=1e-6)
  assert float(jnp.max(jnp.abs(residuals.memory))) <= 1  # of the leaky cell


def test_graves_memory_adds_up_and_the_stable_one_does_not():
  # Open gates: Graves' memory counts the paths to a cell, a binomial.
  memory = {}
  for cell in ("graves", "stable"):
    params = mdlstm.init(jax.random.key(0), D, 1, cell=cell, forget_bias=30.0)
    params = params._replace(
      input_weights=jnp.zeros_like(params.input_weights).at[:, 0].set(9.0),
      recurrent_weights=jnp.zeros_like(params.recurrent_weights),
    )
    xs = jnp.zeros((9, 9, 1, D)).at[0, 0].set(1.0)
    memory[cell] = mdlstm.forward(params, xs)[1].memory[8, 8, 0, 0]
  np.testing.assert_allclose(memory["graves"], 0.5 * 12870, rtol=1e-5)
  assert 0 < float(memory["stable"]) < 0.5


@pytest.mark.slow
def test_forget_gates_start_with_a_sum_of_one():
  for ndim in (2, 3, 4):
    bias = mdlstm.init(jax.random.key(0), D, H, ndim=ndim).bias
    gates = jax.nn.sigmoid(bias.reshape(ndim + 3, H)[3:])
    np.testing.assert_allclose(jnp.sum(gates, 0), 1, rtol=1e-6)
  for cell, ndim in (("graves", 1), ("stable", 3), ("leaky", 2)):
    bias = mdlstm.init(jax.random.key(0), D, H, ndim=ndim, cell=cell).bias
    expected = np.zeros((ndim + 3, H))
    expected[3] = 1
    np.testing.assert_array_equal(bias.reshape(ndim + 3, H), expected)


@pytest.mark.slow
def test_number_of_weights():
  for cell in ("graves", "stable", "leaky"):
    params = mdlstm.init(jax.random.key(0), D, 5, cell=cell, bias=False)
    sizes = [leaf.size for leaf in jax.tree.leaves(params)]
    assert sum(sizes) == 5 * (D * 5 + 2 * 5**2)


@pytest.mark.parametrize(
  ("options", "message"),
  [
    ({"cell": "lstm"}, "choose one of"),
    ({"cell": "leaky", "peephole": True}, "has no peepholes"),
    ({"bias": False, "forget_bias": 1.0}, "needs a bias"),
    ({"ndim": 0}, "ndim=0; give at least 1"),
  ],
)
def test_wrong_options(options, message):
  with pytest.raises(ValueError, match=message):
    mdlstm.init(jax.random.key(0), D, H, **options)
