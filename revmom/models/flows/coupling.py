"""Couplings: one part of x changes, by a function of the part that stays.

    y_a = x_a,   y_b = x_b + t(x_a)                    additive
    y_a = x_a,   y_b = x_b exp(s(x_a)) + t(x_a)        affine

(Dinh, Krueger & Bengio 2014, section 3.2; Dinh, Sohl-Dickstein & Bengio 2017,
equations 4 to 8).  t and s are never inverted, so they may be any functions.
The Jacobian is triangular: log|det| is 0, or the sum of s(x_a).
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from revmom.models.events import event_sum
from revmom.models.flows.bijection import Bijection, chain, no_change
from revmom.models.flows.conditioner import Conditioner
from revmom.models.flows.reversible import stacked

# From a network's output to s, the logarithm of the scale.
LogScale = Callable[[jax.Array], jax.Array]


class Partition(NamedTuple):
  """How the last axis is divided.

  Attributes:
    split: x -> (the part that stays, the part that changes).
    join: of the two parts, back to x.
  """

  split: Callable[[jax.Array], tuple[jax.Array, jax.Array]]
  join: Callable[[jax.Array, jax.Array], jax.Array]


def _halves(x: jax.Array) -> tuple[jax.Array, jax.Array]:
  middle = (x.shape[-1] + 1) // 2
  return x[..., :middle], x[..., middle:]


def _join_halves(first: jax.Array, second: jax.Array) -> jax.Array:
  return jnp.concatenate([first, second], -1)


def _even_odd(x: jax.Array) -> tuple[jax.Array, jax.Array]:
  return x[..., ::2], x[..., 1::2]


def _join_even_odd(even: jax.Array, odd: jax.Array) -> jax.Array:
  size = even.shape[-1] + odd.shape[-1]
  order = np.empty(size, int)
  order[::2] = np.arange(even.shape[-1])
  order[1::2] = np.arange(even.shape[-1], size)
  return jnp.concatenate([even, odd], -1)[..., order]


# The first half stays, with the middle one of an odd number, or elements 0, 2,
# 4 and so on do.
HALVES = Partition(_halves, _join_halves)
EVEN_ODD = Partition(_even_odd, _join_even_odd)


def swapped(partition: Partition) -> Partition:
  """The partition with the other part staying."""

  def split(x: jax.Array) -> tuple[jax.Array, jax.Array]:
    changing, staying = partition.split(x)
    return staying, changing

  return Partition(split, lambda a, b: partition.join(b, a))


def sigmoid_log_scale(outputs: jax.Array) -> jax.Array:
  """s = log sigmoid(outputs + 2), as Glow: scales between 0 and 1.

  They have no lower bound, so the inverse may grow without one.
  """
  return jax.nn.log_sigmoid(outputs + 2)


def tanh_log_scale(outputs: jax.Array) -> jax.Array:
  """s = 2 tanh(outputs / 2): scales between exp(-2) and exp(2).

  RealNVP's, with a bound in place of a learned factor of the tanh.
  """
  return 2 * jnp.tanh(0.5 * outputs)


def alternating(
  coupling: Callable[[Partition], Bijection],
  partition: Partition,
  num_layers: int,
  reversible: bool,
) -> Bijection:
  """Couplings that change the two parts in turn.

  Args:
    coupling: makes one of a partition.
    partition: of the first; the next has it `swapped`.
    num_layers: couplings, an even number.
    reversible: `reversible_stack` in place of `stack`, of pairs of couplings.

  Raises:
    ValueError: if the number is not even.
  """
  if num_layers < 2 or num_layers % 2:
    raise ValueError(
      f"got num_layers={num_layers}, expected an even number: couplings come "
      "in pairs, each of which changes all elements."
    )
  pair = chain(coupling(partition), coupling(swapped(partition)))
  return stacked(pair, num_layers // 2, reversible)


def additive(
  conditioner: Conditioner, partition: Partition = HALVES
) -> Bijection:
  """y_b = x_b + t(x_a); volume is preserved.

  Args:
    conditioner: t.
    partition: which part stays.

  Returns:
    A bijection whose parameters are those of the conditioner.

  Raises:
    ValueError: if there is nothing to change.
  """
  ndim = conditioner.event_ndim

  def init(key: jax.Array, x: jax.Array) -> Any:
    staying, changing = _split(partition, x)
    return conditioner.init(key, staying, changing.shape[-1])

  def forward(params: Any, x: jax.Array) -> tuple[jax.Array, jax.Array]:
    staying, changing = partition.split(x)
    changed = changing + conditioner.apply(params, staying)
    return partition.join(staying, changed), no_change(x, ndim)

  def inverse(params: Any, y: jax.Array) -> tuple[jax.Array, jax.Array]:
    staying, changed = partition.split(y)
    changing = changed - conditioner.apply(params, staying)
    return partition.join(staying, changing), no_change(y, ndim)

  return Bijection(init, forward, inverse)


def affine(
  conditioner: Conditioner,
  partition: Partition = HALVES,
  log_scale: LogScale = tanh_log_scale,
) -> Bijection:
  """y_b = x_b exp(s(x_a)) + t(x_a); log|det| = sum s(x_a).

  Args:
    conditioner: of outputs that are twice as many as there are changing
      elements: for s, then t.
    partition: which part stays.
    log_scale: bounds s.

  Returns:
    A bijection whose parameters are those of the conditioner.

  Raises:
    ValueError: if there is nothing to change.

  >>> from revmom.models import mlp
  >>> layer = affine(mlp(hidden=(8,)))
  >>> x = jnp.array([0.5, 1.0, 1.5])
  >>> params = layer.init(jax.random.key(0), x)
  >>> y, log_det = layer.forward_and_log_det(params, x)
  >>> print(y, log_det)
  [0.5 1.  1.5] 0.0
  """

  def init(key, x):
    staying, changing = _split(partition, x)
    return conditioner.init(key, staying, 2 * changing.shape[-1])

  def forward(params, x):
    staying, changing = partition.split(x)
    s, t = scale_and_shift(params, staying)
    y = partition.join(staying, changing * jnp.exp(s) + t)
    return y, event_sum(s, conditioner.event_ndim)

  def inverse(params, y):
    staying, changed = partition.split(y)
    s, t = scale_and_shift(params, staying)
    x = partition.join(staying, (changed - t) * jnp.exp(-s))
    return x, -event_sum(s, conditioner.event_ndim)

  def scale_and_shift(params, staying):
    s, t = jnp.split(conditioner.apply(params, staying), 2, -1)
    return log_scale(s), t

  return Bijection(init, forward, inverse)


def masked_affine(
  conditioner: Conditioner,
  mask: Callable[[jax.Array], np.ndarray],
  log_scale: LogScale = tanh_log_scale,
) -> Bijection:
  """y = m x + (1 - m) (x exp(s(m x)) + t(m x)).

  Dinh, Sohl-Dickstein & Bengio (2017), equation 9.  For partitions of other
  axes than the last; the conditioner computes on all elements, so where the
  last axis is divided `affine` takes half the time.

  Args:
    conditioner: of twice as many outputs as x has, for s, then t.
    mask: from x to m, which is 1 where x stays and has the shape of an event.
    log_scale: bounds s.

  Returns:
    A bijection whose parameters are those of the conditioner.
  """

  def init(key: jax.Array, x: jax.Array) -> Any:
    return conditioner.init(key, x, 2 * x.shape[-1])

  def forward(params: Any, x: jax.Array) -> tuple[jax.Array, jax.Array]:
    s, t = scale_and_shift(params, x)
    return x * jnp.exp(s) + t, event_sum(s, conditioner.event_ndim)

  def inverse(params: Any, y: jax.Array) -> tuple[jax.Array, jax.Array]:
    s, t = scale_and_shift(params, y)
    return (y - t) * jnp.exp(-s), -event_sum(s, conditioner.event_ndim)

  def scale_and_shift(params: Any, x: jax.Array) -> tuple[jax.Array, jax.Array]:
    m = jnp.asarray(mask(x), x.dtype)
    s, t = jnp.split(conditioner.apply(params, m * x), 2, -1)
    return (1 - m) * log_scale(s), (1 - m) * t

  return Bijection(init, forward, inverse)


def _split(partition: Partition, x: jax.Array) -> tuple[jax.Array, jax.Array]:
  if x.shape[-1] < 2:
    raise ValueError(
      f"a coupling got x of shape {x.shape}, expected a last axis of 2 or more "
      "to divide: squeeze images, or use an element-wise layer for one number."
    )
  return partition.split(x)
