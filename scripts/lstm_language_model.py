"""An LSTM language model with tied embeddings.

    P(w_t) = softmax_w(e[w] . h_{t-1})                                    (1)

The LSTM reads the embeddings e that also score the next token (Press & Wolf
2017, "Using the output embedding to improve language models"), and h_0 is
learned.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax import lax

from revmom.cells import lstm

_SCALE = 0.3  # of the embeddings at first


class Params(NamedTuple):
  """The language model."""

  embeddings: jax.Array  # e [V, E]
  cell: lstm.LSTMParams  # h [E]


def init(
  key: jax.Array, vocabulary: int, embedding_size: int, hidden_size: int
) -> Params:
  """Random weights, and an h_0 of zeros.

  With as many cells as an embedding has elements, h is that of the LSTM;
  otherwise it is projected.
  """
  size = embedding_size
  of_embeddings, of_cell = jax.random.split(key)
  return Params(
    embeddings=_SCALE * jax.random.normal(of_embeddings, (vocabulary, size)),
    cell=lstm.init(
      of_cell,
      size,
      hidden_size,
      projection_size=None if hidden_size == size else size,
      learned_carry=True,
    ),
  )


def initial(params: Params, batch: int) -> lstm.LSTMCarry:
  """The learned state before the first token, [B, E] and [B, cells]."""
  return lstm.cell.initial_carry(params.cell, batch)


def losses(
  params: Params, tokens: jax.Array, carry: lstm.LSTMCarry
) -> tuple[jax.Array, lstm.LSTMCarry]:
  """-log P(w_t) of (1) for each token, and the state when all are read.

  Args:
    params: of the model.
    tokens: int32 [T, B].
    carry: the state before the first.

  Returns:
    Losses [T, B] in nats, and a state.
  """
  outputs, after = lstm.apply(params.cell, params.embeddings[tokens], carry)
  hidden = jnp.concatenate([carry.hidden[None], outputs[:-1]])  # h_{t-1}
  scores = hidden @ params.embeddings.T  # [T, B, V]
  return (
    optax.softmax_cross_entropy_with_integer_labels(scores, tokens),
    after,
  )


def sample(params: Params, key: jax.Array, count: int) -> jax.Array:
  """Draws a text: int32 [count] tokens."""

  def step(carry, key):
    token = jax.random.categorical(key, carry.hidden @ params.embeddings.T)
    carry, _ = lstm.step(params.cell, carry, params.embeddings[token])
    return carry, token[0]

  return lax.scan(step, initial(params, 1), jax.random.split(key, count))[1]
