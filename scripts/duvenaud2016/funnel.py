"""Figures 1 and 3 of the paper: what descent makes of a disc, in the plane."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

import revmom
from duvenaud2016 import plots
from duvenaud2016.config import Config
from duvenaud2016.training import shrunk
from revmom.training import ledger
from shared.reproduction import Outcome, Row
from shared.runs import check_finite

CENTRE, RADIUS, RATE = (-1.0, 1.0), 2.5, 0.01
_POINTS = 250  # of a ring
_RINGS, _ANGLES = 60, 120  # of the points that stand for a disc
_THRESHOLD = 0.25


def energy(x: jax.Array) -> jax.Array:
  """The authors' funnel, -log of a density of (mean, log std)."""
  mean, log_std = x
  std = jnp.exp(log_std)
  return log_std + 0.5 * (mean / (std + 0.01)) ** 2 + 0.1 / std


class Path(NamedTuple):
  """Points along descent, and log|det| of all steps so far."""

  points: np.ndarray  # [T + 1, N, 2]
  log_dets: np.ndarray  # [T + 1, N]


def descend(points: np.ndarray, steps: int, threshold: float) -> Path:
  """Descends from each point.

  The log-determinants are exact: those of a step's program, by revmom.log_det.
  """

  def step(x: jax.Array) -> jax.Array:
    return x - RATE * shrunk(jax.grad(energy)(x), jnp.float32(threshold))

  def run(start: jax.Array) -> Any:
    def advance(carry, _):
      x, book = carry
      exact = revmom.log_det(step)(x).value
      book = ledger.add(book, curvature=exact)
      after = step(x)
      return (after, book), (after, ledger.total(book).value)

    carry = start, ledger.init(start)
    _, (path, totals) = lax.scan(advance, carry, length=steps)
    return (
      jnp.concatenate([start[None], path]),
      jnp.concatenate([jnp.zeros(1), totals]),
    )

  path, totals = jax.jit(jax.vmap(run))(jnp.asarray(points, jnp.float32))
  check_finite("a path", (path, totals), "take fewer --steps.")
  return Path(np.swapaxes(path, 0, 1), np.swapaxes(totals, 0, 1))


def ring(radius: float) -> np.ndarray:
  """Points on a circle, [_POINTS, 2]."""
  angle = 2 * np.pi * np.arange(_POINTS) / _POINTS
  return CENTRE + radius * np.stack([np.cos(angle), np.sin(angle)], -1)


def disc(radius: float) -> np.ndarray:
  """Centres of cells of equal area, [_RINGS * _ANGLES, 2]."""
  radii = radius * np.sqrt((np.arange(_RINGS) + 0.5) / _RINGS)
  angles = 2 * np.pi * np.arange(_ANGLES) / _ANGLES
  radii, angles = np.meshgrid(radii, angles)
  return CENTRE + radii.reshape(-1, 1) * np.stack(
    [np.cos(angles).ravel(), np.sin(angles).ravel()], -1
  )


def area(outline: np.ndarray) -> float:
  """Of a polygon: Gauss's formula."""
  x, y = outline.T
  return 0.5 * abs(float(np.dot(x, np.roll(y, -1)) - np.dot(y, np.roll(x, -1))))


def _rows(key: str, what: str, outline: np.ndarray, inside: Path) -> list[Row]:
  """Entropy, and the area that a disc has become, in two ways."""
  start = np.pi * RADIUS**2
  entropy = float(inside.log_dets[-1].mean())
  by_determinants = start * float(np.exp(inside.log_dets[-1]).mean())
  return [
    Row(f"{key}_entropy_change", f"change of entropy, {what}", None, entropy),
    Row(
      f"{key}_area_by_determinants",
      f"area of the disc, {what}, by determinants",
      None,
      by_determinants,
    ),
    Row(
      f"{key}_area_by_outline",
      f"area of the disc, {what}, by its outline",
      None,
      area(outline),
    ),
  ]


def _metrics(paths: dict[str, Path]) -> list[dict[str, Any]]:
  return [
    {
      "descent": name,
      "iteration": number,
      "entropy_change": float(log_dets.mean()),
    }
    for name, path in paths.items()
    for number, log_dets in enumerate(path.log_dets)
  ]


_NOTE = (
  "The paper prints no numbers for this figure.  A disc of area 19.63 is "
  "what the density is drawn from."
)


def figure_1(config: Config) -> Outcome:
  """Three rings at ten times of descent into the funnel."""
  steps = config.steps or 500
  radii = [RADIUS * k / 3 for k in (1, 2, 3)]
  rings = [descend(ring(radius), steps, 0.0).points for radius in radii]
  inside = descend(disc(RADIUS), steps, 0.0)
  return Outcome(
    _rows("plain", "plain descent", rings[-1][-1], inside),
    _metrics({"plain": inside}),
    {"figure_1": plots.rings(energy, rings, inside.log_dets)},
    [_NOTE],
  )


def figure_3(config: Config) -> Outcome:
  """A ring, by plain and by entropy-friendly descent."""
  steps = config.steps or 300
  names = {"plain": 0.0, "friendly": _THRESHOLD}
  rings = {name: descend(ring(RADIUS), steps, g0) for name, g0 in names.items()}
  discs = {name: descend(disc(RADIUS), steps, g0) for name, g0 in names.items()}
  table = [
    row
    for name, text in zip(names, ("g0 = 0", f"g0 = {_THRESHOLD}"), strict=True)
    for row in _rows(name, text, rings[name].points[-1], discs[name])
  ]
  figure = plots.thresholds_in_the_plane(
    energy, {name: path.points for name, path in rings.items()}, _THRESHOLD
  )
  return Outcome(table, _metrics(discs), {"figure_3": figure}, [_NOTE])
