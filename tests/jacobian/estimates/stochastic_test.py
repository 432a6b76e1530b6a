"""Stochastic log-determinants and traces against dense linear algebra."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from revmom.jacobian import (
  golub_kahan_quadrature,
  hutchinson,
  lanczos_quadrature,
  power_series,
  russian_roulette,
  spectral_density,
  stochastic_log_det,
  top_eigenvalues,
  xtrace,
)
from revmom.jacobian.estimates.estimate import standard_error, t_quantile

SEEDS = 300
KEY = jax.random.key(7)


def orthogonal(size, seed):
  rng = np.random.default_rng(seed)
  return np.linalg.qr(rng.normal(size=(size, size)))[0]


def symmetric(eigenvalues, seed=0):
  basis = orthogonal(len(eigenvalues), seed)
  return jnp.asarray(basis * eigenvalues @ basis.T)


def general(singular_values, seed=0):
  size = len(singular_values)
  left, right = orthogonal(size, seed), orthogonal(size, seed + 1)
  return jnp.asarray(left * singular_values @ right)


def contraction(norm, size=64, seed=0):
  noise = np.random.default_rng(seed).normal(size=(size, size))
  noise *= norm / np.linalg.norm(noise, 2)
  return jnp.asarray(np.eye(size) + noise)


def grid(size):
  return (np.arange(size) + 0.5) / size


SIZE = 64
WELL = 0.5 + grid(SIZE)
ILL = 10.0 ** (-4 * grid(SIZE))
# Two directions of descent beyond the edge of stability, and a bulk.
EDGE = np.concatenate([1 - 0.1 * grid(SIZE - 2), [-0.9, -0.3]])


def estimate(estimator, matrix, key=KEY):
  like = jnp.zeros(len(matrix), matrix.dtype)
  return estimator(key, lambda x: matrix @ x, like)


@functools.partial(jax.jit, static_argnums=0)
def over_seeds(estimator, matrix):
  keys = jax.random.split(KEY, SEEDS)
  return jax.vmap(lambda key: estimate(estimator, matrix, key))(keys)


def coverage(estimator, matrix):
  """How often the interval holds the truth."""
  estimates = over_seeds(estimator, matrix)
  truth = np.linalg.slogdet(matrix)[1]
  low, high = np.asarray(estimates.interval).T
  assert np.all(np.asarray(estimates.valid))
  assert np.all(low <= np.asarray(estimates.value))
  assert np.all(np.asarray(estimates.value) <= high)
  return np.mean((low <= truth) & (truth <= high))


# Error bars.


@pytest.mark.sampled(1)
@pytest.mark.parametrize(
  "estimator, make, spectrum",
  [
    (lanczos_quadrature(8, 5), symmetric, WELL),
    (lanczos_quadrature(8, 20), symmetric, WELL),
    (lanczos_quadrature(8, 5, leave_one_out=True), symmetric, WELL),
    (golub_kahan_quadrature(12, 5), general, WELL),
    (russian_roulette(10, 0.3), contraction, 0.6),
    (power_series(8, 10), contraction, 0.6),
  ],
)
def test_intervals_cover_on_well_conditioned_matrices(
  x64, estimator, make, spectrum
):
  assert 0.92 <= coverage(estimator, make(spectrum)) <= 0.98


@pytest.mark.sampled(1)
@pytest.mark.parametrize("steps", [6, 12])
@pytest.mark.parametrize(
  "build, make",
  [(lanczos_quadrature, symmetric), (golub_kahan_quadrature, general)],
)
def test_intervals_cover_where_the_krylov_space_is_too_small(
  x64, build, make, steps
):
  estimator = build(steps, 10)
  assert coverage(estimator, make(ILL)) >= 0.9
  # Sampling alone explains nothing here: the bias does.
  estimates = over_seeds(estimator, make(ILL))
  bias = np.mean(estimates.value) - np.sum(np.log(ILL))
  assert bias > np.mean(estimates.stderr)
  assert np.all(np.asarray(estimates.bias_bound) > 0)


@pytest.mark.slow
def test_leaving_one_out_covers_where_few_eigenvalues_stand_out(x64):
  matrix = symmetric(EDGE)
  plain = lanczos_quadrature(8, 10)
  better = lanczos_quadrature(8, 5, leave_one_out=True)
  assert coverage(better, matrix) >= 0.92
  truth = np.linalg.slogdet(matrix)[1]
  error = lambda e: np.std(np.asarray(over_seeds(e, matrix).value) - truth)
  assert error(better) < 0.6 * error(plain)  # at the same cost


def test_student_t_and_finite_population():
  # Tabulated; and sampling everything leaves nothing to know.
  np.testing.assert_allclose(
    [t_quantile(2), t_quantile(5), t_quantile(31)],
    [12.706, 2.776, 2.042],
    atol=5e-4,
  )
  samples = jnp.array([1.0, 2.0, 4.0, 5.0])
  spread = np.std([1, 2, 4, 5], ddof=1) / 2
  np.testing.assert_allclose(standard_error(samples, None), spread, rtol=1e-6)
  np.testing.assert_allclose(
    standard_error(samples, 16), spread * np.sqrt(12 / 16), rtol=1e-6
  )
  assert standard_error(samples, 4) == 0


@pytest.mark.slow
def test_roulette_is_unbiased_and_its_gradients_are(x64):
  matrix = contraction(0.6, size=24)
  change = jnp.asarray(np.random.default_rng(5).normal(size=(24, 24)))

  def value(step, key):
    return estimate(russian_roulette(8, 0.4, 1), matrix + step * change, key)[0]

  keys = jax.random.split(KEY, 2000)
  both = jax.jit(jax.vmap(jax.value_and_grad(value), (None, 0)))
  values, slopes = both(0.0, keys)
  exact = (
    np.linalg.slogdet(matrix)[1],
    np.trace(np.linalg.solve(matrix, change)),
  )
  for samples, truth in zip((values, slopes), exact, strict=True):
    error = np.mean(samples) - truth
    assert abs(error) < 4 * np.std(samples) / np.sqrt(len(keys))


# Refusals.


@pytest.mark.slow
def test_roulette_of_infinite_variance_is_refused():
  matrix = contraction(0.8).astype(jnp.float32)  # 0.64 >= 1 - 0.5
  with pytest.raises(ValueError, match="variance may be infinite"):
    estimate(russian_roulette(4), matrix)
  refused = jax.jit(lambda m: estimate(russian_roulette(4), m))(matrix)
  assert not refused.valid
  assert np.isnan(refused.value) and np.all(np.isnan(refused.interval))
  assert estimate(russian_roulette(4, 0.1), matrix).valid


@pytest.mark.slow
def test_other_refusals():
  matrix = general(WELL).astype(jnp.float32)
  with pytest.raises(ValueError, match="not symmetric.*golub_kahan"):
    estimate(lanczos_quadrature(8, 4), matrix)
  with pytest.raises(ValueError, match="less than 1"):
    estimate(power_series(4, 4), 3 * matrix)
  with pytest.raises(ValueError, match="singular or has entries"):
    estimate(golub_kahan_quadrature(4, 4), jnp.zeros((6, 6)))
  with pytest.raises(ValueError, match="singular or has entries"):
    estimate(lanczos_quadrature(4, 4), jnp.full((6, 6), jnp.nan))
  with pytest.raises(ValueError, match="maps 3 numbers to 2"):
    hutchinson(2)(KEY, lambda x: x[:2], jnp.zeros(3))
  with pytest.raises(ValueError, match="int32.*floating"):
    hutchinson(2)(KEY, lambda x: x, jnp.zeros(3, jnp.int32))
  with pytest.raises(ValueError, match="num_samples=1;.*two"):
    hutchinson(1)(KEY, lambda x: x, jnp.zeros(3))
  with pytest.raises(ValueError, match="stop_probability=1.0"):
    russian_roulette(4, 1.0)
  with pytest.raises(ValueError, match="num_steps=0"):
    lanczos_quadrature(0, 4)
  with pytest.raises(ValueError, match="count=4 with num_steps=3"):
    top_eigenvalues(3, 4)
  with pytest.raises(ValueError, match="max_steps=0"):
    stochastic_log_det(jnp.sin, (jnp.ones(3),), KEY, max_steps=0)


# Exactness, values and derivatives.

COMPLETE = [
  (lanczos_quadrature(12, 12), symmetric, 1e-10),
  (lanczos_quadrature(12, 12, leave_one_out=True), symmetric, 1e-9),
  (golub_kahan_quadrature(20, 20), general, 1e-10),
  (golub_kahan_quadrature(20, 20, leave_one_out=True), general, 1e-9),
]


@pytest.mark.sampled(1)
@pytest.mark.parametrize("estimator, make, tolerance", COMPLETE)
def test_complete_spaces_and_directions_are_exact(
  x64, estimator, make, tolerance
):
  spectrum = 10.0 ** -np.linspace(0, 2, 12)
  spectrum[3] *= -1  # an odd number of negative ones
  matrix = make(spectrum)
  value = lambda matrix: estimate(estimator, matrix).value
  got, slope = jax.jit(jax.value_and_grad(value))(matrix)
  np.testing.assert_allclose(
    got, np.linalg.slogdet(matrix)[1], rtol=tolerance, atol=tolerance
  )
  inverse = np.linalg.inv(matrix)
  np.testing.assert_allclose(
    slope, inverse.T, atol=tolerance * np.max(np.abs(inverse))
  )


@pytest.mark.slow
def test_second_derivatives(x64):
  matrix, change = general(WELL[::6]), general(WELL[::6], 3)
  bend = lambda step: matrix + (step + step**2) * change
  ours = lambda s: estimate(golub_kahan_quadrature(12, 12), bend(s)).value
  dense = lambda s: jnp.linalg.slogdet(bend(s))[1]
  expected = jax.grad(jax.grad(dense))(0.1)
  np.testing.assert_allclose(
    jax.jit(jax.grad(jax.grad(ours)))(0.1), expected, rtol=1e-9
  )
  np.testing.assert_allclose(
    jax.jit(jax.jvp, static_argnums=0)(jax.grad(ours), (0.1,), (1.0,))[1],
    expected,
    rtol=1e-9,
  )


@pytest.mark.slow
@pytest.mark.parametrize(
  "estimator, make",
  [
    (lanczos_quadrature(10, 10), symmetric),
    (lanczos_quadrature(10, 6, leave_one_out=True), symmetric),
    (golub_kahan_quadrature(14, 10), general),
  ],
)
def test_gradients_are_unbiased(x64, estimator, make):
  matrix, change = make(WELL[::2]), make(np.cos(np.arange(32)), 3)

  def value(step, key):
    return estimate(estimator, matrix + step * change, key).value

  keys = jax.random.split(KEY, SEEDS)
  slopes = jax.jit(jax.vmap(jax.grad(value), (None, 0)))(0.0, keys)
  truth = np.trace(np.linalg.solve(matrix, change))
  error = np.mean(slopes) - truth
  assert abs(error) < 4 * np.std(slopes) / np.sqrt(SEEDS)
  assert np.std(slopes) / np.sqrt(SEEDS) < 0.5


@pytest.mark.slow
def test_float32_knows_its_rounding_error():
  spectrum = 10.0 ** -np.linspace(0, 4, 24)
  with jax.enable_x64(True):
    matrix = symmetric(spectrum)
  single = jnp.asarray(np.asarray(matrix, np.float32))
  truth = np.linalg.slogdet(np.asarray(single, np.float64))[1]
  got = estimate(lanczos_quadrature(24, 24), single)
  assert got.value.dtype == jnp.float32
  assert got.interval[0] <= truth <= got.interval[1]
  assert 1e-4 < got.bias_bound < 5  # 24 eigenvalues, up to 1e4 eps each


# Degenerate spectra, pytrees, batches.


@pytest.mark.slow
@pytest.mark.parametrize("leave_one_out", [False, True])
@pytest.mark.parametrize("scale", [1.0, 2.0])
def test_krylov_spaces_that_end_early(scale, leave_one_out):
  for build in lanczos_quadrature, golub_kahan_quadrature:
    estimator = build(8, 4, leave_one_out=leave_one_out)
    got, slope = jax.jit(
      jax.value_and_grad(
        lambda s, e=estimator: e(KEY, lambda x: s * x, jnp.zeros(20)).value
      )
    )(scale)
    np.testing.assert_allclose(got, 20 * np.log(scale), atol=1e-5)
    np.testing.assert_allclose(slope, 20 / scale, rtol=1e-5)


@pytest.mark.slow
def test_pytrees_half_precision_and_batches():
  like = {"w": jnp.ones((3, 4)), "b": jnp.ones(5, jnp.bfloat16)}
  double = lambda tree: {"b": 2 * tree["b"], "w": tree["w"].T * 4}
  got = golub_kahan_quadrature(6, 8)(KEY, double, like)
  np.testing.assert_allclose(
    got.value, 12 * np.log(4) + 5 * np.log(2), atol=3 * got.stderr
  )
  assert got.value.dtype == jnp.float32
  assert got.num_matvecs == 2 * 6 * 8
  some = golub_kahan_quadrature(6, 8, batch_size=3)(KEY, double, like)
  np.testing.assert_allclose(some.value, got.value, rtol=1e-5)


# Traces and spectra.


@pytest.mark.slow
@pytest.mark.parametrize("build", [hutchinson, xtrace])
def test_traces(x64, build):
  matrix = general(WELL)
  truth = np.trace(matrix)
  estimates = over_seeds(build(8), matrix)
  low, high = np.asarray(estimates.interval).T
  assert 0.92 <= np.mean((low <= truth) & (truth <= high)) <= 0.985
  np.testing.assert_allclose(
    estimate(build(SIZE), matrix).value, truth, rtol=1e-9
  )
  slope = jax.jit(jax.grad(lambda m: estimate(build(SIZE), m).value))(matrix)
  np.testing.assert_allclose(slope, np.eye(SIZE), atol=1e-8)


@pytest.mark.slow
def test_xtrace_is_exact_where_the_rank_is_small(x64):
  matrix = symmetric(np.concatenate([[5.0, -3.0, 2.0], np.zeros(61)]))
  got = estimate(xtrace(8), matrix)
  np.testing.assert_allclose(got.value, 4.0, rtol=1e-9)
  assert got.stderr < 1e-9


@pytest.mark.slow
def test_spectra(x64):
  matrix = symmetric(np.concatenate([grid(60), [3.0, 5.0]]))
  top = estimate(top_eigenvalues(30, 3), matrix)
  truth = np.linalg.eigvalsh(matrix)[::-1][:3]
  assert np.all(np.abs(np.asarray(top.values) - truth) <= top.errors)
  assert np.all(np.asarray(top.errors) < 0.02)
  few = estimate(top_eigenvalues(3, 3), jnp.eye(5))
  np.testing.assert_array_equal(np.isnan(few.values), [False, True, True])
  # All moments of the density, with complete directions and spaces.
  nodes, weights = estimate(spectral_density(62, 62), matrix)
  moment = lambda k: np.sum(np.mean(np.asarray(nodes**k * weights), 0))
  for k in range(6):
    expected = np.mean(np.linalg.eigvalsh(matrix) ** k)
    np.testing.assert_allclose(moment(k), expected, rtol=1e-9)


# Functions.


def residual(matrix):
  return lambda x, y: (x + jnp.tanh(matrix @ y)[:40], y + 0.5 * x[:24] ** 2)


@pytest.mark.slow
def test_stochastic_log_det_of_a_general_function(x64):
  rng = np.random.default_rng(1)
  matrix = jnp.asarray(0.1 * rng.normal(size=(40, 24)))
  args = jnp.asarray(rng.normal(size=40)), jnp.asarray(rng.normal(size=24))
  f = residual(matrix)
  joined = lambda z: jnp.concatenate(f(z[:40], z[40:]))
  dense = np.linalg.slogdet(jax.jacfwd(joined)(jnp.concatenate(args)))[1]
  run = jax.jit(lambda key: stochastic_log_det(f, args, key, num_samples=8))
  got = run(KEY)
  assert got.valid and got.interval[0] <= dense <= got.interval[1]
  complete = stochastic_log_det(f, args, KEY, num_samples=64)
  np.testing.assert_allclose(complete.value, dense, atol=1e-8)


@pytest.mark.slow
def test_stochastic_log_det_of_sgd_steps():
  rng = np.random.default_rng(2)
  inputs = jnp.asarray(rng.normal(size=(20, 300)), jnp.float32)
  loss = lambda x: jnp.sum(jnp.cos(inputs @ x))
  step = lambda x: x - 0.1 * jax.grad(loss)(x)
  x = jnp.asarray(rng.normal(size=300), jnp.float32)
  jacobian = np.asarray(jax.jacfwd(step)(x), np.float64)
  dense = np.linalg.slogdet(jacobian)[1]
  run = lambda x, key: stochastic_log_det(step, (x,), key, symmetric=True)
  eager, jitted = run(x, KEY), jax.jit(run)(x, KEY)
  # Twenty eigenvalues stand out, so leaving one out finds them all.
  assert eager.stderr < 0.01 and eager.interval[0] <= dense <= eager.interval[1]
  np.testing.assert_allclose(jitted.value, eager.value, rtol=1e-4)
  assert jitted.num_matvecs == eager.num_matvecs
  gradient = jax.jit(jax.grad(lambda x: run(x, KEY).value))(x)
  exact = jax.jit(
    jax.grad(lambda x: jnp.linalg.slogdet(jax.jacfwd(step)(x))[1])
  )(x)
  scale = np.max(np.abs(exact))
  np.testing.assert_allclose(gradient, exact, atol=2e-2 * scale)


@pytest.mark.slow
def test_steps_are_added_until_truncation_is_small(x64):
  matrix = symmetric(ILL)
  loss = lambda x: 0.5 * x @ (jnp.eye(SIZE) - matrix) @ x
  step = lambda x: x - jax.grad(loss)(x)
  run = functools.partial(
    stochastic_log_det, step, (jnp.zeros(SIZE),), KEY, symmetric=True
  )
  short, long = run(max_steps=16), run(max_steps=SIZE)
  assert short.bias_bound > short.stderr
  assert long.bias_bound <= long.stderr
  assert short.num_matvecs == 16 * 32 < long.num_matvecs
  assert long.interval[0] <= np.sum(np.log(ILL)) <= long.interval[1]


# Peers.


@pytest.mark.slow
def test_matfree_agrees(x64):
  decomp = pytest.importorskip("matfree.decomp")
  funm = pytest.importorskip("matfree.funm")
  matrix = symmetric(WELL)
  integrand = funm.monte_carlo_funm_sym_logdet(
    decomp.tridiag_sym(8, reortho="full")
  )
  from revmom.jacobian.estimates.estimate import flatten

  operator = flatten(lambda x: matrix @ x, jnp.zeros(SIZE))
  probes_key, _ = jax.random.split(KEY)
  probes = operator.directions(probes_key, 10)
  with jax.numpy_dtype_promotion("standard"):
    theirs = [integrand(lambda x: matrix @ x, probe) for probe in probes]
  ours = estimate(lanczos_quadrature(8, 10), matrix)
  np.testing.assert_allclose(ours.value, np.mean(theirs), rtol=1e-9)
