"""Errors of gradients at many depths, and the memory that they take."""

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from momentum_layers import bit_store
from momentum_layers.bit_store import Layers
from revmom import depth
from shared import runs

WIDTH, HIDDEN, BATCH = 32, 64, 64


def residual(layer: Layers, x: jax.Array) -> jax.Array:
  """f(x) of one layer."""
  return jnp.tanh(x @ layer.w) @ layer.v


def kept(layers: Any, x: jax.Array, gamma: float, f: Callable) -> jax.Array:
  """A Momentum ResNet whose activations are kept; gamma = 0 is a ResNet."""

  def step(carry, layer):
    v, x = carry
    v = gamma * v + (1 - gamma) * f(layer, x)
    return (v, x + v), None

  return lax.scan(step, (0 * x, x), layers)[0][1]


def restored(layers: Any, x: jax.Array, gamma: float, f: Callable) -> jax.Array:
  """The same, restored instead."""
  updates = depth.momentum(f, gamma)
  return depth.reversible_scan(updates, (0 * x, x), layers)[1]


def network(number: int, seed: int) -> tuple[Layers, np.ndarray]:
  """Random layers and inputs, float64.

  Increments are such that activations neither grow nor shrink much.
  """
  rng = np.random.default_rng(seed)
  w = rng.normal(size=(number, WIDTH, HIDDEN)) / WIDTH**0.5
  v = rng.normal(size=(number, HIDDEN, WIDTH)) / (HIDDEN * number) ** 0.5
  return Layers(w, v), rng.normal(size=(BATCH, WIDTH))


def errors(gamma: float, number: int, seed: int) -> dict[str, Any]:
  """Relative errors of a gradient beside float64 that keeps everything."""
  layers, x = network(number, seed)
  exact = bit_store.kept_gradient(layers, x, gamma)
  single = Layers(*(a.astype(np.float32) for a in layers))
  x32 = x.astype(np.float32)
  inputs = jnp.asarray(x32)
  ours = jax.jit(
    jax.grad(lambda l: jnp.mean(restored(l, inputs, gamma, residual) ** 2))
  )(Layers(*map(jnp.asarray, single)))
  with np.errstate(all="ignore"):
    found = {
      "revmom": ours,
      "kept": bit_store.kept_gradient(single, x32, gamma),
      "float_reversal": bit_store.float_gradient(single, x32, gamma),
      "truncating_store": bit_store.truncating_gradient(single, x32, gamma),
    }
  row: dict[str, Any] = {"gamma": gamma, "depth": number}
  for name, gradient in found.items():
    row[name] = _error(gradient, exact)
  # Not a number unless the receipt is whole.
  row["restored"] = bool(np.isfinite(ours.w).all())
  return row


def _error(found: Sequence[Any], exact: Sequence[np.ndarray]) -> float | None:
  """None where it has left what JSON holds."""
  parts = [np.asarray(a, np.float64) for a in found]
  with np.errstate(all="ignore"):
    apart = sum(np.sum((a - b) ** 2) for a, b in zip(parts, exact, strict=True))
    error = float(np.sqrt(apart / sum(np.sum(b**2) for b in exact)))
  return error if np.isfinite(error) else None


def megabytes(gamma: float, number: int) -> dict[str, Any]:
  """Temporary memory of a gradient as the compiler counts it, run or not."""
  batch = 16 * BATCH
  shaped = lambda *shape: jax.ShapeDtypeStruct(shape, jnp.float32)
  layers = Layers(shaped(number, WIDTH, HIDDEN), shaped(number, HIDDEN, WIDTH))
  row: dict[str, Any] = {"gamma": gamma, "depth": number}
  for name, run in (("revmom", restored), ("kept", kept)):
    gradient = jax.jit(
      jax.grad(lambda l, x, run=run: jnp.mean(run(l, x, gamma, residual) ** 2))
    )
    compiled = gradient.lower(layers, shaped(batch, WIDTH)).compile()
    row[name] = runs.megabytes(compiled)
  return row
