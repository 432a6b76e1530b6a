"""Densities: a bijection to noise of a known distribution."""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import DTypeLike

from revmom.models.events import event_sum
from revmom.models.flows.bijection import Bijection


class Base(NamedTuple):
  """A distribution of independent numbers.

  Attributes:
    log_prob: log-density of every element.
    sample: (key, shape, dtype) -> samples.
  """

  log_prob: Callable[[jax.Array], jax.Array]
  sample: Callable[..., jax.Array]


def _logistic_log_prob(z: jax.Array) -> jax.Array:
  return -jax.nn.softplus(z) - jax.nn.softplus(-z)


def _normal_log_prob(z: jax.Array) -> jax.Array:
  return -0.5 * (z * z + np.log(2 * np.pi).astype(z.dtype))


NORMAL = Base(_normal_log_prob, jax.random.normal)
LOGISTIC = Base(_logistic_log_prob, jax.random.logistic)


class Flow(NamedTuple):
  r"""A normalising flow: data x whose image z = f(x) is noise.

  .. math::
    \log p(x) = \log p_Z(f(x)) + \log\left|\det\tfrac{df}{dx}\right|

  (Dinh, Sohl-Dickstein & Bengio 2017, equation 3).  Forward is from data to
  noise, inverse from noise to data, in the manner of that paper and of Glow.

  Attributes:
    bijection: f.
    base: of the elements of z.
  """

  bijection: Bijection
  base: Base = NORMAL

  def init(self, key: jax.Array, x: jax.Array) -> Any:
    """Parameters, in the type of x.

    Args:
      key: of the random weights.
      x: a batch of data [B, *event]; layers that normalise start with its
        statistics, others need only its shape.

    >>> from revmom.models import real_nvp
    >>> flow = real_nvp(num_layers=4, hidden=(16,))
    >>> x = jax.random.normal(jax.random.key(0), (8, 3))
    >>> params = flow.init(jax.random.key(1), x)
    >>> flow.log_prob(params, x).shape
    (8,)
    >>> flow.sample(jax.random.key(2), params, (5, 3)).shape
    (5, 3)
    """
    return self.bijection.init(key, x)

  def forward_and_log_det(
    self, params: Any, x: jax.Array
  ) -> tuple[Any, jax.Array]:
    """z = f(x) and log|det dz/dx|, as `Bijection.forward_and_log_det`."""
    return self.bijection.forward_and_log_det(params, x)

  def inverse_and_log_det(
    self, params: Any, z: Any
  ) -> tuple[jax.Array, jax.Array]:
    """x with f(x) = z and log|det dx/dz|."""
    return self.bijection.inverse_and_log_det(params, z)

  def log_prob(self, params: Any, x: jax.Array) -> jax.Array:
    """log p(x) in nats.

    Args:
      params: from `init`.
      x: data [*batch, *event].

    Returns:
      [*batch], float32 or wider.
    """
    z, log_det = self.forward_and_log_det(params, x)
    return log_det + sum(
      event_sum(self.base.log_prob(leaf), leaf.ndim - log_det.ndim)
      for leaf in jax.tree.leaves(z)
    )

  def sample(
    self,
    key: jax.Array,
    params: Any,
    shape: Sequence[int],
    *,
    temperature: float = 1.0,
    dtype: DTypeLike = jnp.float32,
  ) -> jax.Array:
    """Independent samples.

    Args:
      key: of the noise.
      params: from `init`.
      shape: of the result, [*batch, *event].
      temperature: times the noise; less than 1 gives samples more typical than
        those of p (Kingma & Dhariwal 2018, section 6).
      dtype: of the noise.

    Returns:
      x of that shape.
    """
    like = jax.ShapeDtypeStruct(tuple(shape), dtype)
    noise, _ = jax.eval_shape(self.forward_and_log_det, params, like)
    leaves = jax.tree.leaves(noise)
    structure: Any = jax.tree.structure(noise)
    keys = jax.random.split(key, len(leaves))
    drawn = [
      temperature * self.base.sample(key, leaf.shape, leaf.dtype)
      for key, leaf in zip(keys, leaves, strict=True)
    ]
    return self.inverse_and_log_det(params, structure.unflatten(drawn))[0]
