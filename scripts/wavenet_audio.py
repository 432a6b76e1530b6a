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

import pathlib
import statistics
import time
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from audio import plots, recordings
from audio.listening import Heard, listen, right_pitches
from audio.training import (
  Config,
  context_of,
  model_of,
  optimizer_of,
  train,
  unigram_bits,
)
from revmom.models import mu_law_inverse
from shared import output
from shared.checkpointing import Checkpoints, done_before
from shared.settings import launch
from shared.training_loop import Training


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
