"""The derivative of a run along a direction, and Hessian-vector products."""

import functools
import importlib.util
import pathlib
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import revmom

if "reversal_rate" not in sys.modules:  # it defines flags
  _PATH = pathlib.Path(__file__).parents[2] / "benchmarks/reversal_rate.py"
  _SPEC = importlib.util.spec_from_file_location("reversal_rate", _PATH)
  sys.modules["reversal_rate"] = importlib.util.module_from_spec(_SPEC)
  _SPEC.loader.exec_module(sys.modules["reversal_rate"])
stored_runs = sys.modules["reversal_rate"]

STEPS = 9
OPTIMIZERS = {
  "sgd": lambda **kwargs: revmom.clipped(
    revmom.sgd(0.05, 0.9, weight_decay=0.02, **kwargs), 0.3
  ),
  "ema": functools.partial(revmom.sgd, 0.05, 0.9, form="ema"),
  "adamw": functools.partial(revmom.adamw, 0.02, eps=1e-3, weight_decay=0.1),
  "rmsprop": functools.partial(revmom.rmsprop, 0.01, eps=1e-3),
  "adagrad": functools.partial(revmom.adagrad, 0.05),
  "muon": lambda **kwargs: revmom.clipped(
    revmom.muon(0.02, eps=1e-3, **kwargs), 0.4
  ),
}


def normal(seed, *shape):
  return jnp.asarray(np.random.default_rng(seed).normal(size=shape))


def loss_fn(params, batch, penalty):
  x, y = batch
  hidden = jnp.tanh(x @ params["w"] + params["b"][None])
  squares = sum(jnp.sum(a**2) for a in jax.tree.leaves(params))
  return jnp.mean((hidden @ params["v"] - y) ** 2) + penalty * squares


def problem(optimizer):
  params = {
    "w": 0.5 * normal(0, 5, 4),
    "b": 0.1 * normal(1, 4),
    "v": 0.5 * normal(2, 4, 2),
  }
  batches = normal(3, STEPS, 6, 5), normal(4, STEPS, 6, 2)
  optimizer = jax.tree.map(jnp.asarray, optimizer)
  return optimizer, params, batches, jnp.array(0.01)


def direction(x, seed):
  """Of the size of what it changes."""
  leaves, structure = jax.tree.flatten(x)
  return structure.unflatten(
    [
      normal([seed, i], *leaf.shape) * 0.3 * jnp.maximum(leaf.max(), 1e-3)
      for i, leaf in enumerate(leaves)
    ]
  )


def objective(params):
  return sum(jnp.sum(jnp.sin(a)) for a in jax.tree.leaves(params))


def slope(x, v):
  """The derivative of the objective of a run along v."""
  out, tangent = revmom.train_jvp(loss_fn, x, v)
  return jax.jvp(objective, (out.params,), (tangent.params,))[1]


def stored(x):
  """The objective of the run that autodiff stores."""
  optimizer, params, batches, penalty = x
  return stored_runs.stored(
    lambda params, batch: loss_fn(params, batch[0], batch[1]),
    optimizer,
    params,
    (batches, jnp.broadcast_to(penalty, STEPS)),
    STEPS,
    objective,
  )


@pytest.mark.parametrize(
  "name",
  [
    name if name == "adamw" else pytest.param(name, marks=pytest.mark.slow)
    for name in OPTIMIZERS
  ],
)
def test_hessian_vector_products_are_those_of_the_stored_run(name, x64):
  x = problem(OPTIMIZERS[name](grid=revmom.Grid(integer="int64")))
  v, w = direction(x, 1), direction(x, 2)

  @jax.jit
  def both(x, v):
    got = jax.value_and_grad(slope)(x, v)
    reference = lambda x: jax.jvp(stored, (x,), (v,))[1]
    return got, jax.value_and_grad(reference)(x)

  with jax.numpy_dtype_promotion("standard"):  # of the reference
    (value, along_v), (expected_value, expected) = both(x, v)
    (_, along_w), _ = both(x, w)
  np.testing.assert_allclose(value, expected_value, rtol=1e-6)
  # A factor is met to some 2^-30 of itself, which a derivative that is small
  # beside the others shows.
  most = max(float(jnp.abs(leaf).max()) for leaf in jax.tree.leaves(expected))
  for got, right in zip(
    jax.tree.leaves(along_v), jax.tree.leaves(expected), strict=True
  ):
    bound = max(1e-5 * float(jnp.abs(right).max()), 1e-7 * most)
    np.testing.assert_allclose(got, right, rtol=1e-5, atol=bound)
  inner = lambda a, b: sum(
    jnp.sum(p * q)
    for p, q in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True)
  )
  np.testing.assert_allclose(inner(along_v, w), inner(along_w, v), rtol=1e-7)


@pytest.mark.slow
def test_float32():
  """It is as near to the derivative as autodiff in float32 of the stored run.

  That by b2 is a difference of numbers a thousand times larger.
  """
  narrow = lambda tree: jax.tree.map(lambda a: jnp.asarray(a, "float32"), tree)
  widened = lambda tree: jax.tree.map(
    lambda a: jnp.asarray(a, "float64"), narrow(tree)
  )
  with jax.enable_x64(True):
    grid = revmom.Grid(integer="int64")
    wide = widened(problem(OPTIMIZERS["adamw"](grid=grid)))
    v = widened(direction(wide, 1))
    expected = jax.jit(jax.grad(slope))(wide, v)
  optimizer = narrow(revmom.adamw(0.02, eps=1e-3, weight_decay=0.1))
  like = jax.tree.structure(optimizer)
  narrowed = lambda tree: (
    like.unflatten(jax.tree.leaves(narrow(tree[0]))),
    *narrow(tree[1:]),
  )
  x, along = narrowed(wide), narrowed(v)

  @jax.jit
  def both(x):
    reference = lambda x: jax.jvp(stored, (x,), (along,))[1]
    return jax.grad(slope)(x, along), jax.grad(reference)(x)

  with jax.numpy_dtype_promotion("standard"):  # of the reference
    got, of_stored = both(x)
  for ours, theirs, right in zip(
    *(
      map(np.asarray, jax.tree.leaves(tree[:2]))
      for tree in (got, of_stored, expected)
    ),
    strict=True,
  ):
    error = lambda a, right=right: float(np.abs(a - right).max())
    assert error(ours) <= 2 * error(theirs) + 2e-4 * np.abs(right).max()


def test_losses_schedules_integers_and_functions():
  """What needs no tangent has none; what has one is differenced."""
  table = normal(5, 7, 3).astype("float32")
  keys = jax.random.split(jax.random.key(0), 4)

  def loss_fn(params, batch, table):
    index, key = batch
    noise = jax.random.normal(key, (3,))
    return jnp.sum((params - table[index] - 0.1 * noise) ** 2)

  batches = jnp.array([3, 1, 6, 0]), keys
  rates = lambda t: 0.1 / (t.astype("float32") + 1)
  optimizer = revmom.sgd(rates, 0.5)

  def run(e):
    return revmom.train(loss_fn, optimizer, jnp.ones(3), batches, table + e)

  out, tangent = revmom.train_jvp(
    loss_fn,
    (optimizer, jnp.ones(3), batches, table),
    (None, None, None, jnp.ones_like(table)),
  )
  np.testing.assert_allclose(out.losses, run(0).losses, rtol=1e-5)
  slopes = (run(0.05).losses - run(-0.05).losses) / 0.1
  np.testing.assert_allclose(tangent.losses, slopes, rtol=1e-3)
  shift = (run(0.05).params - run(-0.05).params) / 0.1
  np.testing.assert_allclose(tangent.params, shift, rtol=1e-3)


@pytest.mark.parametrize("steps", [0, 1])
def test_short_runs(steps):
  start = jnp.array([1.0, 2.0])
  batches = jnp.zeros([steps, 2])
  loss_fn = lambda x, batch: jnp.sum((x - batch) ** 2)

  def slope(start):
    x = revmom.sgd(0.1, 0.9), start, batches
    out, tangent = revmom.train_jvp(loss_fn, x, (None, jnp.ones(2), None))
    return jnp.sum(out.params * tangent.params), tangent.losses

  value, losses = slope(start)
  kept = 0.8**steps
  np.testing.assert_allclose(value, 3 * kept**2, rtol=1e-6)
  assert losses.shape == (steps,)
  gradient, _ = jax.grad(slope, has_aux=True)(start)
  np.testing.assert_allclose(gradient, [kept**2] * 2, rtol=1e-6)


@pytest.mark.slow
def test_many_directions_at_once():
  x = problem(revmom.sgd(0.05, 0.9))
  x = jax.tree.map(lambda a: jnp.asarray(a, "float32"), x)
  product = lambda v: jax.grad(slope)(x, (None, v, None, None))[1]["b"]
  vs = jax.tree.map(lambda a: normal(1, 3, *a.shape).astype("float32"), x[1])
  together = jax.jit(jax.vmap(product))(vs)
  apart = [
    jax.jit(product)(jax.tree.map(lambda a, i=i: a[i], vs)) for i in range(2)
  ]
  np.testing.assert_allclose(together[:2], apart, atol=1e-4)


def test_errors():
  optimizer, start, batches = (
    revmom.sgd(0.1, 0.9),
    jnp.ones(2),
    jnp.ones([3, 2]),
  )
  loss_fn = lambda x, batch: jnp.sum((x - batch) ** 2)
  run = lambda x, v: revmom.train_jvp(loss_fn, x, v)
  x = optimizer, start, batches
  with pytest.raises(ValueError, match="3 primals and 2 tangents"):
    run(x, (None, None))
  with pytest.raises(ValueError, match="tangent of the params is"):
    run(x, (None, [start], None))
  with pytest.raises(ValueError, match=r"has shape \(3,\)"):
    run(x, (None, jnp.ones(3), None))
  with pytest.raises(ValueError, match="zeros_like"):
    run(x, (revmom.adam(0.1), None, None))
  with pytest.raises(ValueError, match="averages"):
    run((revmom.averaged(optimizer, 0.9), start, batches), (None, start, None))
  with pytest.raises(ValueError, match="can't be differentiated again"):
    jax.grad(
      lambda start: jnp.sum(
        jax.grad(
          lambda s: run((optimizer, s, batches), (None, start, None))[
            1
          ].params.sum()
        )(start)
      )
    )(start)
