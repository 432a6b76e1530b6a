"""Distributions of single elements, against direct sums and integrals."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.special
import scipy.stats

from revmom.models.autoregressive.audio import mu_law, mu_law_inverse
from revmom.models.autoregressive.conditional import (
  bernoulli,
  categorical,
  gaussian,
  mixture_of_logistics,
)

DISCRETE = {
  "categorical": (categorical(7), 7),
  "bernoulli": (bernoulli(), 2),
  "mixture": (mixture_of_logistics(components=3, levels=9), 9),
  "fine mixture": (mixture_of_logistics(components=2, levels=65536), 65536),
}


def of_all_levels(conditional, outputs, levels):
  @jax.jit
  def evaluate(outputs):
    outputs = jnp.broadcast_to(outputs, (levels, conditional.num_outputs))
    return conditional.log_prob(outputs, jnp.arange(levels))

  return np.asarray(evaluate(jnp.asarray(outputs)))


@pytest.mark.parametrize("name", DISCRETE)
def test_probabilities_sum_to_one(name):
  conditional, levels = DISCRETE[name]
  outputs = jax.random.normal(jax.random.key(0), (3, conditional.num_outputs))
  outputs = outputs * np.float32([[0.1], [1], [30]])

  @jax.jit
  @jax.vmap
  def log_probs(outputs):
    outputs = jnp.broadcast_to(outputs, (levels, conditional.num_outputs))
    return conditional.log_prob(outputs, jnp.arange(levels))

  probabilities = np.exp(np.asarray(log_probs(outputs), np.float64))
  np.testing.assert_allclose(probabilities.sum(-1), 1, rtol=1e-4)


def test_gaussian_has_its_mean_and_scale():
  xs = np.linspace(-3, 4, 15, dtype=np.float32)
  for scale in (0.3, 2.0):
    got = gaussian(scale).log_prob(jnp.full((15, 1), 0.7), jnp.asarray(xs))
    expected = scipy.stats.norm(0.7, scale).logpdf(xs)
    np.testing.assert_allclose(got, expected, rtol=1e-5)


def test_mixture_is_the_difference_of_sigmoids(x64):
  levels, rng = 16, np.random.default_rng(0)
  outputs = rng.normal(size=(levels, 12))
  outputs[:, 8:] = rng.uniform(-2, 0, size=(levels, 4))  # log-scales
  log_weights, means, log_scales = np.split(outputs, 3, -1)
  edges = (2 * np.arange(levels + 1) - levels) / (levels - 1)
  edges[0], edges[-1] = -np.inf, np.inf
  cumulative = lambda edge: scipy.special.expit(
    (edge[:, None] - means) / np.exp(log_scales)
  )
  masses = cumulative(edges[1:]) - cumulative(edges[:-1])
  weights = scipy.special.softmax(log_weights, -1)
  got = mixture_of_logistics(4, levels).log_prob(
    jnp.asarray(outputs), jnp.arange(levels)
  )
  np.testing.assert_allclose(got, np.log((weights * masses).sum(-1)), rtol=1e-9)


def test_mixture_keeps_its_digits_in_the_tails():
  """Far from the mean the mass is that of an exponential."""
  conditional = mixture_of_logistics(components=1, levels=256)
  outputs = jnp.array([0.0, -1.0, -4.0])  # mean at the lowest level
  got = of_all_levels(conditional, outputs, 256)[100:200]
  # log(e^{-(a - w)} - e^{-(a + w)}), a and w in scales.
  a, w = 2 * np.arange(100, 200) / 255 * np.e**4, np.e**4 / 255
  expected = -a + np.log(2 * np.sinh(w))
  np.testing.assert_allclose(got, expected, rtol=1e-5)


@jax.jit
def derivatives_of_a_mixture(means, log_scales):
  xs = jnp.array([0, 1, 128, 255])
  conditional = mixture_of_logistics(components=2, levels=256)

  def log_probs(outputs):
    return conditional.log_prob(jnp.broadcast_to(outputs, (4, 6)), xs)

  def of(mean, log_scale):
    outputs = jnp.array([0.5, -0.5, 0.0, 0.1, 0.0, 0.0])
    outputs = outputs.at[2].set(mean).at[4].set(log_scale)
    gradient = jax.jacrev(log_probs)
    return log_probs(outputs), gradient(outputs), jax.jacfwd(gradient)(outputs)

  return jax.vmap(of)(means, log_scales)


def test_mixture_has_finite_derivatives():
  means, log_scales = np.meshgrid(
    np.float32([-1, 0.3, 1e4]), np.float32([-50, 0, 3, 50, 80])
  )
  results = derivatives_of_a_mixture(means.ravel(), log_scales.ravel())
  for result in results:
    assert np.isfinite(result).all()


@pytest.mark.parametrize("name", ["categorical", "bernoulli", "mixture"])
def test_samples_follow_the_probabilities(name):
  conditional, levels = DISCRETE[name]
  outputs = jax.random.normal(jax.random.key(1), (conditional.num_outputs,))
  expected = np.exp(of_all_levels(conditional, outputs, levels))
  count = 40000
  drawn = jax.jit(conditional.sample)(
    jax.random.key(2), np.broadcast_to(outputs, (count, len(outputs)))
  )
  assert drawn.dtype == jnp.int32 and drawn.shape == (count,)
  frequencies = np.bincount(drawn, minlength=levels) / count
  deviation = np.sqrt(expected * (1 - expected) / count)
  assert (np.abs(frequencies - expected) < 5 * deviation).all()


def test_gaussian_samples():
  drawn = gaussian(0.5).sample(jax.random.key(0), jnp.full((40000, 1), 3.0))
  assert abs(drawn.mean() - 3) < 0.02 and abs(drawn.std() - 0.5) < 0.02


@pytest.mark.parametrize("name", DISCRETE)
def test_encoding_is_even_from_minus_one_to_one(name):
  conditional, levels = DISCRETE[name]
  encoded = jax.jit(conditional.encode)(np.arange(levels, dtype=np.uint16))
  np.testing.assert_allclose(encoded, np.linspace(-1, 1, levels), atol=1e-6)


@pytest.mark.parametrize("name", DISCRETE)
def test_impossible_values_have_no_probability(name):
  conditional, levels = DISCRETE[name]
  outputs = np.zeros((3, conditional.num_outputs), np.float32)
  impossible = np.int32([-1, levels, levels + 7])
  log_probs = jax.jit(conditional.log_prob)(outputs, impossible)
  np.testing.assert_array_equal(log_probs, -np.inf)


@pytest.mark.parametrize("name", DISCRETE)
def test_short_floats_are_widened(name):
  conditional, levels = DISCRETE[name]
  outputs = jax.ShapeDtypeStruct((1, conditional.num_outputs), jnp.bfloat16)
  xs = jax.ShapeDtypeStruct((1,), jnp.int32)
  log_prob = jax.eval_shape(conditional.log_prob, outputs, xs)
  assert log_prob.dtype == jnp.float32


def test_errors():
  for conditional, _ in DISCRETE.values():
    with pytest.raises(ValueError, match="expected integers in 0"):
      conditional.log_prob(jnp.zeros((1, conditional.num_outputs)), jnp.ones(1))
    with pytest.raises(ValueError, match="expected integers in 0"):
      conditional.encode(jnp.ones(1))
  with pytest.raises(ValueError, match="expected floats"):
    gaussian().encode(jnp.ones(1, int))
  with pytest.raises(ValueError, match="positive"):
    gaussian(0.0)
  for make in (categorical, lambda levels: mixture_of_logistics(1, levels)):
    with pytest.raises(ValueError, match="levels=1"):
      make(1)
  with pytest.raises(ValueError, match="components=0"):
    mixture_of_logistics(0)


@pytest.mark.parametrize("levels", [16, 256])
def test_mu_law_and_its_inverse(levels):
  compress = jax.jit(lambda audio: mu_law(audio, levels))
  expand = jax.jit(lambda integers: mu_law_inverse(integers, levels))
  integers = np.arange(levels, dtype=np.int32)
  audio = np.asarray(expand(integers))
  np.testing.assert_array_equal(compress(audio), integers)
  np.testing.assert_allclose(audio, -audio[::-1], atol=1e-6)
  # Steps grow by the same factor; rounding is to the nearest after companding.
  steps = np.diff(audio.astype(np.float64))[levels // 2 :]
  ratio = levels ** (2 / (levels - 1))
  np.testing.assert_allclose(steps[1:] / steps[:-1], ratio, rtol=1e-2)
  xs = np.linspace(-1.2, 1.2, 999, dtype=np.float32)
  back = np.asarray(expand(compress(xs)))
  half_step = np.clip(np.abs(xs), 0, 1) + 1 / (levels - 1)
  half_step *= np.log(levels) / (levels - 1) * 1.2
  assert (np.abs(back - np.clip(xs, -1, 1)) < half_step).all()


def test_mu_law_errors():
  with pytest.raises(ValueError, match="divide 16-bit"):
    mu_law(jnp.ones(3, jnp.int16))
  with pytest.raises(ValueError, match="expected integers"):
    mu_law_inverse(jnp.ones(3))
  with pytest.raises(ValueError, match="levels=1"):
    mu_law(jnp.ones(3), 1)
