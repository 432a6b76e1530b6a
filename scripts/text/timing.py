"""How long the passes through a language model take."""

import math
import time
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from shared.runs import timed
from text import model

_LONGEST = 4096  # tokens of the longest sentence to time; others are shorter
_HALVINGS = 5
_TIMINGS = 25
_TIMINGS_SECONDS = 20.0  # after which no more are begun


def passes(
  params: model.Params,
) -> tuple[Callable[[jax.Array], Any], Callable[[Any], Any]]:
  """tokens [T, 1] -> a pullback, and pullback -> gradients; both compiled."""

  def loss(params, sentence):
    start = model.initial(params, 1)
    return model.losses(params, sentence, start)[0].sum()

  @jax.jit
  def forward(params, sentence):
    return jax.vjp(lambda params: loss(params, sentence), params)

  backward = jax.jit(lambda pullback: pullback(jnp.float32(1)))
  return lambda sentence: forward(params, sentence)[1], backward


def pass_times(
  params: model.Params, tokens: np.ndarray
) -> list[dict[str, float]]:
  """Seconds of the two passes over sentences of several lengths.

  The least of several, taken in turns: others on the machine only add.
  """
  forward, backward = passes(params)
  longest = min(_LONGEST, len(tokens))
  lengths = sorted({max(1, longest >> i) for i in range(_HALVINGS + 1)})
  least = np.full((len(lengths), 2), np.inf)
  begin = time.perf_counter()
  for number in range(_TIMINGS):  # the first compiles
    if number > 2 and time.perf_counter() - begin > _TIMINGS_SECONDS:
      break
    for i, length in enumerate(lengths):
      sentence = jnp.asarray(tokens[:length, None])
      pullback, of_forward = timed(forward, sentence)
      _, of_backward = timed(backward, pullback)
      least[i] = np.minimum(least[i], [of_forward, of_backward])
  return [
    {"tokens": length, "forward_seconds": f, "backward_seconds": b}
    for length, (f, b) in zip(lengths, least.tolist(), strict=True)
  ]


def exponent(rows: list[dict[str, float]]) -> float:
  """p of the T^p that fits the backward times best: 1 is O(T)."""
  lengths, seconds = (
    [math.log(row[name]) for row in rows]
    for name in ("tokens", "backward_seconds")
  )
  return float(np.polyfit(lengths, seconds, 1)[0])


def costs(rows: list[dict[str, float]]) -> dict[str, float]:
  """Microseconds for each token of the shortest and of the longest sentence."""
  return {
    f"{name}_microseconds_per_token_of_{row['tokens']}": 1e6
    * row[f"{name}_seconds"]
    / row["tokens"]
    for row in (rows[0], rows[-1])
    for name in ("forward", "backward")
  }
