"""An LSTM language model with tied embeddings, for texts without an end.

It is `revmom.models.language_model`, of which this has the losses of windows
and samples of any length.
"""

from typing import Any

import jax
import jax.numpy as jnp

from revmom.cells import lstm
from revmom.models import Autoregressive, categorical, language_model, tokens

Params = Any  # embeddings [V, E] and those of the cell


def init(
  key: jax.Array,
  vocabulary: int,
  embedding_size: int,
  hidden_size: int | None = None,
) -> Params:
  """Random weights; an output of another size than E is projected to it."""
  network = language_model(embedding_size, hidden_size)
  return network.init(key, jnp.zeros((1, 1)), vocabulary)


def initial(params: Params, batch: int) -> lstm.LSTMCarry:
  """The learned state before the first token."""
  return lstm.cell.initial_carry(params.cell, batch)


def losses(
  params: Params, tokens: jax.Array, carry: lstm.LSTMCarry
) -> tuple[jax.Array, lstm.LSTMCarry]:
  """-log P(w_t) = -log softmax(E h_{t-1}) of each token, and the last state.

  Args:
    params: of the model.
    tokens: int32 [T, B].
    carry: the state before the first.

  Returns:
    Losses [T, B] in nats, and a state.
  """
  embeddings = params.embeddings
  outputs, after = lstm.apply(params.cell, embeddings[tokens], carry)
  before = jnp.concatenate([carry.hidden[None], outputs[:-1]])
  scores = before @ embeddings.T
  return -categorical(len(embeddings)).log_prob(scores, tokens), after


def sample(params: Params, key: jax.Array, count: int) -> jax.Array:
  """Draws a text: int32 [count] tokens."""
  vocabulary, size = params.embeddings.shape
  model = Autoregressive(language_model(size), tokens(vocabulary))
  return model.sample(key, params, (count,))
