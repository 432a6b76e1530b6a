"""Mean-field maps against adaptive integrals, known formulas and networks."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import integrate, special

from revmom.analysis.closed_forms import edge_of_chaos as edge
from revmom.analysis.closed_forms import variance_maps as maps

SIGMA_B = 0.05**0.5  # of Schoenholz et al. 2017


def gaussian_integral(function):
  density = lambda z: np.exp(-z * z / 2) / np.sqrt(2 * np.pi)
  return integrate.quad(
    lambda z: function(z) * density(z), -12, 12, epsabs=1e-13, epsrel=1e-12
  )[0]


@jax.jit
def tanh_maps(q):
  return (
    maps.variance_map(jnp.tanh, q, 1.3, 0.2),
    maps.chi(jnp.tanh, q, 1.3),
    maps.variance_slope(jnp.tanh, q, 1.3),
  )


@pytest.mark.parametrize("q", [0.0, 0.1, 1.0, 25.0])
def test_maps_of_tanh(x64, q):
  root, slope = np.sqrt(q), lambda u: 1 - np.tanh(u) ** 2
  power = gaussian_integral(lambda z: np.tanh(root * z) ** 2)
  squares = gaussian_integral(lambda z: slope(root * z) ** 2)
  curvature = gaussian_integral(
    lambda z: slope(root * z) * -2 * np.tanh(root * z) ** 2
  )
  # Where tanh is almost a step the trapezoidal rule begins to see its poles.
  close = dict(rtol=1e-9, atol=1e-8 if q > 1 else 0)
  expected = power + 0.04 / 1.69, squares, squares + curvature
  for got, wanted in zip(tanh_maps(q), expected, strict=True):
    np.testing.assert_allclose(got, 1.69 * wanted, **close)


@pytest.mark.slow
def test_slopes_are_derivatives(x64):
  """Of maps, by Gaussian integration by parts."""
  slope = jax.grad(lambda q: maps.variance_map(jnp.tanh, q, 1.5, 0.1))(0.7)
  np.testing.assert_allclose(
    maps.variance_slope(jnp.tanh, 0.7, 1.5), slope, rtol=1e-9
  )
  c_map = lambda c: maps.correlation_map(jnp.tanh, c, 0.7, 1.5, 0.1)
  for c in (-0.5, 0.0, 0.9):
    np.testing.assert_allclose(
      maps.correlation_slope(jnp.tanh, c, 0.7, 1.5),
      jax.grad(c_map)(c),
      rtol=1e-8,
    )
  q = maps.fixed_variance(jnp.tanh, 1.5, 0.1)
  np.testing.assert_allclose(
    maps.correlation_slope(jnp.tanh, 1.0, q, 1.5),
    maps.chi(jnp.tanh, q, 1.5),
    rtol=1e-12,
  )


@jax.jit
def relu_correlations(c):
  return (
    maps.correlation_map(jax.nn.relu, c, 3.0, 2**0.5, 0.0),
    maps.correlation_slope(jax.nn.relu, c, 3.0, 2**0.5),
  )


@pytest.mark.parametrize("c", [-1.0, -0.3, 0.0, 0.5, 0.99, 1.0])
def test_the_arc_cosine_kernel(c):
  """Cho & Saul 2009, equation 6; to what the module says of kinks."""
  angle = np.arccos(c)
  expected = (np.sin(angle) + (np.pi - angle) * np.cos(angle)) / np.pi
  got, slope = relu_correlations(c)
  np.testing.assert_allclose(got, expected, atol=1e-3)
  np.testing.assert_allclose(slope, 1 - angle / np.pi, atol=2e-2)


def test_kinks_away_from_zero(x64):
  """Hard tanh has closed forms; its slope of q has what its kinks add."""
  q = np.array([0.01, 1.3, 10.0, 1e3, 1e5])
  edge_at = 1 / np.sqrt(q)
  density = np.exp(-(edge_at**2) / 2) / np.sqrt(2 * np.pi)
  inside = special.erf(edge_at / 2**0.5)
  phi = jax.nn.hard_tanh
  got = jax.jit(
    jax.vmap(
      lambda q: (
        maps.variance_map(phi, q, 1.0, 0.0),
        maps.chi(phi, q, 1.0),
        maps.variance_slope(phi, q, 1.0),
      )
    )
  )(q)
  power = q * (inside - 2 * edge_at * density) + 1 - inside
  expected = power, inside, inside - 2 * edge_at * density
  for own, wanted in zip(got, expected, strict=True):
    np.testing.assert_allclose(own, wanted, rtol=2e-8)


def test_fixed_variances_of_activations_with_kinks():
  for phi, expected in ((jax.nn.hard_tanh, 1.3218), (jax.nn.relu6, 10.690)):
    found = jax.jit(lambda b, phi=phi: maps.fixed_variance(phi, 1.5, b))(0.2)
    np.testing.assert_allclose(found, expected, rtol=1e-4)


def test_edges_of_activations_with_kinks():
  for phi, expected in ((jax.nn.hard_tanh, 1.0257), (jax.nn.relu6, 1.4163)):
    found = jax.jit(lambda b, phi=phi: edge.edge_of_chaos(phi, b))(0.1)
    np.testing.assert_allclose(found, expected, atol=1e-4)


def test_moments_of_a_sigmoid():
  variances = np.array([0.01, 1.0, 4.0, 100.0, 1e4], np.float32)
  mean, variance = jax.jit(jax.vmap(lambda v: maps.moments(jax.nn.sigmoid, v)))(
    variances
  )
  np.testing.assert_allclose(mean, 0.5, atol=1e-6)
  assert (variance < variances).all() and (variance < 0.25).all()
  expected = [
    gaussian_integral(
      lambda z, v=v: (1 / (1 + np.exp(-(v**0.5) * z)) - 0.5) ** 2
    )
    for v in (0.01, 1.0, 4.0)
  ]
  np.testing.assert_allclose(variance[:3], expected, rtol=1e-5)


@pytest.mark.parametrize("terms", [10, 300])
def test_a_unit_of_unit_variance(terms):
  """D7 over draws: y = sum W_i x_i and its sigmoid, within 4 standard errors.

  y^2 has a kurtosis that depends on x, so errors are taken from the draws.
  """
  draws = 20_000
  rng = np.random.default_rng(terms)
  # Any x of unit mean square will do; it's the weights that are drawn.
  x = rng.choice([-1.0, 1.0], terms)
  weights = rng.normal(size=(draws, terms)) / terms**0.5
  y = weights @ x
  sigmoid = 1 / (1 + np.exp(-y))
  expected = jax.jit(lambda v: maps.moments(jax.nn.sigmoid, v))(1.0)
  predictions = [
    (y**2, 1.0),
    (sigmoid, 0.5),
    ((sigmoid - 0.5) ** 2, float(expected.variance)),
  ]
  for values, prediction in predictions:
    stderr = values.std(ddof=1) / draws**0.5
    assert abs(values.mean() - prediction) < 4 * stderr
  assert sigmoid.var() < min(y.var(), 0.25)


def test_fixed_points(x64):
  sigmas = np.array([0.5, 1.0, 1.3, 2.0, 4.0])
  solve = lambda phi, sigma_b: jax.jit(
    jax.vmap(lambda s: maps.fixed_variance(phi, s, sigma_b))
  )
  q = np.full(5, 50.0)
  for _ in range(3000):  # slowly, as the map itself goes there
    squares = np.tanh(np.sqrt(q)[:, None] * POINTS) ** 2
    q = sigmas**2 * (squares @ MASSES) + 0.05
  np.testing.assert_allclose(solve(jnp.tanh, SIGMA_B)(sigmas), q, rtol=1e-6)
  assert maps.fixed_variance(jnp.tanh, 0.9, 0.0) == 0
  relu = solve(jax.nn.relu, 0.3)(jnp.array([1.0, 1.5, 3.0]))
  np.testing.assert_allclose(relu[0], 0.09 / 0.5, rtol=1e-12)
  assert np.isnan(relu[1:]).all()  # they grow without bound


POINTS = np.linspace(-8, 8, 401)
MASSES = np.exp(-(POINTS**2) / 2) / np.exp(-(POINTS**2) / 2).sum()


def test_the_edge_of_chaos():
  of_tanh = jax.jit(jax.vmap(lambda b: edge.edge_of_chaos(jnp.tanh, b)))
  found = of_tanh(jnp.array([0.0, SIGMA_B]))
  # Schoenholz et al. 2017, section 3, give 1.76 to its digits.
  np.testing.assert_allclose(found**2, [1, 1.76], atol=5e-3)
  he = edge.edge_of_chaos(jax.nn.relu, 0.0)
  np.testing.assert_allclose(he, 2**0.5, rtol=1e-5)
  # No gain between makes it chaotic.
  assert np.isnan(edge.edge_of_chaos(jnp.tanh, 0.0, low=0.1, high=0.9))


def test_depth_scales_are_rates_of_the_maps(x64):
  """By following two inputs that are nearly as correlated as they will be."""
  sigmas = jnp.array([1.0, 2.0])  # ordered, chaotic

  def follow(sigma_w):
    q = maps.fixed_variance(jnp.tanh, sigma_w, SIGMA_B)
    c = edge.fixed_correlation(jnp.tanh, sigma_w, SIGMA_B)
    near = c - 1e-5
    after = maps.correlation_map(jnp.tanh, near, q, sigma_w, SIGMA_B)
    scales = edge.depth_scales(jnp.tanh, sigma_w, SIGMA_B)
    return scales, c, (c - after) / (c - near), maps.chi(jnp.tanh, q, sigma_w)

  scales, c, rate, growth = jax.jit(jax.vmap(follow))(sigmas)
  assert c[0] == 1 and 0.1 < c[1] < 0.9
  np.testing.assert_allclose(scales.correlation, -1 / np.log(rate), rtol=1e-3)
  np.testing.assert_allclose(scales.gradient, 1 / np.abs(np.log(growth)))
  assert growth[0] < 1 < growth[1] and (scales.variance > 0).all()


@pytest.mark.slow
@pytest.mark.parametrize("sigma_w", [0.9, 2.5])
def test_a_wide_network_follows_the_maps(sigma_w):
  """Layer by layer: q and c, within 4 standard errors over 16 networks.

  What finite width adds to the mean is of the order of q / N, 1/40 of the
  standard deviation of one network's q at N = 1600, below that of the mean.
  """
  width, depth, seeds = 400, 6, 16
  ends = jnp.stack(
    [jnp.ones(width), jnp.tile(jnp.array([1.0, 0.2]), width // 2)]
  )

  def network(key):
    def layer(h, key):
      keys = jax.random.split(key)
      weights = jax.random.normal(keys[0], (width, width)) / width**0.5
      bias = SIGMA_B * jax.random.normal(keys[1], (width,))
      h = sigma_w * jnp.tanh(h) @ weights + bias
      return h, h @ h.T / width

    return jax.lax.scan(layer, ends, jax.random.split(key, depth))[1]

  grams = jax.jit(jax.vmap(network))(jax.random.split(jax.random.key(0), seeds))
  # Exact for the first layer, whose inputs are given; then by the maps.
  first = np.tanh(np.asarray(ends))
  gram = sigma_w**2 * first @ first.T / width + SIGMA_B**2
  for number in range(depth):
    of_layer = np.asarray(grams[:, number], np.float64)
    stderr = of_layer.std(0, ddof=1) / seeds**0.5
    assert (np.abs(of_layer.mean(0) - gram) < 4 * stderr + 2 / width).all()
    q1, q2 = np.diagonal(gram)
    cross = covariance(gram, sigma_w)
    step = lambda q: float(maps.variance_map(jnp.tanh, q, sigma_w, SIGMA_B))
    gram = np.array([[step(q1), cross], [cross, step(q2)]])


def covariance(gram, sigma_w):
  """By products over a grid, for variances that differ."""
  (q1, p), (_, q2) = gram
  u = np.sqrt(q1) * POINTS[:, None]
  c = p / np.sqrt(q1 * q2)
  v = np.sqrt(q2) * (c * POINTS[:, None] + np.sqrt(1 - c * c) * POINTS)
  mass = MASSES[:, None] * MASSES
  return sigma_w**2 * np.sum(mass * np.tanh(u) * np.tanh(v)) + SIGMA_B**2


def test_a_correlation_beyond_one_is_none():
  assert np.isnan(maps.correlation_map(jnp.tanh, 1.1, 1.0, 1.0, 0.0))
  with pytest.raises(ValueError, match="expected 0 < low < high"):
    edge.edge_of_chaos(jnp.tanh, 0.0, low=2.0, high=1.0)
