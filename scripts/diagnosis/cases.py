"""Small models whose gradients take different kernels."""

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax


class Case(NamedTuple):
  """A model of the self-test."""

  params: dict[str, jax.Array]
  loss_fn: Callable  # (params, batch) -> scalar
  batch: Any  # of one step


def mlp(key: jax.Array) -> Case:
  """Dense layers."""
  weights = _weights(key, hidden=(32, 32), out=(32, 10))

  def loss_fn(params, batch):
    x, labels = batch
    return _loss(jnp.tanh(x @ params["hidden"]) @ params["out"], labels)

  return Case(weights, loss_fn, _batch(key, 64, 32))


def odd(key: jax.Array) -> Case:
  """Few smooth units of odd sizes, normalised over the batch."""
  weights = _weights(key, hidden=(5, 3), out=(3, 10))

  def loss_fn(params, batch):
    x, labels = batch
    x = x @ params["hidden"]
    x = jax.nn.standardize(x, axis=0, epsilon=jnp.asarray(1e-5, x.dtype))
    return _loss(jax.nn.gelu(x) @ params["out"], labels)

  return Case(weights, loss_fn, _batch(key, 14, 5))


def conv(key: jax.Array) -> Case:
  """A strided convolution."""
  weights = _weights(key, filters=(3, 3, 1, 8), out=(8, 10))

  def loss_fn(params, batch):
    x, labels = batch
    x = _conv(x[..., None], params["filters"], 2)
    return _loss(jax.nn.relu(x).mean((1, 2)) @ params["out"], labels)

  return Case(weights, loss_fn, _batch(key, 16, 8, 8))


def max_pool(key: jax.Array) -> Case:
  """A maximum over windows; its gradient is a select-and-scatter."""
  weights = _weights(key, filters=(3, 3, 1, 8), out=(8, 10))

  def loss_fn(params, batch):
    x, labels = batch
    x = _conv(x[..., None], params["filters"], 1)
    window = (1, 3, 3, 1)
    x = lax.reduce_window(x, -jnp.inf, lax.max, window, (1, 2, 2, 1), "VALID")
    return _loss(x.mean((1, 2)) @ params["out"], labels)

  return Case(weights, loss_fn, _batch(key, 16, 8, 8))


def lstm(key: jax.Array) -> Case:
  """A scan in the loss."""
  weights = _weights(key, gates=(8 + 16, 4 * 16), out=(16, 10))

  def loss_fn(params, batch):
    x, labels = batch
    zero = jnp.zeros((x.shape[0], 16), x.dtype)

    def step(carry, x):
      h, c = carry
      gates = jnp.concatenate([x, h], -1) @ params["gates"]
      i, f, g, o = jnp.split(gates, 4, -1)
      c = jax.nn.sigmoid(f) * c + jax.nn.sigmoid(i) * jnp.tanh(g)
      return (jax.nn.sigmoid(o) * jnp.tanh(c), c), None

    (h, _), _ = lax.scan(step, (zero, zero), x.swapaxes(0, 1))
    return _loss(h @ params["out"], labels)

  return Case(weights, loss_fn, _batch(key, 16, 8, 8))


def embedding(key: jax.Array) -> Case:
  """Rows of a table; its gradient is a scatter with repeated indices."""
  weights = _weights(key, table=(16, 24), out=(24, 10))
  tokens_key, labels_key = jax.random.split(key)
  tokens = jax.random.randint(tokens_key, (64, 12), 0, 16)
  labels = jax.random.randint(labels_key, (64,), 0, 10)

  def loss_fn(params, batch):
    tokens, labels = batch
    return _loss(params["table"][tokens].mean(1) @ params["out"], labels)

  return Case(weights, loss_fn, (tokens, labels))


CASES = (mlp, odd, conv, lstm, max_pool, embedding)


def _weights(key: jax.Array, **shapes: tuple[int, ...]) -> dict:
  keys = jax.random.split(key, len(shapes))
  return {
    name: jax.random.normal(own, shape) / math.sqrt(math.prod(shape[:-1]))
    for own, (name, shape) in zip(keys, shapes.items(), strict=True)
  }


def _batch(key: jax.Array, *shape: int) -> tuple[jax.Array, jax.Array]:
  labels = jax.random.randint(key, shape[:1], 0, 10)
  return jax.random.normal(key, shape), labels


def _conv(x: jax.Array, filters: jax.Array, stride: int) -> jax.Array:
  layout = ("NHWC", "HWIO", "NHWC")
  return lax.conv_general_dilated(
    x, filters, (stride, stride), "SAME", dimension_numbers=layout
  )


def _loss(logits: jax.Array, labels: jax.Array) -> jax.Array:
  scores = jax.nn.log_softmax(logits.astype(jnp.float32))
  return -jnp.take_along_axis(scores, labels[:, None], 1).mean()
