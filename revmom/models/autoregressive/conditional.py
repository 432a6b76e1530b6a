"""Distributions of one element, given what a network says of it.

Outputs of a network have a last axis [P], the parameters of the distribution,
beyond the axes of the elements.  Sums and logarithms are in float32 or wider.
"""

import math
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp

from revmom.models.sizes import at_least
from revmom.numerics import accumulator


class Conditional(NamedTuple):
  """A family of distributions of elements.

  Attributes:
    num_outputs: P, numbers that a network gives for each element.
    log_prob: (outputs [..., P], x [...]) -> [...] in nats.
    sample: (key, outputs [..., P]) -> x [...], int32 or floats.
    encode: x -> floats of the same shape, what networks see of elements.
  """

  num_outputs: int
  log_prob: Callable[[jax.Array, jax.Array], jax.Array]
  sample: Callable[[jax.Array, jax.Array], jax.Array]
  encode: Callable[[jax.Array], jax.Array]


def categorical(levels: int = 256) -> Conditional:
  r"""Any distribution of the integers 0, ..., levels - 1, by a softmax.

  .. math:: p(x) = \frac{\exp a_x}{\sum_k \exp a_k}

  (van den Oord, Kalchbrenner & Kavukcuoglu 2016, section 2.2).  Networks see
  the integers as -1, ..., 1.

  Args:
    levels: K; it is P too.

  Returns:
    A `Conditional`; log p is -inf for what is not among the integers.

  >>> print(categorical(4).log_prob(jnp.zeros(4), jnp.array(3)).round(3))
  -1.386
  """
  at_least(2, levels=levels)

  def log_prob(outputs: jax.Array, x: jax.Array) -> jax.Array:
    x = _integers(x, levels)
    log_probs = jax.nn.log_softmax(_widened(outputs, levels))
    index = jnp.clip(x, 0, levels - 1)[..., None]
    chosen = jnp.take_along_axis(log_probs, index, -1)[..., 0]
    return _inside(chosen, x, levels)

  def sample(key: jax.Array, outputs: jax.Array) -> jax.Array:
    return jax.random.categorical(key, _widened(outputs, levels)).astype(
      jnp.int32
    )

  return Conditional(levels, log_prob, sample, lambda x: _encode(x, levels))


def bernoulli() -> Conditional:
  r"""Bits, by a sigmoid: log p(x) = -softplus((1 - 2x) a), x in {0, 1}.

  Networks see them as -1 and 1.

  >>> print(bernoulli().log_prob(jnp.zeros(1), jnp.array(1)).round(3))
  -0.693
  """

  def log_prob(outputs: jax.Array, x: jax.Array) -> jax.Array:
    x, logits = _integers(x, 2), _widened(outputs, 1)[..., 0]
    sign = (1 - 2 * x).astype(logits.dtype)
    return _inside(-jax.nn.softplus(sign * logits), x, 2)

  def sample(key: jax.Array, outputs: jax.Array) -> jax.Array:
    probability = jax.nn.sigmoid(_widened(outputs, 1)[..., 0])
    return jax.random.bernoulli(key, probability).astype(jnp.int32)

  return Conditional(1, log_prob, sample, lambda x: _encode(x, 2))


def gaussian(scale: float = 1.0) -> Conditional:
  r"""Real numbers with a mean from the network and a fixed variance.

  .. math::
    \log p(x) = -\frac{(x - a)^2}{2 s^2} - \log s - \tfrac12 \log 2\pi

  Args:
    scale: s, the standard deviation.

  Raises:
    ValueError: if it is not positive.

  >>> print(gaussian(2.0).log_prob(jnp.zeros(1), jnp.array(2.0)).round(3))
  -2.112
  """
  if not scale > 0:
    raise ValueError(f"got scale={scale}, expected a positive number.")

  def encode(x: jax.Array) -> jax.Array:
    x = jnp.asarray(x)
    if not jnp.issubdtype(x.dtype, jnp.floating):
      raise ValueError(
        f"got elements of {x.dtype}, expected floats; integers have the "
        "conditionals `categorical` and `mixture_of_logistics`."
      )
    return x

  def log_prob(outputs: jax.Array, x: jax.Array) -> jax.Array:
    x, mean = encode(x), _widened(outputs, 1)[..., 0]
    dtype = jnp.promote_types(x.dtype, mean.dtype)
    deviation = (x.astype(dtype) - mean.astype(dtype)) / scale
    return -0.5 * deviation**2 - math.log(scale) - 0.5 * math.log(2 * math.pi)

  def sample(key: jax.Array, outputs: jax.Array) -> jax.Array:
    mean = _widened(outputs, 1)[..., 0]
    return mean + scale * jax.random.normal(key, mean.shape, mean.dtype)

  return Conditional(1, log_prob, sample, encode)


def mixture_of_logistics(
  components: int = 10, levels: int = 256
) -> Conditional:
  r"""Integers as rounded real numbers from a mixture of logistics.

  With k as x in -1, ..., 1 and half a step :math:`h = 1 / (\text{levels} - 1)`,

  .. math::
    P(k) = \sum_i \pi_i
      \left[\sigma\!\left(\frac{x + h - \mu_i}{s_i}\right)
          - \sigma\!\left(\frac{x - h - \mu_i}{s_i}\right)\right],

  the first term being 1 for the highest level and the second 0 for the lowest
  (Salimans, Karpathy, Chen & Kingma 2017, equation 2).  The difference is
  computed as :math:`\sigma(a) \sigma(-b) (1 - e^{b - a})`, without loss of
  digits anywhere, so there is no need of their approximation for small ones.
  Channels have mixtures of their own; the network tells each of those before.

  Args:
    components: K of the mixture; P is 3 K: log-weights, means and log-scales
      up to a constant.
    levels: values of an element, which are 0, ..., levels - 1.

  Returns:
    A `Conditional`; log p is -inf for what is not among the integers.

  >>> mixture = mixture_of_logistics(components=2, levels=4)
  >>> log_prob = mixture.log_prob(jnp.ones((4, 6)), jnp.arange(4))
  >>> print(jnp.exp(log_prob).sum().round(5))
  1.0
  """
  at_least(2, levels=levels)
  at_least(1, components=components)

  def split(outputs: jax.Array) -> list[jax.Array]:
    log_weights, means, log_scales = jnp.split(
      _widened(outputs, 3 * components), 3, -1
    )
    return [log_weights, means, _bounded(log_scales, levels)]

  def log_prob(outputs: jax.Array, x: jax.Array) -> jax.Array:
    x = _integers(x, levels)
    log_weights, means, log_scales = split(outputs)
    values = _encode(x, levels).astype(means.dtype)[..., None]  # [..., 1]
    log_width = math.log(2 / (levels - 1)) - log_scales
    centred = (values - means) * jnp.exp(-log_scales)
    half = 0.5 * jnp.exp(log_width)
    lowest, highest = x[..., None] == 0, x[..., None] == levels - 1
    below = jax.nn.log_sigmoid(centred + half)
    above = jax.nn.log_sigmoid(half - centred)
    log_masses = (
      jnp.where(highest, 0, below)
      + jnp.where(lowest, 0, above)
      + jnp.where(lowest | highest, 0, _log_1m_exp(log_width))
    )
    log_masses = jax.nn.log_softmax(log_weights) + log_masses
    return _inside(jax.nn.logsumexp(log_masses, -1), x, levels)

  def sample(key: jax.Array, outputs: jax.Array) -> jax.Array:
    log_weights, means, log_scales = split(outputs)
    which, noise = jax.random.split(key)
    index = jax.random.categorical(which, log_weights)[..., None]
    mean, log_scale = (
      jnp.take_along_axis(values, index, -1)[..., 0]
      for values in (means, log_scales)
    )
    z = jax.random.logistic(noise, mean.shape, mean.dtype)
    value = 0.5 * (levels - 1) * (mean + jnp.exp(log_scale) * z + 1)
    return jnp.clip(jnp.round(value), 0, levels - 1).astype(jnp.int32)

  return Conditional(
    3 * components, log_prob, sample, lambda x: _encode(x, levels)
  )


def _bounded(log_scales: jax.Array, levels: int) -> jax.Array:
  """Log-scales, the smallest a tenth of the distance between levels.

  With 256 levels it is theirs, exp(-7).
  """
  return jnp.maximum(log_scales, -math.log(levels - 1) - 1.5)


def _log_1m_exp(log_x: jax.Array) -> jax.Array:
  """log(1 - exp(-x)) for any x > 0, as a function of log x."""
  x = jnp.exp(log_x)
  small = x < 0.02
  # Each branch gets what the other would turn into infinite derivatives.
  x = jnp.where(small, 1, x)
  near = jnp.exp(jnp.where(small, log_x, -4.0))
  series = log_x - near / 2 + near**2 / 24 - near**4 / 2880
  return jnp.where(small, series, jnp.log(-jnp.expm1(-x)))


def _widened(outputs: jax.Array, num_outputs: int) -> jax.Array:
  if outputs.shape[-1:] != (num_outputs,):
    raise ValueError(
      f"got outputs of shape {outputs.shape}, expected [..., {num_outputs}] "
      "for this conditional: the network's parameters are for another."
    )
  return outputs.astype(accumulator(outputs.dtype))


def _integers(x: jax.Array, levels: int) -> jax.Array:
  x = jnp.asarray(x)
  if not jnp.issubdtype(x.dtype, jnp.integer):
    raise ValueError(
      f"got elements of {x.dtype}, expected integers in 0, ..., {levels - 1}: "
      "floats become integers by `quantise` or `mu_law`, or have the "
      "conditional `gaussian`."
    )
  return x.astype(jnp.int32)


def _encode(x: jax.Array, levels: int) -> jax.Array:
  """0, ..., levels - 1 as -1, ..., 1."""
  return 2 / (levels - 1) * _integers(x, levels).astype(float) - 1


def _inside(log_prob: jax.Array, x: jax.Array, levels: int) -> jax.Array:
  """Log-probabilities, -inf where x is none of the levels."""
  return jnp.where((x >= 0) & (x < levels), log_prob, -jnp.inf)
