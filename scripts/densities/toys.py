"""Densities of points in the plane, with samples and exact logarithms.

Each is a mixture whose density has a closed form or a quadrature that converges
to rounding, so that what a model lacks, KL(p || q) = E_p[log p - log q], is
measured and not guessed.
"""

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
from scipy.special import logsumexp


class Toy(NamedTuple):
  """A density p of points [N, 2] in float64.

  Attributes:
    sample: (generator, N) -> points [N, 2].
    log_prob: points [N, 2] -> log p [N], in nats.
  """

  sample: Callable[[np.random.Generator, int], np.ndarray]
  log_prob: Callable[[np.ndarray], np.ndarray]


def _log_normal(x: np.ndarray, std: float) -> np.ndarray:
  return -0.5 * (x / std) ** 2 - 0.5 * np.log(2 * np.pi) - np.log(std)


def _on_circle(angle: np.ndarray, radius: float = 1.0) -> np.ndarray:
  return radius * np.stack([np.cos(angle), np.sin(angle)], -1)


def _eight_gaussians() -> Toy:
  """On a circle of radius 2 sqrt(2), each of variance 1/8."""
  centres = _on_circle(np.arange(8) * np.pi / 4, 8**0.5)
  std = 8**-0.5

  def sample(rng, count):
    return centres[rng.integers(8, size=count)] + std * rng.normal(
      size=(count, 2)
    )

  def log_prob(x):
    each = _log_normal(x[:, None] - centres, std).sum(-1)
    return logsumexp(each, 1) - np.log(8)

  return Toy(sample, log_prob)


def _rings() -> Toy:
  """Radii 1, 2 and 3 with normal noise, as likely as they are long."""
  radii, std = np.array([1.0, 2.0, 3.0]), 0.1
  weights = radii / radii.sum()

  def sample(rng, count):
    radius = rng.choice(radii, size=count, p=weights)
    radius = radius + std * rng.normal(size=count)
    angle = rng.uniform(0, 2 * np.pi, count)
    return radius[:, None] * _on_circle(angle)

  def log_prob(x):
    # A radius that noise made negative lies on the other side.
    radius = np.maximum(np.linalg.norm(x, axis=-1), 1e-9)[:, None]
    signed = np.stack([radius - radii, -radius - radii])
    along = logsumexp(_log_normal(signed, std) + np.log(weights), (0, 2))
    return along - np.log(2 * np.pi * radius[:, 0])

  return Toy(sample, log_prob)


def _turn(x: np.ndarray, angle: np.ndarray) -> np.ndarray:
  cos, sin = np.cos(angle), np.sin(angle)
  return np.stack(
    [cos * x[..., 0] - sin * x[..., 1], sin * x[..., 0] + cos * x[..., 1]], -1
  )


def _pinwheel() -> Toy:
  """Five normal arms, turned by an angle that grows with the radius.

  Such a turn keeps areas, so the density is that before it.
  """
  arms, size, mean, std = 5, 2.0, np.array([1.0, 0.0]), np.array([0.3, 0.1])
  directions = np.arange(arms) * 2 * np.pi / arms
  twist = lambda x: 0.25 * np.exp(np.linalg.norm(x, axis=-1))

  def sample(rng, count):
    straight = mean + std * rng.normal(size=(count, 2))
    direction = directions[rng.integers(arms, size=count)]
    return size * _turn(straight, direction + twist(straight))

  def log_prob(x):
    x = x[:, None] / size
    straight = _turn(x, -(directions + twist(x)))
    each = sum(_log_normal((straight - mean)[..., i], std[i]) for i in range(2))
    return logsumexp(each, 1) - np.log(arms) - 2 * np.log(size)

  return Toy(sample, log_prob)


def _two_moons() -> Toy:
  """Half circles of radius 2 with normal noise."""
  std = 0.2
  moon = lambda angle: 2 * _on_circle(angle) - np.array([1.0, 0.5])
  # Gauss's rule on [0, pi]: noise is wide for the distance of 100 nodes.
  nodes, node_weights = np.polynomial.legendre.leggauss(100)
  upper = moon((nodes + 1) * np.pi / 2)
  centres = np.concatenate([upper, -upper])
  log_weights = np.log(np.tile(node_weights, 2) / 4)

  def sample(rng, count):
    sign = rng.choice([-1.0, 1.0], size=count)
    on_moon = moon(rng.uniform(0, np.pi, count)) * sign[:, None]
    return on_moon + std * rng.normal(size=(count, 2))

  def log_prob(x):
    each = _log_normal(x[:, None] - centres, std).sum(-1)
    return logsumexp(each + log_weights, 1)

  return Toy(sample, log_prob)


TOYS = {
  "two_moons": _two_moons(),
  "eight_gaussians": _eight_gaussians(),
  "rings": _rings(),
  "pinwheel": _pinwheel(),
}
