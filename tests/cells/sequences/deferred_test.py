"""Deferred weight gradients against autodiff of `lax.scan`, in float64."""

import math
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

from revmom.cells import gru, lstm
from revmom.cells.sequences import deferred
from revmom.jacobian.program.control_flow import scan_form

STEPS, BATCH, INPUTS, HIDDEN = 5, 2, 3, 4


def close(got, expected, tolerance=1e-12):
  jax.tree.map(
    lambda a, b: np.testing.assert_allclose(a, b, tolerance, tolerance),
    got,
    expected,
  )


def draw(*shape, seed=0):
  return jnp.asarray(np.random.default_rng(seed).normal(size=shape)) * 0.5


def plain(step):
  def apply(params, xs, carry):
    final, outputs = lax.scan(partial(step, params), carry, xs)
    return outputs, final

  return apply


def loss_of(apply):
  def loss(params, xs, carry):
    leaves = jax.tree.leaves(apply(params, xs, carry))
    return sum(
      jnp.sum(jnp.sin(leaf * (k + 1)))
      for k, leaf in enumerate(leaves)
      if jnp.issubdtype(leaf.dtype, jnp.inexact)
    )

  return loss


def haiku_lstm(params, carry, x):
  h, c = carry
  gates = jnp.concatenate([x, h], -1) @ params["w"] + params["b"]
  i, g, f, o = jnp.split(gates, 4, -1)
  c = jax.nn.sigmoid(f + 1) * c + jax.nn.sigmoid(i) * jnp.tanh(g)
  h = jax.nn.sigmoid(o) * jnp.tanh(c)
  return (h, c), h


def conv_lstm(params, carry, x):
  """One-dimensional images [B, S, C]."""
  h, c = carry
  convolve = lambda a, w: lax.conv_general_dilated(
    a, w, (1,), "SAME", dimension_numbers=("NWC", "WIO", "NWC")
  )
  gates = convolve(jnp.concatenate([x, h], -1), params["joint"])
  gates = gates + convolve(h, params["w"])
  i, f, o, g = jnp.split(gates, 4, -1)
  c = jax.nn.sigmoid(f) * c + jax.nn.sigmoid(i) * jnp.tanh(g)
  h = jax.nn.sigmoid(o) * jnp.tanh(c)
  return (h, c), h


CLOSED = np.random.default_rng(9).normal(size=(HIDDEN, HIDDEN)) * 0.5


def closing(params, h, x):
  h = jnp.tanh(h @ jnp.asarray(CLOSED) + x @ params["w"] + params["r"])
  return h, h


def twice_and_transposed(params, h, x):
  """Also elementwise, through tanh, and on the left."""
  w = params["w"]
  h = jnp.tanh(h @ w + x @ w[:INPUTS])
  h = jnp.tanh(h @ w.T + (jnp.tanh(w) @ h.T).T)
  return h * w[0], jax.nn.relu(h)


def unlike_outputs(params, carry, x):
  """Outputs and carries that are driven, fixed, constant, or integers."""
  h, last, count, token = carry["h"], carry["last"], carry["count"], x["token"]
  drive = params["embedding"][token] + x["value"] @ params["w"]
  h = jnp.tanh(drive + h @ params["r"]) * params["p"]
  outputs = {
    "h": h,
    "before": last,
    "drive": drive,
    "fixed": params["p"] * 2,
    "constant": 1.0,
    "count": count,
  }
  carry = {"h": h, "last": x["value"], "count": count + 1, "token": token}
  return carry, outputs


def inner_loops(params, h, x):
  """A scan and a jitted function within the step."""
  body = lambda h, w: (jnp.tanh(h @ w), None)
  h, _ = lax.scan(body, h, params["layers"])
  h = jax.jit(lambda h: jnp.tanh(h @ params["r"] + x @ params["w"]))(h)
  return h, jax.checkpoint(lambda h: h @ params["r"])(h)


@jax.custom_jvp
def doubled(x):
  return jnp.sin(x)


doubled.defjvp(lambda p, t: (doubled(p[0]), 2 * jnp.cos(p[0]) * t[0]))


def custom(params, h, x):
  """A custom derivative that is not the derivative."""
  h = doubled(h @ params["r"] + doubled(x @ params["w"]))
  return h, h


def peephole_norm(params, h, x):
  a = h @ params["r"]
  a = (a - a.mean(-1, keepdims=True)) * lax.rsqrt(a.var(-1, keepdims=True) + 1)
  h = jnp.tanh(a * params["g"] + x @ params["w"] + params["p"] * h)
  return h, h


def library(cell, **options):
  options["dtype"] = "float64"
  params = jax.jit(lambda key: cell.init(key, INPUTS, HIDDEN, **options))(
    jax.random.key(0)
  )
  params = jax.tree.map(lambda p: p + draw(*p.shape), params)
  return cell.step, params, cell.initial_carry(params, BATCH), xs_of()


def xs_of():
  return draw(STEPS, BATCH, INPUTS, seed=1)


def dense(step, carry=None, **shapes):
  params = {k: draw(*s, seed=n) for n, (k, s) in enumerate(shapes.items())}
  carry = draw(BATCH, HIDDEN, seed=2) if carry is None else carry
  return step, params, carry, xs_of()


W, R = (INPUTS, HIDDEN), (HIDDEN, HIDDEN)


def state(*shape):
  return draw(*shape, seed=3), draw(*shape, seed=4)


def conv_case():
  return (
    conv_lstm,
    {"joint": draw(3, 5, 12), "w": draw(3, 3, 12)},
    state(BATCH, 6, 3),
    draw(STEPS, BATCH, 6, 2, seed=1),
  )


def unlike_case():
  carry = {
    "h": draw(BATCH, HIDDEN, seed=2),
    "last": draw(BATCH, INPUTS, seed=3),
    "count": jnp.int32(0),
    "token": jnp.zeros(BATCH, jnp.int32),
  }
  tokens = np.random.default_rng(0).integers(0, 6, (STEPS, BATCH))
  xs = {"value": xs_of(), "token": jnp.asarray(tokens, jnp.int32)}
  params = dense(
    None, embedding=(6, HIDDEN), w=W, r=R, p=(HIDDEN,), unused=(3,)
  )[1]
  return unlike_outputs, params, carry, xs


CASES = {
  "lstm": lambda: library(lstm.cell, peephole=True, projection_size=3),
  "lstm, normalised": lambda: library(lstm.cell, layer_norm=True),
  "gru, reset before": lambda: library(gru.cell, reset="before"),
  "haiku": lambda: dense(
    haiku_lstm,
    state(BATCH, HIDDEN),
    w=(INPUTS + HIDDEN, 4 * HIDDEN),
    b=(4 * HIDDEN,),
  ),
  "convolutional": conv_case,
  "closing over arrays": lambda: dense(closing, w=W, r=R[:1]),
  "twice and transposed": lambda: dense(twice_and_transposed, w=R),
  "unlike outputs": unlike_case,
  "inner loops": lambda: dense(inner_loops, layers=(3, *R), w=W, r=R),
  "custom derivative": lambda: dense(custom, w=W, r=R),
  "normalised": lambda: dense(
    peephole_norm, w=W, r=R, g=(HIDDEN,), p=(HIDDEN,)
  ),
}


def check(step, params, carry, xs, second=True):
  """Values, gradients of floats, and a product with the Hessian."""
  inexact = lambda leaf: jnp.issubdtype(leaf.dtype, jnp.inexact)
  leaves, structure = jax.tree.flatten((params, xs, carry))
  floats = [leaf for leaf in leaves if inexact(leaf)]

  def on_floats(apply, floats):
    source = iter(floats)
    full = [next(source) if inexact(leaf) else leaf for leaf in leaves]
    return loss_of(apply)(*structure.unflatten(full))

  def results(apply):
    values = apply(params, xs, carry)
    gradient = jax.grad(partial(on_floats, apply))
    if not second:
      return values, gradient(floats)
    along = [jnp.cos(leaf) for leaf in floats]
    forward_reverse = jax.jvp(gradient, (floats,), (along,))
    inner = lambda at: sum(
      jnp.vdot(g, v) for g, v in zip(gradient(at), along, strict=True)
    )
    return values, forward_reverse, jax.grad(inner)(floats)

  ours = deferred.defer_weights(step)
  got, expected = jax.jit(lambda: (results(ours), results(plain(step))))()
  assert jax.tree.structure(got) == jax.tree.structure(expected)
  assert [a.dtype for a in jax.tree.leaves(got)] == [
    a.dtype for a in jax.tree.leaves(expected)
  ]
  close(got, expected, 1e-11)


@pytest.mark.sampled(2)
@pytest.mark.parametrize("name", list(CASES))
def test_values_gradients_and_hessian_products(x64, monkeypatch, name):
  """By blocks of two steps, two, and one, or more with fewer rows."""
  monkeypatch.setattr(deferred, "BLOCK_ROWS", 2 * BATCH)
  check(*CASES[name](), second=name in ("haiku", "twice and transposed"))


@pytest.mark.slow
# In one block.
# What is no derivative has no second derivative: that of `lax.scan` itself then
# depends on the order of modes.
@pytest.mark.parametrize("name", sorted({*CASES} - {"custom derivative"}))
def test_hessian_products(x64, name):
  check(*CASES[name]())


@pytest.mark.slow
def test_one_step_and_none(x64):
  step, params, carry, xs = CASES["haiku"]()
  ours = deferred.defer_weights(step)
  for steps in (0, 1):
    few = xs[:steps]
    gradient = lambda apply, few=few: jax.grad(loss_of(apply))(
      params, few, carry
    )
    close(ours(params, few, carry), plain(step)(params, few, carry))
    close(gradient(ours), gradient(plain(step)))


def test_closed_over_tracers(x64):
  """Differentiated and batched arrays that the step closes over."""
  _, params, carry, xs = CASES["closing over arrays"]()

  def run(defer, closed):
    step = lambda p, h, x: (jnp.tanh(h @ closed + x @ p["w"]),) * 2
    return loss_of(defer(step))(params, xs, carry)

  matrices = jnp.stack([jnp.asarray(CLOSED), 2 * jnp.asarray(CLOSED)])
  gradients = [
    jax.jit(jax.vmap(jax.grad(partial(run, defer))))(matrices)
    for defer in (deferred.defer_weights, plain)
  ]
  close(*gradients)


def carried_by_loops(jaxpr):
  """The shapes that the loops of a jaxpr carry."""
  shapes = []
  for equation in jaxpr.eqns:
    if equation.primitive.name == "scan":
      form = scan_form(equation)
      start, stop = form.constants, form.constants + form.carry
      shapes += [v.aval.shape for v in equation.invars[start:stop]]
    for value in equation.params.values():
      inner = getattr(value, "jaxpr", value)
      if hasattr(inner, "eqns"):
        shapes += carried_by_loops(inner)
  return shapes


def products_in_loops(jaxpr, inside=False):
  """The shapes of the operands of all products in the loops of a jaxpr."""
  shapes = []
  for equation in jaxpr.eqns:
    if inside and equation.primitive.name == "dot_general":
      shapes.append(tuple(v.aval.shape for v in equation.invars))
    for value in equation.params.values():
      inner = getattr(value, "jaxpr", value)
      if hasattr(inner, "eqns"):
        loop = inside or equation.primitive.name == "scan"
        shapes += products_in_loops(inner, loop)
  return shapes


@pytest.mark.parametrize("name", ["haiku", "lstm"])
def test_no_loop_accumulates_weight_gradients(x64, name):
  step, params, carry, xs = CASES[name]()
  sizes = {p.shape for p in jax.tree.leaves(params) if p.ndim == 2}
  sizes.add((HIDDEN, 4 * HIDDEN))  # the state's part of a joint matrix
  jaxprs = [
    jax.make_jaxpr(jax.grad(loss_of(apply), argnums=(0, 1, 2)))(
      params, xs, carry
    ).jaxpr
    for apply in (plain(step), deferred.defer_weights(step))
  ]
  theirs, ours = (set(carried_by_loops(jaxpr)) for jaxpr in jaxprs)
  # The check can fail: plain autodiff carries them.
  assert theirs & sizes
  assert not ours & sizes
  # No product with inputs is left, and none that makes a weight's gradient.
  products = [shape for pair in products_in_loops(jaxprs[1]) for shape in pair]
  assert products and not any(INPUTS in s for s in products if name == "haiku")


@pytest.mark.parametrize(
  ("name", "more"),
  [
    ("haiku", 0),
    ("lstm", 0),
    ("lstm, normalised", 0),
    ("closing over arrays", 0),
    # A state that is multiplied elementwise as well is kept for either.
    ("normalised", BATCH * HIDDEN),
  ],
)
def test_keeps_what_a_scan_keeps(x64, monkeypatch, name, more):
  """What goes from the forward pass to the backward pass, of each step."""
  step, params, carry, xs = CASES[name]()
  steps = 35
  xs = jnp.tile(xs, (7, 1, 1))
  monkeypatch.setattr(deferred, "BLOCK_ROWS", 5 * BATCH)

  def kept(apply, *leading):
    pull = jax.eval_shape(lambda *at: jax.vjp(apply, *at)[1], params, xs, carry)
    shapes = [leaf.shape for leaf in jax.tree.leaves(pull)]
    every = [shape for shape in shapes if shape[: len(leading)] == leading]
    return sum(map(math.prod, every)) // steps

  assert 0 < kept(deferred.defer_weights(step), 7, 5)
  assert kept(deferred.defer_weights(step), 7, 5) <= more + kept(
    plain(step), steps
  )


@pytest.mark.parametrize(
  "xs, message", [(None, "at least one"), ((jnp.ones(3), jnp.ones(4)), "same")]
)
def test_sequences_that_do_not_fit(xs, message):
  step = lambda params, carry, x: (carry, x)
  with pytest.raises(ValueError, match=message):
    deferred.defer_weights(step)((), xs, jnp.zeros(2))


@pytest.mark.parametrize(
  "change",
  [
    lambda carry: (carry, carry),
    lambda carry: carry[:1],
    lambda carry: carry.astype("float16"),
  ],
)
def test_steps_that_change_the_carry(change):
  step = lambda params, carry, x: (change(carry), x)
  with pytest.raises(ValueError, match="same structure, shapes and types"):
    deferred.defer_weights(step)((), jnp.ones(3), jnp.zeros(2))
