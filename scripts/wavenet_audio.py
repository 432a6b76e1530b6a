"""A WaveNet learns clips of sound, says them, and ends what others began.

  python scripts/wavenet_audio.py --workdir=out/wavenet
  python scripts/wavenet_audio.py --data_dir=DIR --steps=600 --seconds=0.5 \
    --workdir=out/digits

Van den Oord et al. (2016), "WaveNet: a generative model for raw audio": 8-bit
mu-law codes of sound at 8 kHz, each predicted from those before it, for a class
that is given.  Without --data_dir the sounds are plucked strings, made of
damped harmonics of ten pitches and some noise.  With it they are files of
16-bit mono sound at 8 kHz named DIGIT_SPEAKER_INDEX.wav, as the Free Spoken
Digit Dataset has them; indices 0 to 4 are for the test.

It prints the bits a sample of test clips, beside those of a model that knows
how often each code occurs (unigram) and, for strings, beside those of the
noise, which no model can go below on average.

A minute and a half on 2 CPU cores.  Expect 3.26 bits a sample for strings,
where the unigram needs 7.30 and the noise 1.95, and the right pitch for half of
the generated ones.  The second command takes one minute; with two speakers of
that data set expect 4.72 bits, where the unigram needs 7.38.

With --workdir it writes result.json, metrics.csv, loss.png, checkpoints,
generated.wav (a clip of each class), completed.wav (test clips of which the
second half is generated) and spectrogram.png.  Running it again there goes on
from the last checkpoint and ends in the same weights as a run that was never
interrupted.
"""

import dataclasses
import functools
import math
import pathlib
import statistics
import time
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from audio import plots, recordings
from revmom.models import (
  Autoregressive,
  categorical,
  mixture_of_logistics,
  mu_law_inverse,
  wavenet,
)
from shared import output, training_loop
from shared.checkpointing import Checkpoints, done_before
from shared.settings import flag, launch
from shared.training_loop import Rows, Training

_LEVELS = 256
_CONDITIONALS = {
  "mixture_of_logistics": mixture_of_logistics(levels=_LEVELS),
  "categorical": categorical(_LEVELS),
}


_CHECKPOINTS = 5  # in a run, each with a test
_CHUNK = 16  # windows that are evaluated at once


@dataclasses.dataclass(frozen=True)
class Config:
  """One experiment."""

  data_dir: str | None = flag(
    None, "Folder of wav files; without it, plucked strings.", may_change=True
  )
  dilations: tuple[int, ...] = flag(
    tuple(2**i for i in range(7)), "Of each block's convolution.", at_least=1
  )
  conditional: str = flag(
    "categorical",
    "Distribution of a code, given what the network says.",
    choices=list(_CONDITIONALS),
  )
  residual: int = flag(32, "Channels between blocks.", at_least=1)
  skip: int = flag(64, "Channels of the sum of all blocks.", at_least=1)
  window: int = flag(512, "Samples that a clip gives to a step.", at_least=1)
  seconds: float = flag(
    0.25, "Length of generated clips.", at_least=0.01, may_change=True
  )
  steps: int = flag(1200, "Adam steps.", at_least=1)
  batch_size: int = flag(
    8, "Windows a step, drawn with replacement.", at_least=1
  )
  learning_rate: float = flag(
    6e-3,
    "After a twentieth of the steps; from there a cosine, to zero.",
    at_least=0.0,
  )
  seed: int = flag(0, "Of data, weights, batches and noise.")


def model_of(config: Config) -> Autoregressive:
  """The WaveNet of the flags."""
  network = wavenet(
    config.dilations,
    residual=config.residual,
    skip=config.skip,
    num_classes=recordings.CLASSES,
  )
  return Autoregressive(network, _CONDITIONALS[config.conditional])


def context_of(model: Autoregressive) -> int:
  """How many samples before one its distribution depends on."""
  seen = model.network.receptive_field
  assert seen is not None
  return -min(offset for (offset,) in seen)


def optimizer_of(config: Config) -> optax.GradientTransformation:
  """Adam with a rate that grows, and then decays along a cosine."""
  rate = optax.warmup_cosine_decay_schedule(
    0.0, config.learning_rate, config.steps // 20, config.steps
  )
  return optax.adam(rate)


def bits_of(
  model: Autoregressive,
  windows: recordings.Windows,
  params: Any,
  clip: jax.Array,
  offset: jax.Array,
  window: int,
) -> tuple[jax.Array, jax.Array]:
  """Sum of the bits of the samples in windows, and how many they are."""
  context = context_of(model)
  codes, inside, labels = recordings.take(
    windows, clip, offset, context, window
  )
  log_probs = model.element_log_probs(params, codes, labels)
  log_probs = log_probs[:, context:, 0]
  return -jnp.sum(log_probs, where=inside) / math.log(2), jnp.sum(inside)


def training_step(
  config: Config, model: Autoregressive, clips: recordings.Clips
) -> Callable:
  """(training, number) -> the next one, and the mean bits a sample."""
  windows = jax.tree.map(
    jnp.asarray,
    recordings.windows_of(clips, context_of(model), config.window),
  )
  batch_key = jax.random.fold_in(jax.random.key(config.seed), 1)
  optimizer = optimizer_of(config)

  def loss_fn(params, clip, offset):
    bits, count = bits_of(model, windows, params, clip, offset, config.window)
    return bits / count.astype(bits.dtype)

  @functools.partial(jax.jit, donate_argnums=0)
  def step(training, number):
    which, where = jax.random.split(jax.random.fold_in(batch_key, number))
    # So that every sample of every clip is as likely to be in the window.
    places = windows.lengths + (config.window - 1)
    logits = jnp.log(places.astype(jnp.float32))
    clip = jax.random.categorical(which, logits, shape=(config.batch_size,))
    offset = jax.random.randint(where, clip.shape, 0, places[clip])
    offset = offset - (config.window - 1)
    loss, gradients = jax.value_and_grad(loss_fn)(training.params, clip, offset)
    updates, state = optimizer.update(gradients, training.optimizer)
    return Training(optax.apply_updates(training.params, updates), state), loss

  return step


def evaluation(
  config: Config, model: Autoregressive, clips: recordings.Clips
) -> Callable:
  """params -> bits a sample of whole clips, each seen to its full context."""
  window = config.window
  windows = recordings.windows_of(clips, context_of(model), window)
  pieces = [
    (clip, offset)
    for clip, length in enumerate(windows.lengths)
    for offset in range(0, length, window)
  ]
  # Windows that begin at the end of a clip have no samples in them.
  nothing = [(0, int(windows.lengths[0]))] * (-len(pieces) % _CHUNK)
  chunks = np.array(pieces + nothing, np.int32).reshape(-1, _CHUNK, 2)
  windows = jax.tree.map(jnp.asarray, windows)

  @jax.jit
  def evaluate(params, chunk):
    return bits_of(model, windows, params, chunk[:, 0], chunk[:, 1], window)

  def mean(params):
    results = [evaluate(params, chunk) for chunk in chunks]
    bits, counts = zip(*results, strict=True)
    return float(np.sum(bits, dtype=np.float64) / np.sum(counts))

  return mean


def unigram_bits(data: recordings.Data) -> float:
  """Bits a sample of the test, for one who knows how often codes occur."""
  codes = [recordings.codes_of(clips.sounds) for clips in data]
  # One more of each, so that none is impossible.
  counts = np.bincount(codes[0], minlength=_LEVELS) + 1
  return float(-np.log2(counts / counts.sum())[codes[1]].mean())


def train(
  data: recordings.Data,
  config: Config,
  training: Training,
  checkpoints: Checkpoints,
) -> tuple[Training, Rows, int]:
  """Resumes, and goes on to the last step; see `training_loop.train`.

  Raises:
    FloatingPointError: a loss was not finite.
  """
  model = model_of(config)
  step = training_step(config, model, data.train)
  test = evaluation(config, model, data.test)

  def validate(params):
    bits = test(params)
    return {"test_bits": bits}, f"test {bits:.3f} bits a sample"

  return training_loop.train(
    step,
    training,
    config.steps,
    validate,
    checkpoints,
    saves=_CHECKPOINTS,
    loss="bits",
  )


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


def write(
  workdir: pathlib.Path,
  rows: list[dict[str, float]],
  heard: Heard,
  result: dict[str, Any],
) -> None:
  """All files but the checkpoints."""
  recordings.write(workdir / "generated.wav", heard.generated)
  recordings.write(workdir / "completed.wav", heard.completed)
  kinds = {
    kind: np.asarray(mu_law_inverse(jnp.asarray(getattr(heard, kind))))
    for kind in ("test", "generated", "completed")
  }
  drawn = {
    "loss": plots.losses(rows, result),
    "spectrogram": plots.spectrograms(kinds, recordings.RATE),
  }
  output.write_results(workdir, rows, drawn, result)


def run(config: Config, workdir: str | None = None) -> dict[str, Any]:
  """The experiment: train, evaluate, generate, write.

  Raises:
    OSError, ValueError: the data or the workdir don't go with the flags.
    FloatingPointError: a loss was not finite.
  """
  begin = time.perf_counter()
  model = model_of(config)
  if config.data_dir is None:
    data = recordings.synthetic(config.seed)
  else:
    data = recordings.load(config.data_dir)
  like = jnp.zeros((1, config.window, 1), jnp.int32)
  params = model.init(jax.random.key(config.seed), like)
  training = Training(params, optimizer_of(config).init(params))
  path = output.folder(workdir)
  with Checkpoints(path, config, data) as checkpoints:
    training, rows, done_before = train(data, config, training, checkpoints)
  heard = listen(config, model, training.params, data.test)
  least = recordings.least_bits(data.test)
  result = {
    "data": config.data_dir and pathlib.Path(config.data_dir).name,
    "parameters": sum(leaf.size for leaf in jax.tree.leaves(params)),
    "receptive_field": context_of(model),
    "steps": config.steps,
    "resumed_from": done_before,
    "test_bits": rows[-1]["test_bits"],
    "unigram_bits": unigram_bits(data),
    **({} if least is None else {"least_bits": least}),
    **(
      {} if least is None else {"right_pitches": right_pitches(heard.generated)}
    ),
    "generated_samples": heard.generated.size + heard.completed.size,
    "generation_seconds": heard.seconds,
    "seconds_per_step": statistics.median(row["seconds"] for row in rows),
    "seconds": time.perf_counter() - begin,
  }
  if path is not None:
    write(path, rows, heard, result)
  return result


def report(result: dict[str, Any]) -> str:
  """The result for people."""
  r = result
  origin = done_before(r)
  lines = [
    f"model       {r['parameters']:,} parameters, sees "
    f"{r['receptive_field']} samples, {r['steps']} Adam steps{origin}",
    f"test        {r['test_bits']:.3f} bits a sample; unigram "
    f"{r['unigram_bits']:.3f}",
  ]
  if "least_bits" in r:
    lines += [
      f"            the noise alone {r['least_bits']:.3f}",
      f"generated   {r['right_pitches']} of {recordings.CLASSES} strings have "
      "the pitch of their class",
    ]
  lines += [
    f"time        {r['seconds']:.1f} s, "
    f"{1e3 * r['seconds_per_step']:.1f} ms a training step, "
    f"{r['generated_samples']:,} samples generated in "
    f"{r['generation_seconds']:.1f} s"
  ]
  return "\n".join(lines)


if __name__ == "__main__":
  launch(Config, run, report)
