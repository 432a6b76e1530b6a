"""Clips of sound at 8 kHz with a class each, and windows of them."""

import pathlib
import re
import warnings
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from scipy.io import wavfile
from scipy.special import ndtr

from revmom.models import mu_law, mu_law_inverse
from shared.user_files import blamed

RATE = 8000  # samples a second
CLASSES = 10
_NAME = re.compile(r"(\d)_(\w+)_(\d+)\.wav")
_TEST = 5  # the first indices of each speaker and digit
_NOISE = 0.003
_LENGTH = RATE // 4  # of synthetic clips


class Clips(NamedTuple):
  """Clips of one kind."""

  sounds: list[np.ndarray]  # floats in [-1, 1], of any lengths
  labels: np.ndarray
  clean: list[np.ndarray] | None = None  # without noise, where it is known


class Data(NamedTuple):
  """Clips to learn from, and others."""

  train: Clips
  test: Clips


def pitch(label: np.ndarray) -> np.ndarray:
  """Hertz of a synthetic class's fundamental: five to an octave."""
  return 220 * 2 ** (label / 5)


def synthetic(seed: int, per_class: int = 40) -> Data:
  """Plucked strings: damped harmonics of a class's pitch, and noise."""
  rng = np.random.default_rng(seed)

  def clips(count: int) -> Clips:
    labels = np.tile(np.arange(CLASSES), count).astype(np.int32)
    clean = [_pluck(rng, label) for label in labels]
    noise = lambda: _NOISE * rng.normal(size=_LENGTH)
    return Clips([sound + noise() for sound in clean], labels, clean)

  return Data(clips(per_class), clips(_TEST))


def _pluck(rng: np.random.Generator, label: int) -> np.ndarray:
  seconds = np.arange(_LENGTH) / RATE
  sound = np.zeros(_LENGTH)
  for harmonic in range(1, 5):
    loudness = rng.uniform(0.5, 1) / harmonic**1.5
    decay = rng.uniform(0.1, 0.3) / harmonic
    phase = rng.uniform(0, 2 * np.pi)
    angle = 2 * np.pi * harmonic * pitch(np.array(label)) * seconds + phase
    sound += loudness * np.exp(-seconds / decay) * np.sin(angle)
  return rng.uniform(0.3, 0.5) * sound


def codes_of(sounds: list[np.ndarray]) -> np.ndarray:
  """The mu-law codes of sounds, one after the other."""
  return np.asarray(mu_law(jnp.asarray(np.concatenate(sounds), jnp.float32)))


def least_bits(clips: Clips) -> float | None:
  """Bits a sample that remain when all but the noise is known.

  No model of synthetic clips can need fewer on average.
  """
  if clips.clean is None:
    return None
  clean, codes = np.concatenate(clips.clean), codes_of(clips.sounds)
  between = (np.arange(257) - 0.5) / 255 * 2 - 1  # of codes, companded
  edges = np.sign(between) * np.expm1(np.abs(between) * np.log(256)) / 255
  edges[0], edges[-1] = -np.inf, np.inf
  mass = ndtr((edges[codes + 1] - clean) / _NOISE) - ndtr(
    (edges[codes] - clean) / _NOISE
  )
  # Rounding of float32 may put a sample at an edge into the next code.
  return float(-np.log2(np.maximum(mass, 1e-9)).mean())


def load(folder: str) -> Data:
  """Files DIGIT_SPEAKER_INDEX.wav; indices 0 to 4 are for the test.

  Raises:
    FileNotFoundError: there are none, or none for one of the two purposes.
    ValueError: one is not 16-bit mono sound at 8 kHz.
  """
  train, test = Clips([], np.array([])), Clips([], np.array([]))
  labels: dict[bool, list[int]] = {True: [], False: []}
  for path in sorted(pathlib.Path(folder).glob("*.wav")):
    name = _NAME.fullmatch(path.name)
    if name is None:
      continue
    is_test = int(name[3]) < _TEST
    (test if is_test else train).sounds.append(read(path))
    labels[is_test].append(int(name[1]))
  if not train.sounds or not test.sounds:
    raise FileNotFoundError(
      f"--data_dir={folder} has {len(train.sounds)} files for training and "
      f"{len(test.sounds)} for the test; expected files such as 7_theo_3.wav, "
      "with some indices of 5 and more and some below."
    )
  return Data(
    train._replace(labels=np.array(labels[False], np.int32)),
    test._replace(labels=np.array(labels[True], np.int32)),
  )


def read(path: pathlib.Path) -> np.ndarray:
  # Damage is an error or, if it cuts sound off, a warning.
  with blamed(str(path)), warnings.catch_warnings():
    warnings.simplefilter("error", wavfile.WavFileWarning)
    warnings.filterwarnings("ignore", "Chunk .* not understood")
    rate, samples = wavfile.read(path)
  if rate != RATE or samples.ndim != 1 or samples.dtype != np.int16:
    raise ValueError(
      f"{path} has {rate} samples a second, shape {samples.shape} and type "
      f"{samples.dtype}; expected {RATE}, one channel and int16."
    )
  if not samples.size:
    raise ValueError(f"{path} has no sound.")
  return samples / 32768


SILENCE = 128  # the code of 0


class Windows(NamedTuple):
  """Where to take windows from: clips in a row, each after some silence."""

  codes: Any  # [all samples], int32
  begins: Any  # of each clip
  lengths: Any  # of each clip
  labels: Any


def windows_of(clips: Clips, context: int, window: int) -> Windows:
  """mu-law codes of the clips, with silence before, between and after."""
  silence = np.zeros(context + window)
  pieces = [silence]
  for sound in clips.sounds:
    pieces += [sound, silence]
  lengths = np.array([len(sound) for sound in clips.sounds], np.int32)
  ends = np.cumsum(lengths + len(silence), dtype=np.int32)
  return Windows(codes_of(pieces), ends - lengths, lengths, clips.labels)


def take(
  windows: Windows, clip: Any, offset: Any, context: int, window: int
) -> tuple[jax.Array, jax.Array, jax.Array]:
  """Codes [N, context + window, 1], which are of the clip [N, window], labels.

  Args:
    windows: of the clips.
    clip: numbers of clips, [N].
    offset: of the window in its clip, [N]; it may begin before it or end after.
    context: samples before the window.
    window: samples.
  """
  begin = windows.begins[clip] + offset - context
  index = begin[:, None] + jnp.arange(context + window)
  place = offset[:, None] + jnp.arange(window)
  inside = (place >= 0) & (place < windows.lengths[clip][:, None])
  return windows.codes[index][..., None], inside, windows.labels[clip]


def write(path: pathlib.Path, codes: np.ndarray) -> None:
  """Clips [N, T] of mu-law codes one after the other, with pauses."""
  sounds = np.asarray(mu_law_inverse(jnp.asarray(codes)))
  pause = np.zeros((len(sounds), RATE // 10))
  samples = np.concatenate([sounds, pause], 1).ravel()
  wavfile.write(path, RATE, np.round(32767 * samples).astype(np.int16))
