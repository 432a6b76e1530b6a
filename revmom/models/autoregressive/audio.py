"""Sound as integers: companding by the mu-law."""

import math

import jax
import jax.numpy as jnp

from revmom.models.sizes import at_least


def mu_law(audio: jax.Array, levels: int = 256) -> jax.Array:
  r"""Integers whose steps grow with the amplitude.

  With :math:`\mu = \text{levels} - 1`, the integer nearest to
  :math:`\mu (f(x) + 1) / 2`,

  .. math:: f(x) = \text{sign}(x) \frac{\log(1 + \mu |x|)}{\log(1 + \mu)}

  (van den Oord et al. 2016, "WaveNet", section 2.2; ITU-T G.711).

  Args:
    audio: floats x in [-1, 1]; what is beyond is clipped.
    levels: how many integers there are.

  Returns:
    int32 in 0, ..., levels - 1, of the same shape.

  Raises:
    ValueError: if they are not floats, or there are fewer than 2 levels.

  >>> print(mu_law(jnp.array([-1.0, -0.01, 0.0, 0.01, 1.0])))
  [  0  98 128 157 255]
  """
  at_least(2, levels=levels)
  audio = jnp.asarray(audio)
  if not jnp.issubdtype(audio.dtype, jnp.floating):
    raise ValueError(
      f"got audio of {audio.dtype}, expected floats in [-1, 1]: divide 16-bit "
      "samples by 32768."
    )
  mu = levels - 1
  audio = jnp.clip(audio, -1, 1)
  companded = jnp.sign(audio) * jnp.log1p(mu * jnp.abs(audio)) / math.log1p(mu)
  return jnp.floor(0.5 * mu * (companded + 1) + 0.5).astype(jnp.int32)


def mu_law_inverse(integers: jax.Array, levels: int = 256) -> jax.Array:
  """Audio in [-1, 1] that `mu_law` turns into these integers.

  >>> print(mu_law_inverse(jnp.array([0, 98, 255])).round(4))
  [-1.     -0.0102  1.    ]
  """
  at_least(2, levels=levels)
  integers = jnp.asarray(integers)
  if not jnp.issubdtype(integers.dtype, jnp.integer):
    raise ValueError(f"got {integers.dtype}, expected integers.")
  mu = levels - 1
  companded = 2 / mu * integers.astype(float) - 1
  size = jnp.expm1(jnp.abs(companded) * math.log1p(mu)) / mu
  return jnp.sign(companded) * size
