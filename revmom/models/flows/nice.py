"""NICE (Dinh, Krueger & Bengio 2014)."""

from collections.abc import Sequence
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp

from revmom.models.flows.bijection import (
  Bijection,
  chain,
  same_everywhere,
)
from revmom.models.flows.conditioner import mlp
from revmom.models.flows.coupling import EVEN_ODD, additive, alternating
from revmom.models.flows.flow import LOGISTIC, Flow


class ScalingParams(NamedTuple):
  """Parameters of each element [D]."""

  log_scale: jax.Array


def scaling() -> Bijection:
  """y = x exp(s), with s [D] that starts at 0: section 3.3.

  Returns:
    A bijection of vectors with `ScalingParams`.
  """

  def init(key, x):
    return ScalingParams(jnp.zeros(x.shape[-1], x.dtype))

  def forward(params, x):
    log_det = same_everywhere(params.log_scale, x, 1)
    return x * jnp.exp(params.log_scale), log_det

  def inverse(params, y):
    log_det = same_everywhere(-params.log_scale, y, 1)
    return y * jnp.exp(-params.log_scale), log_det

  return Bijection(init, forward, inverse)


def nice(
  num_layers: int = 4,
  hidden: Sequence[int] = (1000,) * 5,
  *,
  reversible: bool = False,
) -> Flow:
  """Additive couplings of even with odd elements, then a scaling.

  Section 5.1, with the sizes of its MNIST model as defaults and its logistic
  noise.

  Args:
    num_layers: couplings, an even number.
    hidden: sizes of the hidden layers of each coupling's network.
    reversible: `reversible_stack` in place of `stack`: less memory, for
      gradients that take a third longer.

  Returns:
    A flow of vectors [*batch, D], D >= 2.

  >>> flow = nice(num_layers=2, hidden=(8,))
  >>> params = flow.init(jax.random.key(0), jnp.zeros((1, 2)))
  >>> print(jnp.exp(flow.log_prob(params, jnp.zeros(2))))
  0.0625
  """
  coupling = partial(additive, mlp(hidden))
  pairs = alternating(coupling, EVEN_ODD, num_layers, reversible)
  return Flow(chain(pairs, scaling()), LOGISTIC)
