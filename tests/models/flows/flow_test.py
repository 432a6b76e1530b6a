"""Densities, samples and the layers' own laws."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from revmom.models import (
  LOGISTIC,
  Conditioner,
  Flow,
  actnorm,
  affine,
  bits_per_dim,
  chain,
  dequantise,
  glow,
  linear,
  logit,
  nice,
  quantise,
  real_nvp,
  real_nvp_images,
  scaling,
  squeeze,
)


def perturbed(params, scale=0.2):
  rng = np.random.default_rng(7)
  noise = lambda p: scale * rng.normal(size=p.shape).astype(p.dtype)
  return jax.tree.map(
    lambda p: jnp.asarray(p + noise(p)), jax.device_get(params)
  )


def test_density_integrates_to_one_in_one_dimension():
  flow = Flow(chain(scaling(), actnorm()), LOGISTIC)
  x = jnp.linspace(-60, 60, 4001)[:, None]
  params = perturbed(
    jax.jit(lambda key: flow.init(key, x[1900:2100]))(jax.random.key(0))
  )
  density = np.exp(np.asarray(flow.log_prob(params, x)))
  np.testing.assert_allclose(np.trapezoid(density, x[:, 0]), 1, atol=1e-3)


@pytest.mark.slow
@pytest.mark.parametrize("make", [real_nvp, nice])
def test_density_integrates_to_one_in_two_dimensions(make):
  flow = make(num_layers=2, hidden=(6,))
  params = perturbed(
    jax.jit(lambda key: flow.init(key, jnp.zeros((4, 2))))(jax.random.key(0))
  )
  side = np.linspace(-25, 25, 601, dtype=np.float32)
  grid = jnp.stack(jnp.meshgrid(side, side), -1)
  density = np.exp(np.asarray(jax.jit(flow.log_prob)(params, grid)))
  assert density.shape == (601, 601)
  total = np.trapezoid(np.trapezoid(density, side), side)
  np.testing.assert_allclose(total, 1, atol=5e-3)


@pytest.mark.slow
def test_samples_follow_the_data_after_training():
  """A bent Gaussian: x_1 = z_1 / 2 + z_0^2 / 2; its moments are known."""
  flow = real_nvp(num_layers=6, hidden=(32,))
  z = jax.random.normal(jax.random.key(0), (2048, 2))
  bend = lambda z: jnp.stack([z[:, 0], (z[:, 1] + z[:, 0] ** 2) / 2], 1)
  optimizer, data = optax.sgd(0.003, momentum=0.9), bend(z)
  params = jax.jit(lambda key: flow.init(key, data))(jax.random.key(1))
  loss = lambda params: -jnp.mean(flow.log_prob(params, data))

  def step(carry, _):
    params, state = carry
    value, gradient = jax.value_and_grad(loss)(params)
    updates, state = optimizer.update(gradient, state)
    return (optax.apply_updates(params, updates), state), value

  train = lambda params: jax.lax.scan(
    step, (params, optimizer.init(params)), None, length=400
  )
  (params, _), values = jax.jit(train)(params)
  # The entropy of the data: that of z, plus log 1/2.
  assert abs(float(values[-1]) - (np.log(2 * np.pi * np.e) - np.log(2))) < 0.1
  drawn = np.asarray(flow.sample(jax.random.key(2), params, (20000, 2)))
  np.testing.assert_allclose(drawn.mean(0), [0, 0.5], atol=0.1)
  np.testing.assert_allclose(drawn.var(0), [1, 0.75], atol=0.2)
  bent = np.mean(drawn[:, 0] ** 2 * drawn[:, 1])
  np.testing.assert_allclose(bent, 1.5, atol=0.4)


@pytest.mark.slow
def test_log_prob_is_by_change_of_variables():
  """An affine flow has the density of a Gaussian."""
  flow, x = Flow(linear()), jnp.array([[0.3, -1.2, 0.5]])
  params = perturbed(jax.jit(lambda key: flow.init(key, x))(jax.random.key(0)))
  jacobian = jax.jacobian(lambda x: flow.forward_and_log_det(params, x)[0])
  precision = jacobian(x[0]).T @ jacobian(x[0])
  expected = jax.scipy.stats.multivariate_normal.logpdf(
    x[0], jnp.zeros(3), jnp.linalg.inv(precision)
  )
  np.testing.assert_allclose(flow.log_prob(params, x)[0], expected, rtol=1e-5)


def test_temperature_scales_noise():
  flow = Flow(scaling())
  params = jax.jit(lambda key: flow.init(key, jnp.zeros((1, 2))))(
    jax.random.key(0)
  )
  hot, cold = (
    flow.sample(jax.random.key(1), params, (7, 2), temperature=temperature)
    for temperature in (1.0, 0.25)
  )
  np.testing.assert_allclose(cold, hot / 4)


@pytest.mark.parametrize("event_ndim", [1, 3])
def test_actnorm_starts_normalised(event_ndim):
  layer = actnorm(event_ndim)
  x = 3 + 5 * jax.random.normal(jax.random.key(0), (64, 2, 2, 3))
  x = x.at[..., 2].set(4.0)  # without variance
  params = jax.jit(lambda key: layer.init(key, x))(jax.random.key(1))
  y, _ = layer.forward_and_log_det(params, x)
  y = np.asarray(y).reshape(-1, 3)
  np.testing.assert_allclose(y.mean(0), 0, atol=1e-5)
  np.testing.assert_allclose(y.var(0), [1, 1, 0], atol=1e-5)


def test_convolution_log_det_is_that_of_its_matrix():
  layer, x = linear(event_ndim=3), jnp.zeros((2, 4, 3, 5))
  start = layer.init(jax.random.key(0), x)
  for params, orthogonal in ((start, True), (perturbed(start), False)):
    columns, log_det = layer.forward_and_log_det(
      params, jnp.broadcast_to(jnp.eye(5)[:, None, None], (5, 4, 3, 5))
    )
    matrix = np.asarray(columns[:, 0, 0], np.float64)  # W^T
    sign, value = np.linalg.slogdet(matrix)
    assert sign == 1
    np.testing.assert_allclose(log_det, 4 * 3 * value, rtol=1e-5, atol=1e-4)
    at_start = np.allclose(matrix @ matrix.T, np.eye(5), atol=1e-5)
    assert at_start == orthogonal


@pytest.mark.slow
def test_glow_shapes_and_round_trip():
  flow = glow(levels=3, depth=1, hidden=4)
  x = jax.random.normal(jax.random.key(0), (2, 8, 16, 3))

  @jax.jit
  def run(x):
    params = jax.jit(lambda key: flow.init(key, x))(jax.random.key(1))
    noise, log_det = flow.forward_and_log_det(params, x)
    back = flow.inverse_and_log_det(params, noise)
    drawn = flow.sample(jax.random.key(2), params, x.shape)
    return noise, log_det, back, flow.log_prob(params, x), drawn

  noise, log_det, (back, back_log_det), log_prob, drawn = run(x)
  shapes = [z.shape[1:] for z in noise]
  assert shapes == [(4, 8, 6), (2, 4, 12), (1, 2, 48)]
  assert log_det.shape == log_prob.shape == (2,)
  np.testing.assert_allclose(back, x, atol=1e-4)
  np.testing.assert_allclose(back_log_det, -log_det, rtol=1e-4)
  assert drawn.shape == x.shape and jnp.isfinite(drawn).all()


@pytest.mark.slow
def test_real_nvp_of_images_round_trips():
  flow = Flow(chain(logit(), real_nvp_images(hidden=4).bijection))
  images = jax.random.randint(jax.random.key(0), (2, 4, 6, 1), 0, 256)
  x = dequantise(jax.random.key(1), images)
  params = perturbed(jax.jit(flow.init)(jax.random.key(2), x), 0.05)
  noise, log_det = jax.jit(flow.forward_and_log_det)(params, x)
  assert [z.shape for z in noise] == [(2, 2, 3, 2), (2, 2, 3, 2)]
  back, back_log_det = jax.jit(flow.inverse_and_log_det)(params, noise)
  np.testing.assert_allclose(back_log_det, -log_det, rtol=1e-4)
  np.testing.assert_array_equal(quantise(back, dtype=jnp.int32), images)


def test_squeeze_wants_even_sides():
  with pytest.raises(ValueError, match="3 x 4.*pad or crop"):
    squeeze().forward_and_log_det((), jnp.zeros((3, 4, 1)))
  block = jnp.arange(4.0).reshape(2, 2, 1)
  y, _ = squeeze().forward_and_log_det((), block)
  assert y.ravel().tolist() == [0, 1, 2, 3]


def test_any_function_may_condition():
  cubes = Conditioner(
    init=lambda key, x, outputs: jnp.ones((), x.dtype),
    apply=lambda power, x: jnp.concatenate([power * x, x**3], -1),
    event_ndim=1,
  )
  flow = Flow(affine(cubes))
  x = jnp.array([0.5, 2.0])
  params = jax.jit(lambda key: flow.init(key, x))(jax.random.key(0))
  y, log_det = flow.forward_and_log_det(params, x)
  s = 2 * np.tanh(0.25)
  np.testing.assert_allclose(y, [0.5, 2 * np.exp(s) + 0.125], rtol=1e-6)
  np.testing.assert_allclose(log_det, s, rtol=1e-6)


@pytest.mark.parametrize(
  ("levels", "dtype"),
  [(256, "bfloat16"), (100, "bfloat16"), (1000, "float16"), (1000, "float32")],
)
def test_rounding_makes_no_other_integer(levels, dtype):
  images = jnp.tile(jnp.arange(levels), (300, 1))
  x = dequantise(jax.random.key(2), images, levels, dtype)
  assert x.dtype == dtype and 0 <= x.min() and x.max() <= 1
  np.testing.assert_array_equal(quantise(x, levels, jnp.int32), images)


def test_images_as_floats():
  images = jnp.array([[0, 3, 128, 255]], jnp.uint8)
  x = dequantise(jax.random.key(0), images)
  np.testing.assert_array_equal(quantise(x), images)
  with pytest.raises(ValueError, match="levels=1000, which uint8"):
    quantise(0.5, 1000)
  assert quantise(0.5, 1000, jnp.int32) == 500
  with pytest.raises(ValueError, match="levels=257 and bfloat16.*1 to 256"):
    dequantise(jax.random.key(0), images, 257, jnp.bfloat16)
  # A uniform density on [0, 1] gives each of 256 levels 8 bits, of 32 five.
  assert bits_per_dim(jnp.zeros(()), 4) == 8
  assert bits_per_dim(jnp.zeros(()), 4, levels=32) == 5
  with pytest.raises(ValueError, match="float32.*expected integers"):
    dequantise(jax.random.key(0), x)


def test_logit_is_exact_at_the_edges(x64):
  layer = logit(event_ndim=1)
  x = jnp.array([0.0, 0.3, 1.0])
  y, log_det = layer.forward_and_log_det((), x)
  p = 0.05 + 0.9 * np.asarray(x)
  np.testing.assert_allclose(y, np.log(p / (1 - p)), rtol=1e-12)
  slopes = np.log(0.9 / (p * (1 - p)))
  np.testing.assert_allclose(log_det, slopes.sum(), rtol=1e-12)
  back, back_log_det = layer.inverse_and_log_det((), y)
  np.testing.assert_allclose(back, x, atol=1e-12)
  np.testing.assert_allclose(back_log_det, -log_det, rtol=1e-12)
  with pytest.raises(ValueError, match="alpha=0.5"):
    logit(0.5)


@pytest.mark.parametrize("make", [real_nvp, nice])
def test_couplings_come_in_pairs(make):
  with pytest.raises(ValueError, match="num_layers=3, expected an even"):
    make(num_layers=3)


def test_actnorm_keeps_the_scale_of_constant_channels():
  constants = np.random.default_rng(0).normal(size=20).astype("float32")
  x = jnp.tile(jnp.asarray(constants), (48, 1))
  params = actnorm().init(jax.random.key(0), x)
  np.testing.assert_array_equal(params.log_scale, 0)
