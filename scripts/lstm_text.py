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

import dataclasses
import functools
import math
import pathlib
import statistics
import time
from collections.abc import Callable
from typing import Any, NamedTuple

import experiment
import jax
import jax.numpy as jnp
import lstm_language_model as model
import numpy as np
import optax
import text_figures
import texts
import training_loop
from absl import flags
from jax import lax
from training_loop import Rows

from revmom.cells import lstm

_TEXT = flags.DEFINE_string(
  "text",
  None,
  "A text file; by default the reference that Python's help() has.",
)
_DATA_DIR = flags.DEFINE_string(
  "data_dir",
  None,
  "Folder of a corpus instead: a file each with train, valid and test in its "
  "name.",
)
_LEVEL = flags.DEFINE_enum("level", "character", texts.LEVELS, "Of a token.")
_EMBEDDING_SIZE = flags.DEFINE_integer(
  "embedding_size", 128, "Of the embeddings.", lower_bound=1
)
_HIDDEN_SIZE = flags.DEFINE_integer(
  "hidden_size",
  128,
  "Cells; if they are not as many as the embedding has elements, a projection "
  "leads to it.",
  lower_bound=1,
)
_STEPS = flags.DEFINE_integer("steps", 2000, "AdamW steps.", lower_bound=1)
_BATCH_SIZE = flags.DEFINE_integer(
  "batch_size", 32, "Places of the text that are read at once.", lower_bound=1
)
_WINDOW = flags.DEFINE_integer(
  "window", 64, "Tokens to propagate back through.", lower_bound=1
)
_LEARNING_RATE = flags.DEFINE_float(
  "learning_rate",
  1e-2,
  "The largest: it warms up for a tenth of the steps and then decays to zero.",
  lower_bound=0.0,
)
_WEIGHT_DECAY = flags.DEFINE_float(
  "weight_decay", 0.01, "Of all parameters.", lower_bound=0.0
)
_CLIP = flags.DEFINE_float(
  "clip", 1.0, "Largest global norm of a gradient.", lower_bound=0.0
)
_SEED = flags.DEFINE_integer("seed", 0, "Of the weights and of the sample.")
_WORKDIR = flags.DEFINE_string("workdir", None, "Where results go.")

_EVALUATION_STREAMS = 16
_SAMPLE = 400  # tokens
_LONGEST = 4096  # tokens of the longest sentence to time; others are shorter
_HALVINGS = 5
_TIMINGS = 25
_TIMINGS_SECONDS = 20.0  # after which no more are begun
# May differ between a run and its resumption.
_LOCAL = ("text", "data_dir")


@dataclasses.dataclass(frozen=True)
class Config:
  """One experiment; see the flags of the same names."""

  text: str | None = None
  data_dir: str | None = None
  level: str = "character"
  embedding_size: int = 128
  hidden_size: int = 128
  steps: int = 2000
  batch_size: int = 32
  window: int = 64
  learning_rate: float = 1e-2
  weight_decay: float = 0.01
  clip: float = 1.0
  seed: int = 0


class Training(NamedTuple):
  """What a step needs and changes: all that a checkpoint holds."""

  params: model.Params
  optimizer: Any  # of AdamW
  carry: lstm.LSTMCarry  # the state at the end of the last window


def windows(tokens: np.ndarray, config: Config) -> jax.Array:
  """The training text as int32 [windows, T, B]; what is left over is not used.

  Raises:
    ValueError: the text is too short for one window.
  """
  streams, length = config.batch_size, config.window
  count = len(tokens) // (streams * length)
  if not count:
    raise ValueError(
      f"the training text has {len(tokens)} tokens, but one step takes "
      f"{streams} windows of {length}; lower --batch_size or --window, or give "
      "a longer --text."
    )
  used = tokens[: streams * count * length].reshape(streams, count, length)
  return jnp.asarray(used.transpose(1, 2, 0))


def optimizer_of(config: Config) -> optax.GradientTransformation:
  """AdamW with clipped gradients; the rate warms up and then decays."""

  def rate(step):
    warm = jnp.minimum(1, (step + 1) / (config.steps / 10))
    cosine = (1 + jnp.cos(jnp.pi * step / config.steps)) / 2
    return config.learning_rate * warm * cosine

  return optax.chain(
    optax.clip_by_global_norm(config.clip),
    optax.adamw(rate, weight_decay=config.weight_decay),
  )


def training_step(config: Config) -> Callable:
  """(training, windows, number) -> the next one, and the mean loss."""
  optimizer = optimizer_of(config)

  @functools.partial(jax.jit, donate_argnums=0)
  def step(training, windows, number):
    place = number % len(windows)

    def loss_fn(params):
      fresh = model.initial(params, config.batch_size)
      carry = jax.tree.map(
        lambda fresh, carried: jnp.where(place == 0, fresh, carried),
        fresh,
        training.carry,
      )
      values, after = model.losses(params, windows[place], carry)
      return values.mean(), after

    (loss, carry), gradients = jax.value_and_grad(loss_fn, has_aux=True)(
      training.params
    )
    updates, state = optimizer.update(
      gradients, training.optimizer, training.params
    )
    params = optax.apply_updates(training.params, updates)
    return Training(params, state, carry), loss

  return step


@jax.jit
def window_losses(params, tokens):
  """The sums of the losses of int32 [windows, T, B]; -1 is padding."""

  def window(carry, tokens):
    values, carry = model.losses(params, jnp.maximum(tokens, 0), carry)
    return carry, jnp.where(tokens < 0, 0.0, values).sum()

  start = model.initial(params, tokens.shape[2])
  return lax.scan(window, start, tokens)[1]


def evaluation(config: Config, part: texts.Part) -> Callable:
  """params -> the mean loss of a token, in nats; every token counts once.

  The text is cut into a few streams, each of which begins at h_0.
  """
  streams = min(_EVALUATION_STREAMS, len(part.tokens))
  length = config.window
  count = math.ceil(len(part.tokens) / (streams * length))
  # Padding at the very end, of the last streams.
  padded = np.full(streams * count * length, -1, np.int32)
  padded[: len(part.tokens)] = part.tokens
  tokens = padded.reshape(streams, count, length).transpose(1, 2, 0)

  def mean(params):
    return float(
      np.asarray(window_losses(params, tokens), np.float64).sum()
    ) / len(part.tokens)

  return mean


def bits_per_character(loss: float, part: texts.Part) -> float:
  """From nats a token."""
  return loss / math.log(2) * len(part.tokens) / part.characters


def timed(program: Callable, *args: Any) -> tuple[Any, float]:
  """A program's result, and its seconds."""
  start = time.perf_counter()
  result = jax.block_until_ready(program(*args))
  return result, time.perf_counter() - start


def pass_times(
  params: model.Params, tokens: np.ndarray
) -> list[dict[str, float]]:
  """Seconds of the two passes over sentences of several lengths.

  The least of several, taken in turns: others on the machine only add.
  """

  def loss(params, sentence):
    start = model.initial(params, 1)
    return model.losses(params, sentence, start)[0].sum()

  @jax.jit
  def forward(params, sentence):
    return jax.vjp(lambda params: loss(params, sentence), params)

  backward = jax.jit(lambda pullback: pullback(jnp.float32(1)))
  longest = min(_LONGEST, len(tokens))
  lengths = sorted({max(1, longest >> i) for i in range(_HALVINGS + 1)})
  least = np.full((len(lengths), 2), np.inf)
  begin = time.perf_counter()
  for number in range(_TIMINGS):  # the first compiles
    if number > 2 and time.perf_counter() - begin > _TIMINGS_SECONDS:
      break
    for i, length in enumerate(lengths):
      sentence = jnp.asarray(tokens[:length, None])
      (_, pullback), of_forward = timed(forward, params, sentence)
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


def start(corpus: texts.Corpus, config: Config) -> Training:
  """Before the first step.

  Raises:
    ValueError: --clip is not positive.
  """
  if config.clip <= 0:
    raise ValueError(f"--clip={config.clip}; it must be positive.")
  key = jax.random.key(config.seed)
  params = model.init(
    key, len(corpus.vocabulary), config.embedding_size, config.hidden_size
  )
  state = optimizer_of(config).init(params)
  # Of no consequence: the first window begins at h_0.
  carry = model.initial(params, config.batch_size)
  return Training(params, state, carry)


def train(
  corpus: texts.Corpus,
  config: Config,
  training: Training,
  rows: Rows,
  save: Callable[[Training, Rows], None],
) -> tuple[Training, Rows]:
  """Goes on to the last step; saves now and then.

  Raises:
    ValueError: the text is too short.
    FloatingPointError: a loss was not finite.
  """
  text = windows(corpus.train.tokens, config)
  step = training_step(config)
  mean = evaluation(config, corpus.validation)

  def validate(params):
    loss = mean(params)
    bits = bits_per_character(loss, corpus.validation)
    words = f"validation {bits:.3f} bits per character"
    return {"validation_loss": loss}, words

  return training_loop.train(
    lambda training, number: step(training, text, number),
    training,
    rows,
    config.steps,
    validate,
    save,
    remedy="lower --learning_rate or --clip",
  )


def resume(
  checkpoints: experiment.Checkpoints, config: Config, training: Training
) -> tuple[Training, list[dict[str, float]]]:
  """The latest state, or the given one if there is none.

  Raises:
    ValueError: it belongs to other flags, or to another text.
  """
  latest = checkpoints.latest()
  if latest is None:
    return training, []
  number, saved = latest
  about = saved["about"]
  shape = [*training.params.embeddings.shape]
  if about["embeddings"] != shape:
    raise ValueError(
      f"{checkpoints.workdir} holds a run with embeddings of the shape "
      f"{about['embeddings']}, and this text needs {shape}: give the text that "
      "it was begun with, or another --workdir."
    )
  return checkpoints.restore(number, training), about["rows"]


def write(
  workdir: pathlib.Path,
  rows: list[dict[str, float]],
  times: list[dict[str, float]],
  result: dict[str, Any],
) -> None:
  """All files but the checkpoints."""
  experiment.write_csv(workdir / "metrics.csv", rows)
  experiment.write_text(workdir / "sample.txt", result["sample"] + "\n")
  drawn = {
    "loss": text_figures.losses(rows, result),
    "backward_time": text_figures.pass_times(times, result),
  }
  for name, figure in drawn.items():
    figure.savefig(workdir / f"{name}.png", dpi=150)
  experiment.write_json(workdir / "result.json", result)


def run(config: Config, workdir: str | None = None) -> dict[str, Any]:
  """The experiment: train, evaluate, time, sample, write.

  Raises:
    OSError: the text can't be read.
    ValueError: the text or the workdir don't go with the flags.
    FloatingPointError: a loss was not finite.
  """
  begin = time.perf_counter()
  corpus = texts.load(config.text, config.data_dir, config.level)
  training = start(corpus, config)
  rows: list[dict[str, float]] = []
  path = experiment.folder(workdir)
  save = lambda training, rows: None
  if path is not None:
    checkpoints = experiment.Checkpoints(path, config, _LOCAL)
    training, rows = resume(checkpoints, config, training)

    def save(training: Training, rows: Rows) -> None:
      shape = [*training.params.embeddings.shape]
      about = {"rows": rows, "embeddings": shape}
      checkpoints.save(len(rows), training, about)

  done_before = len(rows)
  training, rows = train(corpus, config, training, rows, save)
  if path is not None:
    checkpoints.close()
  params = training.params
  validation_loss = rows[-1]["validation_loss"]
  test_loss = evaluation(config, corpus.test)(params)
  times = pass_times(params, corpus.train.tokens)
  key = jax.random.fold_in(jax.random.key(config.seed), 1)
  drawn = np.asarray(
    jax.jit(model.sample, static_argnums=2)(params, key, _SAMPLE)
  )
  result = {
    "text": config.text or config.data_dir or "pydoc_data.topics",
    "level": config.level,
    "vocabulary": len(corpus.vocabulary),
    "train_tokens": len(corpus.train.tokens),
    "test_tokens": len(corpus.test.tokens),
    "parameters": sum(leaf.size for leaf in jax.tree.leaves(params)),
    "steps": config.steps,
    "resumed_from": done_before,
    "validation_bits_per_character": bits_per_character(
      validation_loss, corpus.validation
    ),
    "test_bits_per_character": bits_per_character(test_loss, corpus.test),
    "validation_perplexity": math.exp(validation_loss),
    "test_perplexity": math.exp(test_loss),
    "seconds_per_step": statistics.median(row["seconds"] for row in rows),
    "backward_exponent": exponent(times),
    **{
      f"{name}_microseconds_per_token_of_{row['tokens']}": 1e6
      * row[f"{name}_seconds"]
      / row["tokens"]
      for row in (times[0], times[-1])
      for name in ("forward", "backward")
    },
    "sample": texts.join([corpus.vocabulary[i] for i in drawn], config.level),
    "seconds": time.perf_counter() - begin,
  }
  if path is not None:
    write(path, rows, times, result)
  return result


def report(result: dict[str, Any]) -> str:
  """The result for people."""
  r = result
  resumed = r["resumed_from"]
  origin = f" ({resumed} of them done before)" if resumed else ""
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
  experiment.start(
    lambda: report(run(experiment.settings(Config), _WORKDIR.value))
  )
