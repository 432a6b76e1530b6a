"""An LSTM learns to write text, predicting each token from those before it.

  python scripts/lstm_text.py --workdir=out/lstm_text
  python scripts/lstm_text.py --text=tinyshakespeare.txt --hidden_size=256 \
    --embedding_size=256 --steps=3000 --workdir=out/shakespeare
  python scripts/lstm_text.py --data_dir=wikitext-2 --level=word \
    --workdir=out/wikitext

P(w_t) = softmax_w(e[w] . h_{t-1}), with the embeddings e that the LSTM reads,
too (Press & Wolf 2017, "Using the output embedding to improve language
models"); h_0 is learned.  Training is by truncated backpropagation: windows
follow each other, and the state is carried from one to the next.

Two minutes on 2 busy CPU cores.  Expect 1.86 bits per character (perplexity
3.6) on the last twentieth of the text, and 2.09 on the one before it; by
default the text is the reference that comes with Python, so digits vary with
its version.  Shakespeare, the second command, takes some 10 minutes: 2.22 bits
per character, and 2.00 on the twentieth before.

Last it measures the backward pass over sentences of T = 128 to 4096 tokens: it
is O(T), T^1.02 if a power is fitted; 12 microseconds for each character.

With --workdir it writes result.json, metrics.csv (loss by step), loss.png,
backward_time.png, sample.txt and checkpoints.  Running it again there goes on
from the last one and ends in the same weights as a run that was never
interrupted.
"""

import math
import pathlib
import statistics
import time
from typing import Any

import jax
import numpy as np

from shared import output, texts
from shared.checkpointing import Checkpoints, done_before
from shared.settings import launch
from shared.training_loop import Rows
from text import model, plots, timing, training
from text.training import Config, bits_per_character

_SAMPLE = 400  # tokens


def write(
  workdir: pathlib.Path,
  rows: Rows,
  times: list[dict[str, float]],
  result: dict[str, Any],
) -> None:
  """All files but the checkpoints."""
  output.write_text(workdir / "sample.txt", result["sample"] + "\n")
  drawn = {
    "loss": plots.losses(rows, result),
    "backward_time": plots.pass_times(times, result),
  }
  output.write_results(workdir, rows, drawn, result)


def sample(corpus: texts.Corpus, config: Config, params: model.Params) -> str:
  """A text that the model writes."""
  key = jax.random.fold_in(jax.random.key(config.seed), 1)
  draw = jax.jit(model.sample, static_argnums=2)
  drawn = np.asarray(draw(params, key, _SAMPLE))
  return texts.join([corpus.vocabulary[i] for i in drawn], config.level)


def result_of(
  corpus: texts.Corpus,
  config: Config,
  params: model.Params,
  validation_loss: float,
  times: list[dict[str, float]],
) -> dict[str, Any]:
  """Flat keys: the text, the model and what was measured of it."""
  test_loss = training.evaluation(config, corpus.test)(params)
  return {
    "text": config.text or config.data_dir or "pydoc_data.topics",
    "level": config.level,
    "vocabulary": len(corpus.vocabulary),
    "train_tokens": len(corpus.train.tokens),
    "test_tokens": len(corpus.test.tokens),
    "parameters": sum(leaf.size for leaf in jax.tree.leaves(params)),
    "steps": config.steps,
    "validation_bits_per_character": bits_per_character(
      validation_loss, corpus.validation
    ),
    "test_bits_per_character": bits_per_character(test_loss, corpus.test),
    "validation_perplexity": math.exp(validation_loss),
    "test_perplexity": math.exp(test_loss),
    "backward_exponent": timing.exponent(times),
    **timing.costs(times),
    "sample": sample(corpus, config, params),
  }


def run(config: Config, workdir: str | None = None) -> dict[str, Any]:
  """The experiment: train, evaluate, time, sample, write.

  Raises:
    OSError: the text can't be read.
    ValueError: the text or the workdir don't go with the flags.
    FloatingPointError: a loss was not finite.
  """
  begin = time.perf_counter()
  corpus = texts.load(config.text, config.data_dir, config.level)
  state = training.start(corpus, config)
  path = output.folder(workdir)
  with Checkpoints(path, config, corpus) as checkpoints:
    state, rows, done_before = training.train(
      corpus, config, state, checkpoints
    )
  params = state.params
  times = timing.pass_times(params, corpus.train.tokens)
  validation_loss = rows[-1]["validation_loss"]
  result = result_of(corpus, config, params, validation_loss, times)
  result |= {
    "resumed_from": done_before,
    "seconds_per_step": statistics.median(row["seconds"] for row in rows),
    "seconds": time.perf_counter() - begin,
  }
  if path is not None:
    write(path, rows, times, result)
  return result


def report(result: dict[str, Any]) -> str:
  """The result for people."""
  r = result
  origin = done_before(r)
  ends = [name for name in r if name.startswith("backward_microseconds")]
  costs = ", ".join(
    f"{r[name]:.1f} us for {name.rpartition('_')[2]}" for name in ends
  )
  return f"""\
text               {r["text"]}: {r["train_tokens"]:,} {r["level"]}s to train \
on, {r["vocabulary"]:,} different ones
model              {r["parameters"]:,} parameters, {r["steps"]} steps{origin}
bits per character {r["test_bits_per_character"]:.3f} on test text, \
{r["validation_bits_per_character"]:.3f} on validation text
perplexity         {r["test_perplexity"]:.2f} on test text, \
{r["validation_perplexity"]:.2f} on validation text, per {r["level"]}
backward pass      O(T^{r["backward_exponent"]:.2f}) for T {r["level"]}s; each \
takes {costs}
time               {r["seconds"]:.1f} s, {1e3 * r["seconds_per_step"]:.1f} ms \
a step
sample
{r["sample"]}"""


if __name__ == "__main__":
  launch(Config, run, report)
