"""An LSTM language model with tied embeddings, for texts without an end.

It is `revmom.models.language_model`, of which this has the losses of windows
and samples of any length.
"""

import jax

from revmom.cells import lstm
from revmom.models import Autoregressive, language_model, tokens
from revmom.models.autoregressive.language_model import (
  Params,
  init,
  initial,
  log_probs,
)

__all__ = ["Params", "init", "initial", "losses", "sample"]


def losses(
  params: Params, tokens: jax.Array, carry: lstm.LSTMCarry
) -> tuple[jax.Array, lstm.LSTMCarry]:
  """-log P(w_t) of each token, and the state when all are read.

  Args:
    params: of the model.
    tokens: int32 [T, B].
    carry: the state before the first.

  Returns:
    Losses [T, B] in nats, and a state.
  """
  values, after = log_probs(params, tokens, carry)
  return -values, after


def sample(params: Params, key: jax.Array, count: int) -> jax.Array:
  """Draws a text: int32 [count] tokens."""
  vocabulary, size = params.embeddings.shape
  model = Autoregressive(language_model(size), tokens(vocabulary))
  return model.sample(key, params, (count,))
