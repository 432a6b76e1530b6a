"""Nested rings, which no flow of the plane can separate by a line.

Both networks are one to one: a ResNet if its residuals change by less than x
does (Behrmann et al. 2019), so that rings stay nested as in the flow of a
first-order equation; a Momentum ResNet whatever its residuals are, since it is
points and velocities that may not meet.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax import lax

from momentum_layers.gradients import kept, restored

GAMMA = 0.9
HIDDEN = 16
LIPSCHITZ = 0.9  # of a residual, at most
_POINTS = 100  # of a ring


class Params(NamedTuple):
  """Layers tanh(x w + b) v, and a line that decides."""

  w: jax.Array  # [depth, 2, hidden]
  b: jax.Array  # [depth, hidden]
  v: jax.Array  # [depth, hidden, 2]
  line: jax.Array  # [3]


def points(seed: int) -> tuple[np.ndarray, np.ndarray]:
  """Four rings [N, 2] and their labels, which alternate."""
  rng = np.random.default_rng(seed)
  ring = np.repeat(np.arange(4), _POINTS)
  angle = rng.uniform(0, 2 * np.pi, ring.size)
  radius = 0.4 * (1 + ring) + 0.03 * rng.normal(size=ring.size)
  x = radius[:, None] * np.stack([np.cos(angle), np.sin(angle)], 1)
  return x.astype(np.float32), (ring % 2).astype(np.float32)


def init(seed: int, number: int) -> Params:
  """Random weights; layers begin near the identity."""
  rng = np.random.default_rng(seed + 1)
  normal = lambda scale, *shape: jnp.asarray(
    scale * rng.normal(size=shape), jnp.float32
  )
  return Params(
    w=normal(1.0, number, 2, HIDDEN),
    b=normal(0.5, number, HIDDEN),
    v=normal(0.1 / HIDDEN**0.5, number, HIDDEN, 2),
    line=normal(1.0, 3),
  )


def residual(layer: tuple, x: jax.Array) -> jax.Array:
  """f(x) of one layer."""
  w, b, v = layer
  return jnp.tanh(x @ w + b) @ v


def bounded(layer: tuple, x: jax.Array) -> jax.Array:
  """The same with a Lipschitz constant of at most `LIPSCHITZ`."""
  w, b, v = layer
  bound = jnp.sqrt(jnp.sum(w**2) * jnp.sum(v**2))
  return residual((w, b, v * jnp.minimum(1, LIPSCHITZ / bound)), x)


def flow(name: str, params: Params, x: jax.Array) -> jax.Array:
  """Where the layers of a network take points.

  Args:
    name: "resnet", or "momentum" for a Momentum ResNet.
    params: of the network.
    x: [N, 2].
  """
  layers = params[:3]
  if name == "momentum":
    return restored(layers, x, GAMMA, residual)
  return kept(layers, x, 0.0, bounded)


def train(
  name: str, number: int, steps: int, rate: float, seed: int
) -> dict[str, Any]:
  """Trains a network on all points; what it learned, and its dynamics."""
  xs, labels = (jnp.asarray(a) for a in points(seed))
  optimizer = optax.adam(optax.cosine_decay_schedule(rate, steps))

  def scores(params, x):
    return flow(name, params, x) @ params.line[:2] + params.line[2]

  def loss_fn(params):
    values = scores(params, xs)
    return optax.sigmoid_binary_cross_entropy(values, labels).mean()

  def step(carry, _):
    params, state = carry
    loss, gradients = jax.value_and_grad(loss_fn)(params)
    updates, state = optimizer.update(gradients, state)
    return (optax.apply_updates(params, updates), state), loss

  @jax.jit
  def run(params):
    start = params, optimizer.init(params)
    (params, _), losses = lax.scan(step, start, length=steps)
    return params, losses, scores(params, xs) > 0

  params, losses, decided = run(init(seed, number))
  return {
    "losses": np.asarray(losses).tolist(),
    "accuracy": float(np.mean(np.asarray(decided) == (labels > 0.5))),
    "paths": [at.tolist() for at in _snapshots(name, params, xs)],
  }


def _snapshots(name: str, params: Params, xs: jax.Array) -> list[np.ndarray]:
  """Points after none, a third, two thirds and all of the layers."""
  number = len(params.w)
  gamma, f = (GAMMA, residual) if name == "momentum" else (0.0, bounded)
  run = lambda layers: kept(layers, xs, gamma, f)
  found = [np.asarray(xs)]
  for third in (1, 2, 3):
    part = jax.tree.map(lambda a, t=third: a[: number * t // 3], params[:3])
    found.append(np.asarray(jax.jit(run)(part)))
  return found
