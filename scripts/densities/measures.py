"""What a trained flow is measured by: the truth, and round trips."""

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from densities import plots
from densities.models import Data
from densities.toys import TOYS
from densities.training import CHUNK, Config, evaluation, key_of
from revmom.models import Flow, quantise

_SHOWN = 64  # samples of images


class Inversion(NamedTuple):
  """Test data through the flow and back, and noise back and forth."""

  x: np.ndarray
  back: np.ndarray  # f^-1(f(x))
  noise_errors: np.ndarray  # max |z - f(f^-1(z))| of each sample; may be NaN
  log_det_error: float  # max |log|det f'| + log|det f^-1'||

  @property
  def errors(self) -> np.ndarray:
    """Of each element of x."""
    return np.abs(self.x - self.back)


def round_trips(
  flow: Flow, params: Any, x: jax.Array, key: jax.Array
) -> tuple[jax.Array, jax.Array, jax.Array]:
  """f^-1(f(x)), errors of noise [N], and of log-determinants []."""
  z, forward = flow.forward_and_log_det(params, x)
  back, inverse = flow.inverse_and_log_det(params, z)
  noise = jax.tree.map(
    lambda leaf: flow.base.sample(key, leaf.shape, leaf.dtype), z
  )
  sampled, _ = flow.inverse_and_log_det(params, noise)
  again, _ = flow.forward_and_log_det(params, sampled)
  apart = [
    jnp.abs(a - b).reshape(len(x), -1).max(1)
    for a, b in zip(jax.tree.leaves(noise), jax.tree.leaves(again), strict=True)
  ]
  noise_errors = functools.reduce(jnp.maximum, apart)
  return back, noise_errors, jnp.max(jnp.abs(forward + inverse))


def invert(flow: Flow, data: Data, config: Config, params: Any) -> Inversion:
  """Round trips of one chunk of the test data, and of as much noise.

  Raises:
    RuntimeError: a round trip was not finite.
  """
  x = data.floats(key_of(config, 4), data.test[:CHUNK])
  trips = jax.jit(functools.partial(round_trips, flow))
  back, noise_errors, log_det_error = trips(params, x, key_of(config, 5))
  wrong = int((~np.isfinite(back)).sum())
  if wrong:
    raise RuntimeError(
      f"{wrong} numbers of {back.size} are not finite after a round trip "
      "through the flow."
    )
  return Inversion(
    np.asarray(x),
    np.asarray(back),
    np.asarray(noise_errors),
    float(log_det_error),
  )


def inversion_errors(inversion: Inversion) -> dict[str, Any]:
  """The largest errors, and how many samples the inverse has lost."""
  kept = np.isfinite(inversion.noise_errors)
  return {
    "inversion_error": float(inversion.errors.max()),
    "noise_inversion_error": float(
      inversion.noise_errors.max(where=kept, initial=0)
    ),
    "noise_lost": int((~kept).sum()),
    "log_det_error": inversion.log_det_error,
  }


def samples(flow: Flow, data: Data, config: Config, params: Any) -> np.ndarray:
  """As many points as the test has, or some images, on the data's scale."""
  count = len(data.test) if config.points else _SHOWN
  draw = jax.jit(flow.sample, static_argnums=2)
  drawn = draw(key_of(config, 6), params, (count, *data.event))
  if data.levels is None:
    return np.asarray(drawn)
  return np.asarray(quantise(drawn, data.levels, jnp.int32))


def density_map(
  flow: Flow, data: Data, config: Config, params: Any
) -> plots.Map:
  """q and p on a grid around the test points."""
  grid = plots.grid_around(data.test)
  losses = evaluation(flow, data, config)(params, grid.points)
  log_p = np.concatenate(
    [TOYS[config.data].log_prob(part) for part in np.split(grid.points, 50)]
  )
  return plots.Map(grid, np.exp(-losses), np.exp(log_p))


def against_truth(
  config: Config, test: np.ndarray, losses: np.ndarray
) -> dict[str, float]:
  """How far the flow is from the density that points were drawn from."""
  log_p = np.concatenate(
    [
      TOYS[config.data].log_prob(part.astype(np.float64))
      for part in np.array_split(test, 20)
    ]
  )
  lacking = log_p + losses
  return {
    "true_entropy": float(-log_p.mean()),
    "kl": float(lacking.mean()),
    "kl_stderr": standard_error(lacking),
  }


def standard_error(values: np.ndarray) -> float:
  """Of a mean over independent examples."""
  return float(values.std(ddof=1) / len(values) ** 0.5)
