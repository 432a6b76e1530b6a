r"""A small causal Transformer, the yardstick of the other networks.

Vaswani et al. (2017), with norms before each part (Xiong et al. 2020), learned
positions, and embeddings e that also score the next token:

.. math::
  x_1 &= s + p_1, \qquad x_t = e_{w_{t-1}} + p_t, \\
  x &\leftarrow x + \text{attention}(\text{norm}(x)), \qquad
  x \leftarrow x + \text{mlp}(\text{norm}(x)), \\
  P(w_t) &= \text{softmax}_w(e_w^\top \text{norm}(x_t))

with :math:`\text{softmax}(q_t^\top k_u / \sqrt{K})` over all u up to t.
"""

import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from revmom.models.affine_layer import Affine
from revmom.models.autoregressive.causal_convolution import (
  init_affine,
  pointwise,
)
from revmom.models.autoregressive.causal_network import (
  CausalNetwork,
  add_class,
  class_embedding,
  class_table,
)
from revmom.models.autoregressive.language_model import as_tokens
from revmom.models.sizes import at_least
from revmom.numerics import accumulator, normalise, product


class Norm(NamedTuple):
  """Of layer normalisation, [D] both."""

  gain: jax.Array
  shift: jax.Array


class Block(NamedTuple):
  """One block of width D."""

  attention_norm: Norm
  query_key_value: Affine  # [D, 3 D], for each of them the heads in turn
  attention_out: Affine  # [D, D]
  mlp_norm: Norm
  mlp_in: Affine  # [D, 4 D]
  mlp_out: Affine  # [4 D, D]


class Params(NamedTuple):
  """Weights of a Transformer."""

  embeddings: jax.Array  # e [V, D]
  start: jax.Array  # s [D], in place of a token before the first
  positions: jax.Array  # p [T, D]
  classes: jax.Array | None  # [classes, D]
  blocks: Block  # with a leading axis of layers
  norm: Norm


class Cache(NamedTuple):
  """Keys and values of earlier positions, [layers, T, B, D] both."""

  keys: jax.Array
  values: jax.Array
  classes: jax.Array | None  # [B, D]


def causal_transformer(
  width: int = 64,
  num_layers: int = 2,
  num_heads: int = 4,
  num_classes: int = 0,
) -> CausalNetwork:
  """A Transformer for sequences of `tokens` [T].

  Images and clips go in as what they are flattened to.  Generation keeps the
  keys and the values of all positions: a step still reads all of them, but
  computes its own alone.

  Args:
    width: D, of what goes from block to block.
    num_layers: blocks.
    num_heads: of attention; D is a multiple of it.
    num_classes: 0 for a network without classes; else the class is a further
      embedding, which is added at every position.

  Returns:
    A `CausalNetwork` of events [T].  Its `init` takes T from the data: other
    events may be shorter, not longer.

  Raises:
    ValueError: a size is too small, or the heads can't share the width.

  >>> from revmom.models import Autoregressive
  >>> from revmom.models import tokens
  >>> model = Autoregressive(causal_transformer(8, 1, 2), tokens(5))
  >>> x = jnp.zeros((2, 7), jnp.int32)
  >>> params = jax.jit(model.init)(jax.random.key(0), x)
  >>> jax.jit(model.log_prob)(params, x).shape
  (2,)
  """
  at_least(1, width=width, num_layers=num_layers, num_heads=num_heads)
  at_least(0, num_classes=num_classes)
  if width % num_heads:
    raise ValueError(
      f"got width={width} and num_heads={num_heads}, expected a multiple: each "
      "head has its share of the width."
    )

  def init(key, inputs, num_outputs):
    dtype = inputs.dtype
    keys = jax.random.split(key, 3 + num_layers)
    blocks = [_init_block(key, width, num_layers, dtype) for key in keys[3:]]

    def normal(key: jax.Array, *shape: int) -> jax.Array:
      return jax.random.normal(key, shape, dtype) / math.sqrt(width)

    return Params(
      normal(keys[0], num_outputs, width),
      normal(keys[1], width),
      normal(keys[2], inputs.shape[1], width),
      class_table(num_classes, width, dtype),
      jax.tree.map(lambda *leaves: jnp.stack(leaves), *blocks),
      _init_norm(width, dtype),
    )

  def forward(params, inputs, label):
    batch, length = inputs.shape
    _check_length(params, length)
    embedded = params.embeddings[as_tokens(inputs[:, :-1])]
    first = jnp.broadcast_to(params.start, (batch, 1, width))
    x = _at_positions(
      jnp.concatenate([first, embedded], 1), params.positions[:length]
    )
    x = add_class(x, class_embedding(params.classes, label))
    seen = jnp.tri(length, dtype=bool)  # u <= t

    def block(x: jax.Array, weights: Block) -> tuple[jax.Array, None]:
      query, key, value = _query_key_value(weights, x)
      mixed = _attend(num_heads, query, key, value, seen)
      return _rest(weights, x, mixed), None

    x, _ = lax.scan(block, x, params.blocks)
    return _scores(params, x)

  def start(params, shape, label):
    batch, length = shape
    _check_length(params, length)
    dtype = accumulator(params.embeddings.dtype)
    zeros = jnp.zeros((num_layers, batch, length, width), dtype)
    return Cache(zeros, zeros, class_embedding(params.classes, label))

  def step(params, cache, inputs, position):
    before = as_tokens(inputs[:, jnp.maximum(position - 1, 0)])
    embedded = jnp.where(position > 0, params.embeddings[before], params.start)
    x = _at_positions(embedded, params.positions[position])[:, None]
    x = add_class(x, cache.classes)
    seen = (jnp.arange(inputs.shape[1]) <= position)[None]

    def block(x: jax.Array, layer: Any) -> tuple[jax.Array, Any]:
      weights, keys, values = layer
      query, key, value = _query_key_value(weights, x)
      keys = lax.dynamic_update_slice_in_dim(keys, key, position, 1)
      values = lax.dynamic_update_slice_in_dim(values, value, position, 1)
      mixed = _attend(num_heads, query, keys, values, seen)
      return _rest(weights, x, mixed), (keys, values)

    layers = params.blocks, cache.keys, cache.values
    x, (keys, values) = lax.scan(block, x, layers)
    return _scores(params, x[:, 0]), Cache(keys, values, cache.classes)

  return CausalNetwork(init, forward, start, step, event_ndim=1)


def _init_block(key: jax.Array, width: int, depth: int, dtype: Any) -> Block:
  keys = jax.random.split(key, 4)
  shapes = [(1, 3), (1, 1), (1, 4), (4, 1)]
  # So that the sum of all blocks' outputs has about the scale of one.
  shared = [1, 2 * depth, 1, 2 * depth]
  into, out, mlp_in, mlp_out = (
    init_affine(key, (a * width, b * width), dtype, fan_in=a * width * blocks)
    for key, (a, b), blocks in zip(keys, shapes, shared, strict=True)
  )
  norms = _init_norm(width, dtype), _init_norm(width, dtype)
  return Block(norms[0], into, out, norms[1], mlp_in, mlp_out)


def _init_norm(width: int, dtype: Any) -> Norm:
  return Norm(jnp.ones(width, dtype), jnp.zeros(width, dtype))


def _at_positions(embedded: jax.Array, positions: jax.Array) -> jax.Array:
  wide = accumulator(embedded.dtype)
  return embedded.astype(wide) + positions.astype(wide)


def _norm(norm: Norm, x: jax.Array) -> jax.Array:
  return normalise(x).values * norm.gain.astype(x.dtype) + norm.shift.astype(
    x.dtype
  )


def _query_key_value(weights: Block, x: jax.Array) -> list[jax.Array]:
  x = _norm(weights.attention_norm, x)
  return jnp.split(pointwise(weights.query_key_value, x), 3, -1)


def _attend(
  num_heads: int,
  query: jax.Array,
  key: jax.Array,
  value: jax.Array,
  seen: jax.Array,
) -> jax.Array:
  """Attention of [B, Q, D] to [B, U, D], where seen [Q, U]: [B, Q, D]."""
  heads = lambda x: x.reshape(*x.shape[:2], num_heads, -1)
  query, key, value = heads(query), heads(key), heads(value)
  scores = jnp.einsum("bqhk,buhk->bhqu", query, key)
  scores = scores / math.sqrt(query.shape[-1])
  weights = jax.nn.softmax(jnp.where(seen, scores, -jnp.inf))
  mixed = jnp.einsum("bhqu,buhk->bqhk", weights, value)
  return mixed.reshape(*mixed.shape[:2], -1)


def _rest(weights: Block, x: jax.Array, mixed: jax.Array) -> jax.Array:
  """A block after its attention."""
  x = x + pointwise(weights.attention_out, mixed)
  hidden = pointwise(weights.mlp_in, _norm(weights.mlp_norm, x))
  return x + pointwise(weights.mlp_out, jax.nn.gelu(hidden))


def _scores(params: Params, x: jax.Array) -> jax.Array:
  return product(_norm(params.norm, x), params.embeddings.T)


def _check_length(params: Params, length: int) -> None:
  if length > len(params.positions):
    raise ValueError(
      f"got events of {length} tokens, expected {len(params.positions)} or "
      "fewer, as the data of init had: init with the longest."
    )
