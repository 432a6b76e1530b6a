"""The maps of scripts/log_det.py: optimizer steps, networks and flows.

Each is a function of a random key and a size that returns a `Map`.  None of
them declares its determinant: `revmom.log_det` sees programs.
"""

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from revmom.cells import lstm, mdrnn
from revmom.models import (
  HALVES,
  Bijection,
  affine,
  chain,
  convnet,
  glow_step,
  mlp,
  swapped,
)


class Map(NamedTuple):
  """A function between pytrees of equal size, and where to look at it."""

  function: Callable
  arguments: tuple
  formula: str = ""  # of log|det J|
  closed_form: Any = None  # its value, [], where that is cheap


RATE, BETA, BETA2, DECAY = 0.05, 0.9, 0.99, 0.01


def gradient(key: jax.Array, size: int) -> Callable:
  """Of the logistic loss of D weights on eight examples: H mixes them all."""
  examples = jax.random.normal(key, (8, size))

  def loss(w):
    return jnp.sum(jax.nn.softplus(examples @ w / math.sqrt(size)))

  return jax.grad(loss)


def vectors(key: jax.Array, size: int, count: int) -> tuple[jax.Array, ...]:
  """Where optimizers are looked at: as many arrays [D] as they have."""
  return tuple(jax.random.normal(key, (count, size)))


def sgd(key: jax.Array, size: int) -> Map:
  """w <- w - alpha grad L(w)."""
  grad = gradient(key, size)
  step = lambda w: w - RATE * grad(w)
  return Map(step, vectors(key, size, 1), "log|det(I - alpha H)|")


def momentum(key: jax.Array, size: int) -> Map:
  """v <- beta v - alpha grad L(w), w <- w + v."""
  grad = gradient(key, size)

  def step(w, v):
    v = BETA * v - RATE * grad(w)
    return w + v, v

  value = size * math.log(BETA)
  return Map(step, vectors(key, size, 2), "D log beta", value)


def heavy_ball_decay(key: jax.Array, size: int) -> Map:
  """v <- beta v - alpha grad L(w), w <- (1 - lambda) w + v."""
  grad = gradient(key, size)

  def step(w, v):
    v = BETA * v - RATE * grad(w)
    return (1 - DECAY) * w + v, v

  value = size * (math.log(BETA) + math.log(1 - DECAY))
  formula = "D (log beta + log(1 - lambda))"
  return Map(step, vectors(key, size, 2), formula, value)


def nesterov(key: jax.Array, size: int) -> Map:
  """v <- beta v - alpha grad L(w + beta v), w <- w + v."""
  grad = gradient(key, size)

  def step(w, v):
    v = BETA * v - RATE * grad(w + BETA * v)
    return w + v, v

  formula = "D log beta + log|det(I - alpha H)|"
  return Map(step, vectors(key, size, 2), formula)


def adam(key: jax.Array, size: int) -> Map:
  """The third step of Adam, of (w, m, v)."""
  value = size * (math.log(BETA) + math.log(BETA2))
  formula = "D (log beta1 + log beta2)"
  return Map(_adam(key, size, 0.0), _moments(key, size), formula, value)


def adamw(key: jax.Array, size: int) -> Map:
  """The third step of AdamW, with decay lambda of w."""
  value = size * (math.log(BETA) + math.log(BETA2) + math.log(1 - DECAY))
  formula = "D (log beta1 + log beta2 + log(1 - lambda))"
  return Map(_adam(key, size, DECAY), _moments(key, size), formula, value)


def _adam(key: jax.Array, size: int, decay: float) -> Callable:
  grad, t = gradient(key, size), 3

  def step(w, m, v):
    g = grad(w)
    m = BETA * m + (1 - BETA) * g
    v = BETA2 * v + (1 - BETA2) * g**2
    mean, square = m / (1 - BETA**t), v / (1 - BETA2**t)
    update = mean / (jnp.sqrt(square) + 1e-8)
    return (1 - decay) * w - RATE * update, m, v

  return step


def _moments(key: jax.Array, size: int) -> tuple[jax.Array, ...]:
  w, m, v = vectors(key, size, 3)
  return w, m, v**2 + 0.01


def revnet(key: jax.Array, size: int) -> Map:
  """a <- a + F(b), b <- b + G(a), with networks of 8 units."""
  inner, outer = jax.random.normal(key, (2, 8, size)) / math.sqrt(size)

  def block(a, b):
    a = a + jnp.tanh(inner @ b) @ outer
    return a, b + jnp.tanh(outer @ a) @ inner

  return Map(block, vectors(key, size, 2), "0", 0.0)


def leapfrog(key: jax.Array, size: int) -> Map:
  """Hamiltonian Monte Carlo's step of (q, p)."""
  grad = gradient(key, size)

  def step(q, p):
    p = p - RATE / 2 * grad(q)
    q = q + RATE * p
    return q, p - RATE / 2 * grad(q)

  return Map(step, vectors(key, size, 2), "0", 0.0)


def coupling(key: jax.Array, size: int) -> Map:
  """Four affine couplings of RealNVP, of networks of 16 units."""
  network = mlp(hidden=(16,))
  pair = affine(network), affine(network, swapped(HALVES))
  x = jax.random.normal(key, (size,))
  return _of_bijection(chain(*pair, *pair), key, x, "sum of s(x_a)")


def glow(key: jax.Array, size: int) -> Map:
  """A step of Glow on an image of four channels and about D numbers."""
  side = max(1, round(math.sqrt(size / 4)))
  x = jax.random.normal(key, (side, side, 4))
  layer = glow_step(convnet(8))
  formula = "sum of log|scale|, of H W log|det W|, and of s(x_a)"
  return _of_bijection(layer, key, x, formula)


def _of_bijection(
  layer: Bijection, key: jax.Array, x: jax.Array, formula: str
) -> Map:
  """A layer with random weights; its own log-determinant is the closed form."""
  params = layer.init(key, x[None])
  structure: Any
  leaves, structure = jax.tree.flatten(params)
  keys = jax.random.split(key, len(leaves))
  params = structure.unflatten(
    leaf + 0.1 * jax.random.normal(key, leaf.shape)
    if jnp.issubdtype(leaf.dtype, jnp.floating)
    else leaf
    for key, leaf in zip(keys, leaves, strict=True)
  )
  function = lambda x: layer.forward_and_log_det(params, x)[0]
  value = layer.forward_and_log_det(params, x)[1]
  return Map(function, (x,), formula, value)


def masked_autoregressive(key: jax.Array, size: int) -> Map:
  """y_i = x_i exp(s(x_<i)) + t(x_<i), masked networks of D units."""
  shift, scale = jnp.tril(jax.random.normal(key, (2, size, size)), -1)

  def layer(x):
    s = jnp.tanh(jnp.tril(scale, -1) @ x / math.sqrt(size))
    return x * jnp.exp(s) + jnp.tanh(jnp.tril(shift, -1) @ x)

  (x,) = vectors(key, size, 1)
  value = jnp.sum(jnp.tanh(scale @ x / math.sqrt(size)))
  return Map(layer, (x,), "sum of s(x_<i)", value)


def lstm_cell(key: jax.Array, size: int) -> Map:
  """c_{t-1} -> c_t of an LSTM of D cells, given x_t and h_{t-1}."""
  params = lstm.init(key, 8, size, dtype=jnp.float64)
  x, hidden = jnp.ones((1, 8)), jnp.zeros((1, size))

  def step(cell):
    carry = lstm.LSTMCarry(hidden, cell)
    return lstm.step(params, carry, x)[0].cell

  assert params.bias is not None
  gates = x @ params.input_weights + params.bias  # h_{t-1} is zero
  forget = jax.nn.sigmoid(jnp.split(gates, 4, -1)[1])
  cell = jax.random.normal(key, (1, size))
  return Map(step, (cell,), "sum of log f", jnp.sum(jnp.log(forget)))


def mdrnn_inputs(key: jax.Array, size: int) -> Map:
  """The inputs of a two-dimensional RNN of 4 units to its hidden states."""
  side = max(1, round(math.sqrt(size / 4)))
  params = mdrnn.init(key, 4, 4, dtype=jnp.float64)
  xs = jax.random.normal(key, (side, side, 1, 4))
  layer = lambda xs: mdrnn.forward(params, xs)[0]
  slopes = jnp.sum(jnp.log(1 - layer(xs) ** 2))
  value = slopes + side**2 * jnp.linalg.slogdet(params.input_weights)[1]
  formula = "sum of log(1 - h^2) + H W log|det W|"
  return Map(layer, (xs,), formula, value)


MAPS: dict[str, Callable[[jax.Array, int], Map]] = {
  "sgd": sgd,
  "momentum": momentum,
  "heavy_ball_decay": heavy_ball_decay,
  "nesterov": nesterov,
  "adam": adam,
  "adamw": adamw,
  "revnet": revnet,
  "leapfrog": leapfrog,
  "coupling": coupling,
  "glow_step": glow,
  "masked_autoregressive": masked_autoregressive,
  "lstm_cell": lstm_cell,
  "mdrnn_inputs": mdrnn_inputs,
}
