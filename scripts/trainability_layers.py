"""Single layers: normalisation, variances, heads, gates (D5, D7, D8, D10)."""

import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from trainability_residual import gradients_by_depth
from trainability_row import BOUND, MEASUREMENT, PREDICTION, Panel, Result, Row

from revmom.analysis import (
  batch_norm_jacobian,
  cost,
  gradient_flow,
  initializers,
  variance_maps,
)
from revmom.analysis.gradients.norms import norms, sums
from revmom.models import (
  Layer,
  convolution,
  deeply_supervised,
  dense,
  repeated,
  residual,
  squared_losses,
  ugcnn,
)


def normalisation(images: np.ndarray) -> Result:
  """D5: the Jacobian of batch normalisation, for pixels of digits."""
  x = jnp.asarray(images[:16].reshape(16, -1)[:, 28:36].mean(1))
  gamma, epsilon = 1.5, 1e-5
  closed = np.asarray(batch_norm_jacobian(x, gamma, epsilon))
  normalise = lambda x: gamma * (x - x.mean()) / jnp.sqrt(jnp.var(x) + epsilon)
  autodiff = np.asarray(jax.jacrev(normalise)(x))
  error = float(np.abs(closed - autodiff).max() / np.abs(autodiff).max())
  number = np.arange(1, 17)
  return [
    Row(
      "D5",
      "batch normalisation, closed form less autodiff, relative",
      PREDICTION,
      0.0,
      error,
      error < 1e-5,
    )
  ], Panel(
    "D5: batch normalisation of 16 examples",
    "example j",
    "dy_1 / dx_j",
    {
      "closed form": (number, closed[0], "k--"),
      "measured by autodiff": (number, autodiff[0], "o"),
    },
  )


def unit_variance(key: jax.Array) -> Result:
  """D7: y = sum W_i x_i with sigma_W = 1 / sqrt(d), over 200 000 draws."""
  size, draws = 100, 200_000
  keys = jax.random.split(key, 2)

  @jax.jit
  def draw(keys):
    def block(_, keys):
      x = jax.random.normal(keys[0], (draws // 100, size))
      weights = jax.random.normal(keys[1], x.shape) / size**0.5
      return None, jnp.sum(weights * x, -1)

    return jax.lax.scan(block, None, jnp.stack(keys, 1))[1].ravel()

  y = np.asarray(draw([jax.random.split(k, 100) for k in keys]), np.float64)
  unit = 1 / (1 + np.exp(-y))
  wanted = variance_maps.moments(jax.nn.sigmoid, 1.0)
  error = lambda values: float(values.std() / draws**0.5)

  def row(what, expected, samples):
    measured, stderr = float(samples.mean()), error(samples)
    return Row(
      "D7",
      f"{what} (± {stderr:.1g})",
      PREDICTION,
      float(expected),
      measured,
      abs(measured - float(expected)) < 4 * stderr + 1e-6,
    )

  variance = (unit - unit.mean()) ** 2
  centers = np.linspace(-4, 4, 41)
  density, edges = np.histogram(y, 60, (-4, 4), density=True)
  return [
    row("variance of y = sum W_i x_i, d = 100", 1.0, y**2),
    row("mean of a sigmoid of it", wanted.mean, unit),
    row(
      "its variance, by quadrature (of a normal y)", wanted.variance, variance
    ),
    Row(
      "D7",
      "its variance, at most",
      BOUND,
      0.25,
      float(unit.var()),
      bool(unit.var() <= min(0.25, y.var())),
    ),
  ], Panel(
    "D7: y = sum W_i x_i, d = 100",
    "y",
    "density",
    {
      "predicted, d large": (
        centers,
        np.exp(-(centers**2) / 2) / math.sqrt(2 * math.pi),
        "k--",
      ),
      "measured": ((edges[1:] + edges[:-1]) / 2, density, "o"),
    },
  )


def supervision(
  key: jax.Array, images: np.ndarray, labels: np.ndarray
) -> Result:
  """D8: losses on every layer of 30 sigmoid layers; what backward costs."""
  x = jnp.asarray(images[:64].reshape(64, -1))
  targets = jax.nn.one_hot(labels[:64], 10)
  layer, depth = dense(activation=jax.nn.sigmoid), 30

  def problem(depth):
    net = deeply_supervised(layer, depth, 10)
    params = net.init(key, x)
    every = lambda params: jnp.sum(
      squared_losses(net.apply(params, x), targets)
    )
    return (
      params,
      every,
      lambda params: squared_losses(net.apply(params, x), targets)[-1],
    )

  params, every, last = problem(depth)
  norm = lambda loss: np.asarray(
    jax.jit(
      lambda params: norms(sums(jax.grad(loss)(params).layers.weights, 1)).norm
    )(params)
  )
  tiny = np.finfo(np.float32).tiny
  with_heads, without = (
    np.log10(np.maximum(norm(f), tiny)) for f in (every, last)
  )
  rewritten = np.log10(gradients_by_depth(residual(layer), key, x, depth))
  flops = []
  for number in (10, 20, 40):
    params, every, _ = problem(number)
    counted = cost(every, params, context=False).backward
    assert counted is not None
    flops.append(counted.flops)
  ratio = (flops[2] - flops[1]) / (flops[1] - flops[0])
  layers = np.arange(1, depth + 1)
  return [
    Row(
      "D8",
      "gradient of layer 1 of 30 sigmoid layers, loss on the last",
      MEASUREMENT,
      None,
      float(without[0]),
      None,
      log=True,
    ),
    Row(
      "D8",
      "the same, a loss on every layer: larger",
      BOUND,
      float(without[0]),
      float(with_heads[0]),
      bool(with_heads[0] > without[0]),
      log=True,
    ),
    Row(
      "D8",
      "backward FLOPs from 20 to 40 layers over those from 10 to 20: O(L)",
      PREDICTION,
      2.0,
      float(ratio),
      abs(ratio - 2) < 1e-6,
    ),
  ], Panel(
    "D8: deep supervision, 30 sigmoid layers",
    "layer",
    "log10 of the gradient's norm",
    {
      "loss on the last layer": (layers, without, "-"),
      "loss on every layer": (layers, with_heads, "-"),
      "residual rewrite (dL/dx_l)": (layers, rewritten[1:], "-"),
    },
  )


def convolutional(
  key: jax.Array,
  images: np.ndarray,
  labels: np.ndarray,
  steps: int,
  depth: int = 16,
  channels: int = 8,
) -> Result:
  """D10: UGCNN, residual and plain CNN, trained alike on digits."""
  xs = jnp.asarray(images)[..., None]
  ys = jnp.asarray(labels)
  convolve = convolution(activation=jax.nn.relu)
  layers: dict[str, Layer] = {
    "UGCNN": ugcnn.ugcnn(),
    "residual": residual(
      convolution(
        activation=jax.nn.relu, weights=initializers.residual_filter(depth)
      )
    ),
    "plain": convolve,
  }
  curves: dict[str, Any] = {}
  rows: list[Row] = []
  for name, layer in layers.items():
    losses, norms = _train(layer, key, xs, ys, steps, depth, channels)
    curves[name] = np.arange(1, steps + 1), _smooth(losses), "-"
    rows.append(
      Row(
        "D10",
        f"{name}, {depth} layers: gradient at the first over the last layer",
        MEASUREMENT,
        None,
        float(np.log10(norms[0] / norms[-1])),
        None,
        log=True,
      )
    )
    rows.append(
      Row(
        "D10",
        f"{name}: loss after {steps} steps (nats; 2.30 by chance)",
        MEASUREMENT,
        None,
        float(_smooth(losses)[-1]),
        None,
      )
    )
  return rows, Panel(
    f"D10: {depth} convolutional layers on digits",
    "step",
    "training loss (nats)",
    curves,
  )


def _smooth(values: np.ndarray) -> np.ndarray:
  """Means over the last 20."""
  sums = np.cumsum(np.insert(values, 0, 0.0))
  number = np.arange(1, len(values) + 1)
  return (sums[number] - sums[np.maximum(number - 20, 0)]) / np.minimum(
    number, 20
  )


def _train(
  layer: Layer,
  key: jax.Array,
  images: jax.Array,
  labels: jax.Array,
  steps: int,
  depth: int,
  channels: int,
) -> tuple[np.ndarray, np.ndarray]:
  """Losses of Adam steps, and |dL/dx_l| before the first."""
  keys = jax.random.split(key, 4)
  first = convolution(channels, activation=lambda x: x)
  head = dense(10, activation=lambda x: x)
  shape = jnp.zeros((1, *images.shape[1:-1], channels))
  params = (
    first.init(keys[0], images[:1]),
    repeated(layer, depth).init(keys[1], shape),
    head.init(keys[2], shape.reshape(1, -1)),
  )
  flat = lambda x: x.reshape(len(x), -1)

  def scores(params, x):
    hidden = first.apply(params[0], x)
    hidden, _ = jax.lax.scan(
      lambda x, own: (layer.apply(own, x), None), hidden, params[1]
    )
    return head.apply(params[2], flat(hidden))

  def loss_of(scores, y):
    return optax.softmax_cross_entropy_with_integer_labels(scores, y).mean()

  adam = optax.adam(3e-3)

  @jax.jit
  def run(params, key):
    def step(carry, key):
      params, state = carry
      chosen = jax.random.randint(key, (32,), 0, len(labels))
      loss, bars = jax.value_and_grad(
        lambda p: loss_of(scores(p, images[chosen]), labels[chosen])
      )(params)
      updates, state = adam.update(bars, state)
      return (optax.apply_updates(params, updates), state), loss

    return jax.lax.scan(
      step, (params, adam.init(params)), jax.random.split(key, steps)
    )[1]

  flow = jax.jit(
    lambda params: gradient_flow(
      layer.apply,
      params[1],
      first.apply(params[0], images[:32]),
      loss=lambda x: loss_of(head.apply(params[2], flat(x)), labels[:32]),
    )
  )(params)
  with jax.numpy_dtype_promotion("standard"):
    losses = np.asarray(run(params, keys[3]), np.float64)
  if not np.isfinite(losses).all():
    raise FloatingPointError("a loss of D10 is not finite.")
  return losses, np.asarray(flow.gradients.norm)
