"""The gain at which a network neither damps nor amplifies perturbations."""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from revmom.analysis.gradients import norms

Network = Callable[[jax.Array, jax.Array], Any]


class Gain(NamedTuple):
  """Where the growth of perturbations changes its sign."""

  value: jax.Array  # the gain, []
  log_growth: jax.Array  # there, per layer, in nats
  stderr: jax.Array  # of log_growth, over random perturbations and examples


def perturbation_growth(
  network: Network,
  gain: jax.Array,
  x: jax.Array,
  key: jax.Array,
  *,
  skip: int = 0,
) -> tuple[jax.Array, jax.Array]:
  """log(|dh_L| / |dh_skip|) / (L - skip): the growth per layer.

  dh_l is how the activations h_l of layer l change with a random infinitesimal
  change of the input.  Where it exceeds the range of floats on its way, it is
  measured over the layers before.

  Args:
    network: (gain, x) -> the activations of each layer, a sequence of arrays
      [B, ...] or an array [L, B, ...].
    gain: what the network's weights are scaled by, in any way.
    x: inputs [B, ...], each of which is perturbed in a direction of its own.
    key: of the directions.
    skip: layers at first that are not measured, in which the perturbation is
      not yet what the network makes of it.

  Returns:
    The mean over examples and its standard error, which is NaN for only one.
    It measures perturbations; that of the network's weights is not in it.

  Raises:
    ValueError: if fewer than two layers are measured.

  >>> def network(gain, x):
  ...   return lax.scan(lambda x, _: (gain * x,) * 2, x, length=5)[1]
  >>> x = jnp.ones((3, 4))
  >>> mean, _ = perturbation_growth(network, jnp.e, x, jax.random.key(0))
  >>> print(mean.round(4))
  1.0
  """
  directions = jax.random.normal(key, x.shape, x.dtype)
  gain = jnp.asarray(gain, x.dtype)
  _, tangents = jax.jvp(lambda x: network(gain, x), (x,), (directions,))
  sizes = _log_norms(tangents)[skip:]
  if len(sizes) < 2:
    raise ValueError(
      f"{len(sizes)} layers are left after skip={skip}; growth needs 2 or more."
    )
  # Tangents far below or beyond what floats hold say nothing anymore.
  bound = 0.9 * jnp.log(jnp.finfo(sizes.dtype).max)
  lasting = jnp.cumprod((jnp.abs(sizes) < bound).astype(int), 0).astype(bool)
  last = jnp.maximum(lasting.sum(0) - 1, 1)
  end = jnp.take_along_axis(sizes, last[None], 0)[0]
  growth = (end - sizes[0]) / last.astype(sizes.dtype)
  spread = jnp.std(growth, ddof=1) if len(growth) > 1 else jnp.nan
  return growth.mean(), spread / len(growth) ** 0.5


def find_gain(
  network: Network,
  x: jax.Array,
  key: jax.Array,
  *,
  low: float = 0.1,
  high: float = 10.0,
  skip: int = 0,
  iterations: int = 20,
) -> Gain:
  """The edge of chaos of any network, by bisection of log gain.

  Args:
    network: (gain, x) -> the activations of each layer, as for
      `perturbation_growth`, whose growth changes its sign once from `low`,
      where perturbations vanish, to `high`. Its weights must be the same in
      each call.
    x: inputs [B, ...].
    key: of the perturbations.
    low, high: where to look.
    skip: layers that are not measured.
    iterations: each halves the range of log gain; 20 leave 4e-6 of a factor
      of 100.

  Returns:
    `Gain`; NaN under `jit` where the errors below are due.

  Raises:
    ValueError: if low and high are not positive numbers in this order, or
      growth is not negative at `low` and positive at `high`.

  >>> weights = jax.random.orthogonal(jax.random.key(0), 8, (20,))
  >>> def network(gain, x):
  ...   step = lambda x, w: (gain * x @ w,) * 2
  ...   return lax.scan(step, x, weights)[1]
  >>> found = find_gain(network, jnp.ones((3, 8)), jax.random.key(1))
  >>> print(f"{found.value:.4f}")
  1.0000
  """
  if not 0 < low < high:
    raise ValueError(f"got low={low}, high={high}; expected 0 < low < high.")

  def growth(log_gain: jax.Array) -> tuple[jax.Array, jax.Array]:
    return perturbation_growth(network, jnp.exp(log_gain), x, key, skip=skip)

  def halve(_: Any, bracket: tuple[jax.Array, jax.Array]) -> Any:
    below, above = bracket
    middle = (below + above) / 2
    grows = growth(middle)[0] > 0
    return jnp.where(grows, below, middle), jnp.where(grows, middle, above)

  ends = jnp.log(jnp.asarray([low, high], x.dtype))
  at_ends = lax.map(lambda end: growth(end)[0], ends)
  below, above = lax.fori_loop(0, iterations, halve, (ends[0], ends[1]))
  found = (below + above) / 2
  log_growth, stderr = growth(found)
  crosses = (at_ends[0] < 0) & (at_ends[1] > 0)
  if not isinstance(crosses, jax.core.Tracer) and not crosses:
    raise ValueError(
      f"perturbations grow by exp({at_ends[0]:.3g}) a layer at gain {low} and "
      f"by exp({at_ends[1]:.3g}) at {high}; expected less than 1 and more than "
      "1. Choose other values of low and high."
    )
  value = jnp.where(crosses, jnp.exp(found), jnp.nan)
  return Gain(value, log_growth, stderr)


def _log_norms(tangents: Any) -> jax.Array:
  """log |dh_l| of every layer and example, [L, B]."""
  if isinstance(tangents, Sequence):
    return jnp.log(jnp.stack([_norms(tangent) for tangent in tangents]))
  return jnp.log(jax.vmap(_norms)(tangents))


def _norms(tangent: jax.Array) -> jax.Array:
  """Scaled by the largest entry, whose square may be beyond all floats."""
  rows = tangent.reshape(len(tangent), -1)
  unit, factor = norms.scaled(rows)
  return jnp.linalg.norm(unit, axis=-1) * factor[:, 0]
