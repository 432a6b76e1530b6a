"""What a trained WaveNet says."""

import time
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from audio import recordings
from audio.training import Config, context_of
from revmom.models import Autoregressive, mu_law_inverse


class Heard(NamedTuple):
  """Codes of clips, one of each class: [classes, T]."""

  test: np.ndarray  # the first of the class, or its beginning
  generated: np.ndarray
  completed: np.ndarray  # test clips with another second half
  seconds: float  # that generation took, for all clips together


def listen(
  config: Config, model: Autoregressive, params: Any, clips: recordings.Clips
) -> Heard:
  """Generates clips from silence, and the second halves of others.

  Raises:
    ValueError: there is no test clip of a class.
  """
  context, length = (
    context_of(model),
    round(config.seconds * recordings.RATE),
  )
  labels = np.arange(recordings.CLASSES, dtype=np.int32)
  missing = sorted(set(labels.tolist()) - set(clips.labels.tolist()))
  if missing:
    raise ValueError(f"there is no test clip of classes {missing}.")
  firsts = np.array([np.argmax(clips.labels == label) for label in labels])
  windows = recordings.windows_of(clips, context, length)
  codes, inside, _ = recordings.take(
    windows, firsts, np.zeros_like(firsts), context, length
  )
  # Where a clip has ended is silence, not the clip that follows it.
  test = np.where(inside, codes[:, context:, 0], recordings.SILENCE)
  half = np.minimum(windows.lengths[firsts], length) // 2
  known = np.arange(length) < np.stack([0 * half, half])[..., None]
  x = np.pad(
    np.stack([test, test]),
    [(0, 0), (0, 0), (context, 0)],
    constant_values=recordings.SILENCE,
  )
  known = np.pad(known, [(0, 0), (0, 0), (context, 0)], constant_values=True)

  @jax.jit
  def complete(key, params):
    return model.complete(
      key, params, x[..., None], known[..., None], np.stack([labels, labels])
    )

  key = jax.random.fold_in(jax.random.key(config.seed), 2)
  compiled = complete.lower(key, params).compile()
  begin = time.perf_counter()
  generated, completed = np.asarray(compiled(key, params))[:, :, context:, 0]
  return Heard(test, generated, completed, time.perf_counter() - begin)


def right_pitches(codes: np.ndarray) -> int:
  """Of how many strings, one of each class, the pitch is that of the class."""
  sounds = np.asarray(mu_law_inverse(jnp.asarray(codes)))
  padded = 8 * recordings.RATE
  spectrum = np.abs(np.fft.rfft(sounds * np.hanning(sounds.shape[1]), padded))
  classes = np.arange(len(codes))
  lines = 8 * np.outer(recordings.pitch(classes), np.arange(1, 4))
  strength = spectrum[:, np.rint(lines).astype(int)].sum(-1)
  return int((strength.argmax(1) == classes).sum())
