"""The measurements of scripts/trainability.py, one function a system.

Each returns rows, predictions or bounds beside measurements, and the curves of
its panel.
"""

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from revmom.analysis.batch_norm import batch_norm_jacobian
from revmom.analysis.bounds import (
  chain_bound,
  recurrence_bound,
  residual_bounds,
  residual_counterexample,
)
from revmom.analysis.cost import cost
from revmom.analysis.gradient_flow import gradient_flow
from revmom.analysis.initializers import residual_filter
from revmom.analysis.layer_spectrum import layer_spectra
from revmom.analysis.norms import norms, sums
from revmom.analysis.recurrent_flow import recurrent_flow
from revmom.analysis.residual_variance import (
  residual_backward_variance,
  residual_forward_variance,
  residual_sigma,
)
from revmom.analysis.variance_maps import moments
from revmom.cells import elman, lstm
from revmom.models.deep_supervision import deeply_supervised, squared_losses
from revmom.models.layer import Layer, batch_norm, convolution, dense, repeated
from revmom.models.residual import post_norm, pre_norm, residual
from revmom.models.ugcnn import ugcnn

BOUND, PREDICTION, MEASUREMENT = "bound", "prediction", "measurement"
_LOG10 = math.log(10)


class Row(NamedTuple):
  """One line of the table; numbers that may be tiny are log10."""

  system: str
  what: str
  kind: str  # of `expected`
  expected: float | None
  measured: float
  holds: bool | None
  log: bool = False  # whether both are log10


class Panel(NamedTuple):
  """Curves of one figure: name -> (x, y, style)."""

  title: str
  x: str
  y: str
  curves: dict[str, tuple[np.ndarray, np.ndarray, str]]


Result = tuple[list[Row], Panel]


def chain_of_units(nonlinearity: str, starts: tuple[float, ...]) -> Result:
  """D1 and D2: 200 units with weights of one."""
  system = {"sigmoid": "D1", "tanh": "D2"}[nonlinearity]
  phi = {"sigmoid": jax.nn.sigmoid, "tanh": jnp.tanh}[nonlinearity]
  weights = jnp.ones((200, 1, 1))
  depths = np.arange(1, 201)

  @jax.jit
  def slopes(x):
    spectra = layer_spectra(lambda w, x: phi(w @ x), weights, x[None])
    return spectra.products.log_largest.value / _LOG10

  bound = np.asarray(chain_bound(weights, nonlinearity)) / _LOG10
  measured = {x: np.asarray(slopes(jnp.float32(x))) for x in starts}
  curves = {
    f"measured, x = {x:g}": (depths, values, "-")
    for x, values in measured.items()
  }
  worst = max(measured.values(), key=lambda values: values[-1])
  holds = all((v <= bound + 1e-3).all() for v in measured.values())
  what = f"|df/dx| of 200 {nonlinearity} units, the largest of {len(starts)} x"
  ends = float(bound[-1]), float(worst[-1])
  return [Row(system, what, BOUND, *ends, holds, log=True)], Panel(
    f"{system}: a chain of {nonlinearity} units",
    "units n",
    "log10 |df/dx|",
    {"bound" + (", 4^-n" if system == "D1" else ", 1"): (depths, bound, "k--")}
    | curves,
  )


def recurrence(key: jax.Array, gain: float) -> Result:
  """D3: x_{t+1} = tanh(W x_t), 50 steps of 64 units, s_max(W) = gain."""
  keys = jax.random.split(key, 2)
  weights = jax.random.normal(keys[0], (64, 64))
  weights = gain * weights / jnp.linalg.norm(weights, 2)
  spectra = jax.jit(
    lambda w, x: layer_spectra(
      lambda w, x: jnp.tanh(w @ x), jnp.broadcast_to(w, (49, 64, 64)), x
    )
  )(weights, 0.1 * jax.random.normal(keys[1], (64,)))
  steps = np.arange(2, 51)
  bound = np.asarray(recurrence_bound(weights, 50))[1:] / _LOG10
  composed = np.asarray(spectra.log_largest_bound) / _LOG10
  largest = np.asarray(spectra.products.log_largest.value) / _LOG10
  mean = np.asarray(spectra.products.log_mean_square.value) / (2 * _LOG10)
  holds = bool((largest <= composed + 1e-3).all())
  holds = holds and bool((composed <= bound + 1e-3).all())
  what = f"s_max(dx_50/dx_1) of tanh(W x), s_max(W) = {gain:g}"
  return [
    Row(
      "D3", what, BOUND, float(bound[-1]), float(largest[-1]), holds, log=True
    ),
    Row(
      "D3",
      "the same, composed of each step's own Jacobian",
      BOUND,
      float(composed[-1]),
      float(largest[-1]),
      holds,
      log=True,
    ),
  ], Panel(
    "D3: a recurrence",
    "step n",
    "log10 of singular values of dx_n/dx_1",
    {
      "bound s^(n-1)": (steps, bound, "k--"),
      "bound, composed of steps": (steps, composed, "k:"),
      "measured, largest": (steps, largest, "-"),
      "measured, root mean square": (steps, mean, "-"),
    },
  )


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


def gradients_by_depth(
  layer: Layer, key: jax.Array, x: jax.Array, depth: int
) -> np.ndarray:
  """|dL/dx_l| over that of the result, for l = 0 to depth."""
  params = repeated(layer, depth).init(key, x)
  flow = jax.jit(lambda p, x: gradient_flow(layer.apply, p, x))(params, x)
  if flow.problems:
    raise FloatingPointError("; ".join(flow.problems))
  norms = np.asarray(flow.gradients.norm)
  return norms / norms[-1]


def placements(key: jax.Array, images: np.ndarray) -> Result:
  """D6: normalisation inside of the branch, or after the addition."""
  x = jnp.asarray(images[:64].reshape(64, -1))
  depth, depths = 50, np.arange(51)
  curves: dict[str, Any] = {}
  rows: list[Row] = []
  for name, place in (
    ("inside of the branch", pre_norm),
    ("after the addition", post_norm),
  ):
    layer = place(dense(activation=jax.nn.relu), batch_norm())
    grown = np.log10(gradients_by_depth(layer, key, x, depth))
    curves[f"measured, {name}"] = depths, grown, "-"
    rows.append(
      Row(
        "D6",
        f"gradient through {depth} residual blocks, normalised {name}",
        MEASUREMENT,
        None,
        float(grown[0]),
        None,
        log=True,
      )
    )
  curves["identity path, after the addition"] = (
    depths,
    (depths - depth) / 2 * math.log10(2),
    "k:",
  )
  return rows, Panel(
    "D6: two residual blocks",
    "layer l",
    "log10 of |dL/dx_l| over that of the result",
    curves,
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
  wanted = moments(jax.nn.sigmoid, 1.0)
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


def residual_variances(key: jax.Array, images: np.ndarray) -> Result:
  """D9: 100 residual layers of linear filters, forward and backward."""
  depth, size = 100, 256
  x = jax.random.normal(jax.random.fold_in(key, 1), (64, size))
  layer = residual(
    dense(activation=lambda x: x, weights=residual_filter(depth))
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
    "UGCNN": ugcnn(),
    "residual": residual(
      convolution(activation=jax.nn.relu, weights=residual_filter(depth))
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


def memory_cells(key: jax.Array, steps: int = 1000) -> Result:
  """B2: adjoints of an LSTM whose gates hold, and of a plain network."""
  keys = jax.random.split(key, 3)
  size = 32
  xs = jax.random.normal(keys[0], (steps, 4, 8))
  holding = lstm.init(keys[1], 8, size)._replace(
    bias=jnp.repeat(jnp.array([-12.0, 12.0, -12.0, 0.0]), size)
  )
  plain = elman.init(keys[2], 8, size)

  def last_memory(cell, params, xs):
    """From a random adjoint of the last state."""
    _, carry, residuals = cell.forward(params, xs)
    bars = jax.tree.map(lambda c: jnp.ones_like(c) / c.size**0.5, carry)
    zeros = jnp.zeros((steps, 4, size))
    found = cell.backward(params, residuals, zeros, bars, adjoints=True)
    return jax.tree.map(
      lambda a: jnp.linalg.norm(a, axis=(1, 2)), found.adjoints
    )

  gated = jax.jit(lambda p, x: last_memory(lstm, p, x))(holding, xs)
  usual = jax.jit(lambda p, x: recurrent_flow(elman, p, x))(plain, xs)
  at = np.arange(1, steps + 1)
  # What is too small for float32 is left out of the figure.
  log = lambda values: np.log10(np.where(values > 0, values, np.nan))
  hidden = np.asarray(usual.adjoint("hidden").norm)
  kept = float(gated.cell[0] / gated.cell[-1])
  return [
    Row(
      "B2",
      f"|c_bar| of the first over the last of {steps} steps, f = 1, i = o = 0",
      PREDICTION,
      1.0,
      kept,
      abs(kept - 1) < 0.02,
    ),
    Row(
      "B2",
      "its largest |h_bar| before the last step, at most",
      BOUND,
      1.0,
      float(gated.hidden[:-1].max()),
      bool(gated.hidden[:-1].max() < 1),
    ),
    Row(
      "B2",
      "|h_bar| of a plain network, 100 steps before the last over the last",
      MEASUREMENT,
      None,
      float(log(hidden[-101] / hidden[-1])),
      None,
      log=True,
    ),
  ], Panel(
    f"B2: adjoints over {steps} steps",
    "step",
    "log10 of the adjoint's norm",
    {
      "LSTM that holds, c_bar": (at, log(np.asarray(gated.cell)), "-"),
      "LSTM that holds, h_bar": (at, log(np.asarray(gated.hidden)), "-"),
      "plain network, h_bar": (at, log(hidden), "-"),
    },
  )


def measurements(
  key: jax.Array, images: np.ndarray, labels: np.ndarray, steps: int
) -> dict[str, Callable[[], Result]]:
  """System -> what measures it."""
  keys = jax.random.split(key, 8)
  starts = -3.0, 0.0, 1.0, 3.0
  return {
    "D1": lambda: chain_of_units("sigmoid", starts),
    "D2": lambda: chain_of_units("tanh", starts),
    "D3": lambda: recurrence(keys[0], 1.3),
    "D4": lambda: residual_map(keys[1]),
    "D5": lambda: normalisation(images),
    "D6": lambda: placements(keys[2], images),
    "D7": lambda: unit_variance(keys[3]),
    "D8": lambda: supervision(keys[4], images, labels),
    "D9": lambda: residual_variances(keys[5], images),
    "D10": lambda: convolutional(keys[6], images, labels, steps),
    "B2": lambda: memory_cells(keys[7]),
  }
