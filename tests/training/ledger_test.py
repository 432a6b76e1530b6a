"""The ledger against double precision, rationals and dense determinants."""

import functools
import math
from fractions import Fraction

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

import revmom
from revmom.jacobian import Estimate, lanczos_quadrature
from revmom.training import ledger
from revmom.training.ledger import parabola_bound, sgd_curvature

PARAMS = {"w": jnp.zeros((3, 2)), "b": jnp.zeros(3)}


def test_a_hundred_thousand_steps_do_not_drift():
  rates = np.linspace(0.5, 0.999, 100_000).astype(np.float32)
  logs = jnp.log(jnp.asarray(rates))

  def step(carry, log):
    book, naive = carry
    return (ledger.add(book, log, 10 * log), naive + log), None

  start = ledger.init(PARAMS), jnp.zeros(())
  (book, naive), _ = jax.jit(lambda s: lax.scan(step, s, logs))(start)
  exact = sum(Fraction(float(log)) for log in np.asarray(logs))
  tens = sum(Fraction(float(log)) for log in np.asarray(10 * logs))
  found = ledger.report(book)
  np.testing.assert_allclose(found["['w']"], float(6 * exact), rtol=1e-11)
  np.testing.assert_allclose(found["['b']"], float(3 * exact), rtol=1e-11)
  np.testing.assert_allclose(found["curvature"], float(tens), rtol=1e-11)
  np.testing.assert_allclose(
    ledger.total(book).value, float(9 * exact + tens), rtol=1e-7
  )
  # What the compensation is for.
  assert abs(float(naive) - float(exact)) > 1e-6 * abs(float(exact))


def test_python_floats_count_in_double_precision():
  step = lambda book, _: (ledger.add(book, math.log(0.9)), None)
  run = jax.jit(lambda book: lax.scan(step, book, length=100_000)[0])
  found = ledger.report(run(ledger.init(PARAMS)))
  np.testing.assert_allclose(found["['w']"], 6e5 * math.log(0.9), rtol=1e-9)


def test_factors_of_each_array():
  book = ledger.add(ledger.init(PARAMS), (math.log(0.5), math.log(0.25)))
  found = ledger.report(book)
  np.testing.assert_allclose(
    [found["['b']"], found["['w']"]], [3 * math.log(0.5), 6 * math.log(0.25)]
  )
  with pytest.raises(ValueError, match="3 factors for 2 parameter arrays"):
    ledger.add(book, (0.1, 0.2, 0.3))


LONG = 100_000
# log rho of a step of an element: of "w", of "b".
OPTIMIZERS = {
  "sgd": (revmom.sgd(0.1, 0.9), math.log(0.9)),
  "decay": (
    revmom.sgd(0.1, 0.9, weight_decay=0.3),
    math.log(0.9) + math.log1p(-0.03),
  ),
  "adam": (revmom.adam(1e-3, 0.9, 0.999), math.log(0.9) + math.log(0.999)),
  "adamw": (
    revmom.adamw(1e-3, 0.9, 0.999, weight_decay=0.1),
    math.log(0.9) + math.log(0.999) + math.log1p(-1e-4),
  ),
  "rmsprop": (revmom.rmsprop(1e-3, 0.8, 0.9), math.log(0.8) + math.log(0.9)),
  "adagrad": (revmom.adagrad(1e-3, 0.9), math.log(0.9)),
  "signum": (revmom.signum(1e-3, 0.9), math.log(0.9)),
  "muon": (
    revmom.muon(0.1, 0.95),
    (math.log(0.95), math.log(0.9) + math.log(0.999)),
  ),
  "averaged": (
    revmom.averaged(revmom.sgd(0.1, 0.9), 0.99),
    math.log(0.9) + math.log(0.99),
  ),
  "partition": (
    revmom.partition(
      {"a": revmom.sgd(0.1, 0.9), "b": revmom.sgd(0.1, 0.8)},
      lambda params: {"w": "a", "b": "b"},
    ),
    (math.log(0.9), math.log(0.8)),
  ),
}


def after(optimizer, steps):
  """The state after so many steps, as far as log-determinants go."""
  state = optimizer.init(PARAMS, steps)
  return state.replace(count=jnp.asarray(steps, jnp.int32))


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_a_run_of_every_optimizer(name):
  optimizer, logs = OPTIMIZERS[name]
  of_w, of_b = logs if isinstance(logs, tuple) else (logs, logs)
  state = after(optimizer, 7)
  book = ledger.add_run(ledger.init(PARAMS), optimizer, state)
  found = ledger.report(book)
  np.testing.assert_allclose(found["['w']"], 7 * 6 * of_w, rtol=1e-6)
  np.testing.assert_allclose(found["['b']"], 7 * 3 * of_b, rtol=1e-6)
  np.testing.assert_allclose(
    ledger.total(book).value, optimizer.log_det(state), rtol=1e-7
  )


def test_a_real_run_and_another_after_it():
  loss = lambda params, batch: jnp.sum(params["w"] ** 2) + jnp.sum(batch)
  first, second = revmom.sgd(0.1, 0.9), revmom.sgd(0.1, 0.5)
  book = ledger.init(PARAMS)
  for optimizer, steps in (first, 3), (second, 2):
    run = jax.jit(functools.partial(revmom.train, loss, optimizer))(
      PARAMS, jnp.zeros((steps, 1))
    )
    book = ledger.add_run(book, optimizer, run.state)
  expected = 9 * (3 * math.log(0.9) + 2 * math.log(0.5))
  np.testing.assert_allclose(ledger.total(book).value, expected, rtol=1e-6)
  with pytest.raises(ValueError, match=r"sizes \(3, 6\), the ledger of \(2,\)"):
    ledger.add_run(ledger.init(jnp.zeros(2)), second, run.state)


@pytest.mark.parametrize("varies", [False, True])
def test_a_run_of_a_hundred_thousand_steps_is_exact(varies):
  betas = np.linspace(0.5, 0.999, LONG).astype(np.float32)
  betas = betas if varies else np.float32(0.9)
  # What a step keeps is one minus what it forgets, a float32.
  kept = 1 - np.broadcast_to(np.float32(1) - betas, LONG).astype(np.float64)
  logs = [Fraction(float(log)) for log in np.log(kept)]
  optimizer = revmom.sgd(0.1, jnp.asarray(betas))
  state = after(optimizer, LONG).replace(count=jnp.asarray(90_001, jnp.int32))
  add = lambda state: ledger.add_run(ledger.init(PARAMS), optimizer, state)
  found = ledger.report(jax.jit(add)(state))
  exact = float(6 * sum(logs[:90_001]))
  np.testing.assert_allclose(found["['w']"], exact, rtol=1e-12)
  # One whose factors are not known loses the logarithms' last bits only.
  traced = jax.jit(
    lambda beta: ledger.add_run(
      ledger.init(PARAMS), revmom.sgd(0.1, beta), state
    )
  )(jnp.asarray(betas))
  np.testing.assert_allclose(
    ledger.report(traced)["['w']"], exact, rtol=1e-7 if varies else 3e-7
  )


def problem(size=24):
  inputs = np.random.default_rng(0).normal(size=(12, size)) / 4
  inputs = jnp.asarray(inputs)
  return jax.grad(lambda w: jnp.sum(jnp.cos(inputs @ w)))


@pytest.mark.parametrize("nesterov", [False, True])
def test_curvature_of_a_run_is_that_of_the_dense_jacobian(x64, nesterov):
  gradient, rate, beta, steps, size = problem(), 0.2, 0.9, 8, 24
  estimator = lanczos_quadrature(size, size)

  def run_step(state):
    w, v = jnp.split(state, 2)
    v = beta * v - rate * gradient(w + beta * v)
    return jnp.concatenate([w + v, v])

  def descent(w):
    return w - rate * gradient(w)

  def step(carry, key):
    state, book = carry
    w, v = jnp.split(state, 2)
    at = w + beta * v if nesterov else w
    curvature = sgd_curvature(estimator, key, gradient, at, rate)
    book = ledger.add(book, math.log(beta) if nesterov else None, curvature)
    after = run_step(state) if nesterov else jnp.concatenate([descent(w), v])
    return (after, book), None

  start = np.concatenate([np.linspace(-1, 1, size), np.zeros(size)])

  @jax.jit
  def total(start):
    empty = ledger.init(start[:size], jnp.float64)
    keys = jax.random.split(jax.random.key(0), steps)
    (_, book), _ = lax.scan(step, (start, empty), keys)
    return ledger.total(book)

  def whole(state):
    once = run_step if nesterov else descent
    return lax.scan(lambda s, _: (once(s), None), state, length=steps)[0]

  point = start if nesterov else start[:size]
  dense = np.linalg.slogdet(jax.jit(jax.jacfwd(whole))(point))[1]
  got = total(start)
  np.testing.assert_allclose(got.value, dense, rtol=1e-9)
  assert got.stderr == 0 and abs(dense) > 0.1


@pytest.mark.slow
def test_error_bars_add_in_quadrature_and_cover(x64):
  gradient, rate, size = problem(), 0.2, 24
  w = jnp.linspace(-1, 1, size)
  hessian = jax.jacfwd(gradient)(w)
  truth = 5 * np.linalg.slogdet(np.eye(size) - rate * hessian)[1]
  estimator = lanczos_quadrature(8, 4)

  def run(key):
    def step(book, key):
      curvature = sgd_curvature(estimator, key, gradient, w, rate)
      return ledger.add(book, None, curvature), curvature

    return lax.scan(step, ledger.init(w, jnp.float64), jax.random.split(key, 5))

  keys = jax.random.split(jax.random.key(1), 300)
  books, curvatures = jax.jit(jax.vmap(run))(keys)
  totals = jax.vmap(ledger.total)(books)
  np.testing.assert_allclose(
    totals.stderr, np.sqrt(np.sum(curvatures.stderr**2, 1)), rtol=1e-9
  )
  low, high = np.asarray(totals.interval).T
  assert 0.92 <= np.mean((low <= truth) & (truth <= high)) <= 0.985


def test_one_estimate_has_its_own_interval():
  make = lambda samples: Estimate(
    value=jnp.array(2.0),
    stderr=jnp.array(0.5),
    interval=jnp.zeros(2),
    bias_bound=jnp.array(0.25),
    num_matvecs=jnp.array(1),
    num_samples=jnp.array(samples),
    valid=jnp.array(True),
  )
  for samples, quantile in (5, 2.776), (31, 2.042):
    book = ledger.add(ledger.init(PARAMS), None, make(samples))
    interval = ledger.total(book).interval
    half = 0.5 * quantile + 0.25
    np.testing.assert_allclose(interval, [2 - half, 2 + half], atol=2e-3)


def test_parabola_is_a_lower_bound(x64):
  gradient, size = problem(), 24
  w = np.linspace(-1, 1, size)
  hessian = jax.jit(jax.jacfwd(gradient))(w)
  bound = jax.jit(
    lambda rate: sgd_curvature(
      parabola_bound(size), jax.random.key(0), gradient, jnp.asarray(w), rate
    )
  )
  small = 0.6 / np.max(np.abs(np.linalg.eigvalsh(hessian)))
  x = small * np.asarray(hessian)
  np.testing.assert_allclose(
    bound(small).value, np.trace(-x - x @ x), rtol=1e-9
  )
  assert bound(small).value < np.linalg.slogdet(np.eye(size) - x)[1]


def test_entropy_of_a_gaussian():
  scipy_stats = pytest.importorskip("scipy.stats")
  expected = scipy_stats.multivariate_normal(cov=0.09 * np.eye(5)).entropy()
  np.testing.assert_allclose(
    ledger.gaussian_entropy(5, 0.3), expected, rtol=1e-6
  )
