"""Residual layers: spectra, normalisation, initialisation (D4, D6, D9)."""

import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from revmom.analysis import (
  gradient_flow,
  initializers,
  residual_backward_variance,
  residual_bounds,
  residual_counterexample,
  residual_forward_variance,
  residual_sigma,
)
from revmom.models import (
  Layer,
  batch_norm,
  dense,
  post_norm,
  pre_norm,
  repeated,
  residual,
)
from trainable.row import BOUND, MEASUREMENT, PREDICTION, Panel, Result, Row

# What an identity path that is normalised keeps in each layer, at most.
_LOST = 0.99


def residual_map(key: jax.Array) -> Result:
  """D4: I + J, where half of J's singular values are 3 and half are 0.3."""
  keys = jax.random.split(key, 3)
  left, right = (
    jnp.linalg.qr(jax.random.normal(k, (32, 32)))[0] for k in keys[:2]
  )
  values = jnp.where(jnp.arange(32) < 16, 3.0, 0.3)
  split = residual_bounds((left * values) @ right.T)
  single = residual_bounds(residual_counterexample(keys[2], 32, 4.0))
  number = np.arange(1, 33)
  flat = lambda value: np.full(32, float(value))
  largest, least = float(split.measured[0]), float(split.measured[-1])
  holds = lambda ok: bool(ok)
  return [
    Row(
      "D4",
      "s_max(I + J) at least s_max(J) - 1",
      BOUND,
      float(split.largest_at_least),
      largest,
      holds(largest >= split.largest_at_least - 1e-4),
    ),
    Row(
      "D4",
      "every s(I + J) at least 1 - s_max(J)",
      BOUND,
      float(split.all_at_least),
      least,
      holds(least >= split.all_at_least - 1e-4),
    ),
    Row(
      "D4",
      "often claimed, s_min(I + J) at least 1 - s_min(J): counterexample",
      "claim",
      float(single.claimed_at_least),
      float(single.measured[-1]),
      holds(not single.claim_fails),
    ),
  ], Panel(
    "D4: singular values of I + J",
    "number, from the largest",
    "singular value",
    {
      "bound, the largest at least": (
        number,
        flat(split.largest_at_least),
        "k--",
      ),
      "measured, split spectrum": (number, np.asarray(split.measured), "."),
      "measured, counterexample": (number, np.asarray(single.measured), "x"),
      "claimed of both, wrongly": (number, flat(single.claimed_at_least), "r:"),
    },
  )


def gradients_by_depth(
  layer: Layer, key: jax.Array, x: jax.Array, depth: int
) -> np.ndarray:
  """|dL/dx_l| over that of the result, for l = 0 to depth."""
  params = repeated(layer, depth).init(key, x)
  flow = jax.jit(lambda p, x: gradient_flow(layer.apply, p, x))(params, x)
  norms = np.asarray(flow.gradients.norm)
  if not (np.isfinite(norms).all() and norms[-1] > 0):
    raise FloatingPointError("; ".join(flow.problems))
  return norms / norms[-1]


def _held(branch: Layer) -> Layer:
  """The same values, through which no gradient goes."""
  return branch._replace(
    apply=lambda params, z: lax.stop_gradient(branch.apply(params, z))
  )


def placements(key: jax.Array, images: np.ndarray) -> Result:
  """D6: normalisation inside of the branch, or after the addition.

  Of pixels that vary: those that don't are divided by the root of epsilon,
  which is no property of a residual layer.
  """
  pixels = images[:64].reshape(64, -1)
  x = jnp.asarray(pixels[:, pixels.std(0) > 0.1])
  depth, depths = 50, np.arange(51)
  curves: dict[str, Any] = {}
  rows: list[Row] = []
  for name, place, kept in (
    ("inside of the branch", pre_norm, True),
    ("after the addition", post_norm, False),
  ):
    branch = dense(activation=jax.nn.relu)
    whole, identity = (
      np.log10(gradients_by_depth(place(own, batch_norm()), key, x, depth))
      for own in (branch, _held(branch))
    )
    curves[f"measured, {name}"] = depths, whole, "-"
    curves[f"measured, its identity path, {name}"] = depths, identity, "--"
    rows.append(
      Row(
        "D6",
        f"gradient through {depth} residual blocks, normalised {name}",
        MEASUREMENT,
        None,
        float(whole[0]),
        None,
        log=True,
      )
    )
    passed = float(identity[0])
    expected = 0.0 if kept else depth * math.log10(_LOST)
    rows.append(
      Row(
        "D6",
        "of it, through the identity path alone" + ", at most" * (not kept),
        PREDICTION if kept else BOUND,
        expected,
        passed,
        abs(passed) < 1e-5 if kept else passed < expected,
        log=True,
      )
    )
  return rows, Panel(
    "D6: two residual blocks",
    "layer l",
    "log10 of |dL/dx_l| over that of the result",
    curves,
  )


def residual_variances(key: jax.Array, images: np.ndarray) -> Result:
  """D9: 100 residual layers of linear filters, forward and backward."""
  depth, size = 100, 256
  x = jax.random.normal(jax.random.fold_in(key, 1), (64, size))
  layer = residual(
    dense(activation=lambda x: x, weights=initializers.residual_filter(depth))
  )
  params = repeated(layer, depth).init(key, x)
  flow = jax.jit(lambda p, x: gradient_flow(layer.apply, p, x))(params, x)
  power = lambda norms: np.asarray(norms.rms) ** 2
  forward = power(flow.activations) / power(flow.activations)[0]
  backward = power(flow.gradients) / power(flow.gradients)[-1]
  layers, sigma = np.arange(depth + 1), residual_sigma(depth, size)
  predicted = (
    np.asarray(residual_forward_variance(layers, sigma, size)),
    np.asarray(residual_backward_variance(layers, depth, sigma, size)),
  )
  # Weights fix a network: its growth varies by some sqrt(2 L / n) sigma^2 n.
  slack = 0.1
  return [
    Row(
      "D9",
      f"variance after {depth} residual layers over that before (± {slack:g})",
      PREDICTION,
      float(predicted[0][-1]),
      float(forward[-1]),
      bool(abs(forward[-1] - predicted[0][-1]) < slack),
    ),
    Row(
      "D9",
      f"variance of gradients, first layer over last (± {slack:g})",
      PREDICTION,
      float(predicted[1][0]),
      float(backward[0]),
      bool(abs(backward[0] - predicted[1][0]) < slack),
    ),
  ], Panel(
    "D9: residual filters",
    "layer l",
    "variance",
    {
      "predicted, forward": (layers, predicted[0], "k--"),
      "measured, forward": (layers, forward, "-"),
      "predicted, backward": (layers, predicted[1], "k:"),
      "measured, backward": (layers, backward, "-"),
    },
  )
