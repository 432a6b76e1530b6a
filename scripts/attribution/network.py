"""A small causal Transformer language model, as functions of a dict of arrays.

Pre-norm blocks, learned positions, and the embedding of the tokens also reads
the logits out (Vaswani et al. 2017, with the norms where Xiong et al. 2020 put
them).  No dropout; all is computed in the type of the parameters.  The blocks
are scanned over, so that a deep model compiles as fast as a shallow one.
"""

import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp


class Sizes(NamedTuple):
  """The shape of a model."""

  vocabulary: int
  context: int  # tokens that it reads, at most
  width: int
  layers: int
  heads: int

  def check(self) -> None:
    """Raises ValueError for sizes that no model has."""
    if min(self) < 1:
      raise ValueError(f"{self}: all sizes must be at least 1.")
    if self.width % self.heads:
      raise ValueError(
        f"a width of {self.width} can't be shared by {self.heads} heads; "
        "choose a multiple of their number."
      )


def init(key: jax.Array, sizes: Sizes) -> dict[str, Any]:
  """Draws parameters, float32: variances 1/fan-in, small outputs of blocks.

  Raises:
    ValueError: the width is not a multiple of the heads.
  """
  sizes.check()
  width, hidden = sizes.width, 4 * sizes.width
  embedding_key, position_key, block_key = jax.random.split(key, 3)
  # So that the sum of all blocks' outputs has about the scale of one.
  small = 1 / math.sqrt(2 * sizes.layers)

  def normal(key, shape, scale):
    return scale * jax.random.normal(key, shape, jnp.float32)

  def block(key):
    keys = jax.random.split(key, 4)
    over = lambda fan_in: 1 / math.sqrt(fan_in)
    return {
      "attention_norm": _norm_init(width),
      "query_key_value": normal(
        keys[0],
        (width, 3, sizes.heads, width // sizes.heads),
        over(width),
      ),
      "attention_out": normal(
        keys[1],
        (sizes.heads, width // sizes.heads, width),
        small * over(width),
      ),
      "mlp_norm": _norm_init(width),
      "mlp_in": normal(keys[2], (width, hidden), over(width)),
      "mlp_bias": jnp.zeros(hidden, jnp.float32),
      "mlp_out": normal(keys[3], (hidden, width), small * over(hidden)),
    }

  scale = 1 / math.sqrt(width)
  return {
    "embedding": normal(embedding_key, (sizes.vocabulary, width), scale),
    "positions": normal(position_key, (sizes.context, width), scale),
    # With a leading axis of layers.
    "blocks": jax.vmap(block)(jax.random.split(block_key, sizes.layers)),
    "norm": _norm_init(width),
  }


def logits(params: dict[str, Any], tokens: jax.Array) -> jax.Array:
  """Scores of the token after each: int [B, L] -> [B, L, vocabulary]."""
  return read_out(params, hidden(params, embed(params, tokens)))


def embed(params: dict[str, Any], tokens: jax.Array) -> jax.Array:
  """Tokens [B, L] at their positions -> [B, L, width]."""
  return params["embedding"][tokens] + params["positions"][: tokens.shape[1]]


def hidden(params: dict[str, Any], x: jax.Array) -> jax.Array:
  """All blocks: [B, L, width] -> [B, L, width]."""

  def apply(x, block):
    x = x + _attention(block, _norm(block["attention_norm"], x))
    return x + _mlp(block, _norm(block["mlp_norm"], x)), None

  return _norm(params["norm"], jax.lax.scan(apply, x, params["blocks"])[0])


def read_out(params: dict[str, Any], x: jax.Array) -> jax.Array:
  """Products with the embeddings: [B, L, width] -> [B, L, vocabulary]."""
  return x @ params["embedding"].T


def losses(params: dict[str, Any], windows: jax.Array) -> jax.Array:
  """Mean cross-entropy of each window, in nats a token: [B, L + 1] -> [B]."""
  scores = logits(params, windows[:, :-1])
  targets = windows[:, 1:, None]
  chosen = jnp.take_along_axis(scores, targets, axis=-1)[..., 0]
  return (jax.nn.logsumexp(scores, axis=-1) - chosen).mean(-1)


def _attention(block: dict[str, Any], x: jax.Array) -> jax.Array:
  # Not jax.nn.dot_product_attention, whose softmax is float32 for any input.
  query, key, value = jnp.einsum("bld,dchk->cblhk", x, block["query_key_value"])
  scores = jnp.einsum("bqhk,bphk->bhqp", query, key)
  scores = scores / math.sqrt(query.shape[-1])
  seen = jnp.tri(x.shape[1], dtype=bool)  # position p <= q
  weights = jax.nn.softmax(jnp.where(seen, scores, -jnp.inf), axis=-1)
  mixed = jnp.einsum("bhqp,bphk->bqhk", weights, value)
  return jnp.einsum("bqhk,hkd->bqd", mixed, block["attention_out"])


def _mlp(block: dict[str, Any], x: jax.Array) -> jax.Array:
  x = jax.nn.gelu(x @ block["mlp_in"] + block["mlp_bias"])
  return x @ block["mlp_out"]


def _norm_init(width: int) -> dict[str, jax.Array]:
  return {
    "scale": jnp.ones(width, jnp.float32),
    "shift": jnp.zeros(width, jnp.float32),
  }


def _norm(norm: dict[str, jax.Array], x: jax.Array) -> jax.Array:
  centred = x - x.mean(-1, keepdims=True)
  variance = (centred**2).mean(-1, keepdims=True)
  return (
    centred * jax.lax.rsqrt(variance + 1e-5) * norm["scale"] + norm["shift"]
  )
