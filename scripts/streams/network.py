"""A small Transformer on patches of images, in three kinds of layers."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from revmom import depth

KINDS = ("plain", "revnet", "bdia")
PATCH = 2  # pixels of a side
HEADS = 2

Layer = dict[str, jax.Array]


def init(
  seed: int, number: int, shape: tuple[int, int], classes: int, width: int
) -> dict[str, Any]:
  """Random weights; what a layer adds begins at zero.

  Args:
    seed: of the weights.
    number: of layers.
    shape: of an image.
    classes: that there are.
    width: of a token.
  """
  rng = np.random.default_rng(seed)
  normal = lambda *shape: jnp.asarray(
    rng.normal(size=shape) / shape[-2] ** 0.5, jnp.float32
  )
  tokens = (shape[0] // PATCH) * (shape[1] // PATCH)
  layers = {
    "scale": jnp.ones((number, 2, width)),
    "in": normal(number, width, 3 * width),
    "out": jnp.zeros((number, width, width)),
    "wide": normal(number, width, 2 * width),
    "narrow": jnp.zeros((number, 2 * width, width)),
  }
  return {
    "embedding": normal(PATCH**2, width),
    "place": normal(tokens, width),
    "layers": layers,
    "last": normal(width, classes),
  }


def normalised(x: jax.Array, scale: jax.Array) -> jax.Array:
  """By the root of the mean square of each token."""
  return x * lax.rsqrt(jnp.mean(x**2, -1, keepdims=True) + 1e-6) * scale


def attention(layer: Layer, x: jax.Array) -> jax.Array:
  """[B, T, width] -> what attention adds."""
  batch, tokens, width = x.shape
  parts = normalised(x, layer["scale"][0]) @ layer["in"]
  heads = parts.reshape(batch, tokens, 3, HEADS, width // HEADS)
  q, k, v = jnp.moveaxis(heads, 2, 0)
  scores = jnp.einsum("bthd,bshd->bhts", q, k) / (width // HEADS) ** 0.5
  mixed = jnp.einsum("bhts,bshd->bthd", jax.nn.softmax(scores), v)
  return mixed.reshape(x.shape) @ layer["out"]


def perceptron(layer: Layer, x: jax.Array) -> jax.Array:
  """[B, T, width] -> what the perceptron adds."""
  hidden = jax.nn.gelu(normalised(x, layer["scale"][1]) @ layer["wide"])
  return hidden @ layer["narrow"]


def through(
  kind: str, layers: Layer, x: jax.Array, key: jax.Array | None
) -> jax.Array:
  """All layers, each of which adds its share of the square root of the depth.

  Args:
    kind: of `KINDS`.
    layers: with a leading axis over layers.
    x: [B, T, width].
    key: of BDIA's factors; without one they are zero, their mean.
  """
  share = len(layers["scale"]) ** -0.5
  attend = lambda layer, x: share * attention(layer, x)
  think = lambda layer, x: share * perceptron(layer, x)

  def block(layer, x):  # both, one after the other
    added = attend(layer, x)
    return added + think(layer, x + added)

  if kind == "revnet":
    updates = depth.revnet(attend, think)
    streams = depth.reversible_scan(updates, (x, x), layers)
    return (streams[0] + streams[1]) / 2
  if kind == "bdia" and key is not None:
    shape = len(layers["scale"]), len(x), 1, 1
    gammas = jax.random.rademacher(key, shape, x.dtype) / 2
    updates = depth.bdia(block, lambda layer: layer["signs"])
    signed: Any = {**layers, "signs": depth.bdia_signs(gammas)}
    return depth.reversible_scan(updates, (0 * x, x), signed)[1]
  step = lambda x, layer: (x + block(layer, x), None)
  return lax.scan(step, x, layers)[0]


def logits(
  kind: str,
  params: dict[str, Any],
  images: jax.Array,
  key: jax.Array | None = None,
) -> jax.Array:
  """[B, H, W] -> [B, classes]."""
  batch, height, width = images.shape
  rows, columns = height // PATCH, width // PATCH
  cut = images[:, : rows * PATCH, : columns * PATCH]
  patches = cut.reshape(batch, rows, PATCH, columns, PATCH)
  patches = patches.transpose(0, 1, 3, 2, 4).reshape(batch, rows * columns, -1)
  x = patches @ params["embedding"] + params["place"]
  x = through(kind, params["layers"], x, key)
  return normalised(x.mean(1), jnp.ones(())) @ params["last"]
