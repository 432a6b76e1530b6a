"""The language model against a plain loop, and the script as users run it."""

import csv
import importlib.util
import json
import math
import pathlib
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest

SCRIPTS = pathlib.Path(__file__).parents[2] / "scripts"
PNG = b"\x89PNG"
WORDS = "the cat sat on the mat and the dog sat on the log".split()
SMALL = (
  "--text={tmp}/text.txt",
  "--steps=30",
  "--batch_size=4",
  "--window=8",
  "--embedding_size=12",
  "--hidden_size=16",
)


@pytest.fixture(scope="module")
def model():
  path = SCRIPTS / "lstm_language_model.py"
  spec = importlib.util.spec_from_file_location("script_language_model", path)
  module = importlib.util.module_from_spec(spec)
  spec.loader.exec_module(module)
  return module


@pytest.fixture
def folder(tmp_path):
  rng = np.random.default_rng(0)
  for name, count in (("text.txt", 1000), ("short.txt", 30)):
    lines = [" ".join(rng.choice(WORDS, 8)) for _ in range(count // 8)]
    (tmp_path / name).write_text("\n".join(lines))
  return tmp_path


def run(env, folder, *flags):
  flags = [flag.format(tmp=folder) for flag in flags]
  return subprocess.run(
    [sys.executable, str(SCRIPTS / "lstm_text.py"), *flags],
    env=env,
    capture_output=True,
    text=True,
    timeout=280,
  )


def result_of(workdir):
  return json.loads((workdir / "result.json").read_text())


def rows_of(workdir):
  with open(workdir / "metrics.csv", newline="") as file:
    return list(csv.DictReader(file))


def plain_losses(params, tokens):
  """-log softmax(e . h_{t-1})[w_t], in NumPy, one token after the other."""
  sigmoid = lambda x: 1 / (1 + np.exp(-x))
  e = np.asarray(params.embeddings)
  cell = jax.tree.map(np.asarray, params.cell)
  h, c = cell.initial_carry
  values = []
  for token in tokens:
    scores = e @ h
    values.append(np.log(np.exp(scores).sum()) - scores[token])
    gates = e[token] @ cell.input_weights + h @ cell.recurrent_weights
    i, f, o, g = np.split(gates + cell.bias, 4)
    c = sigmoid(f) * c + sigmoid(i) * np.tanh(g)
    h = sigmoid(o) * np.tanh(c)
    if cell.projection is not None:
      h = h @ cell.projection
  return np.array(values)


@pytest.mark.parametrize("hidden_size", [5, 7])
def test_probabilities_are_those_of_a_plain_loop(model, hidden_size):
  params = model.init(jax.random.key(0), 11, 5, hidden_size)
  # A state that is learned, so neither zero nor the same for h and c.
  learned = jax.tree.map(
    lambda zeros: jnp.linspace(-0.5, 0.7, zeros.size),
    params.cell.initial_carry,
  )
  params = params._replace(cell=params.cell._replace(initial_carry=learned))
  tokens = np.random.default_rng(0).integers(0, 11, (9, 3)).astype(np.int32)
  # In two windows, with the state carried from one to the next.
  carry = model.initial(params, 3)
  first, carry = model.losses(params, tokens[:4], carry)
  second, _ = model.losses(params, tokens[4:], carry)
  losses = np.concatenate([first, second])
  for i in range(3):
    expected = plain_losses(params, tokens[:, i])
    np.testing.assert_allclose(losses[:, i], expected, rtol=1e-5)


def test_a_sample_has_the_probabilities_of_the_model(model):
  params = model.init(jax.random.key(1), 3, 4, 4)
  keys = jax.random.split(jax.random.key(0), 4000)
  drawn = np.asarray(jax.vmap(lambda key: model.sample(params, key, 2))(keys))
  for pair in np.ndindex(3, 3):
    expected = np.exp(-plain_losses(params, pair).sum())
    share = (drawn == pair).all(1).mean()
    assert share == pytest.approx(
      expected, abs=5 * math.sqrt(expected / len(drawn))
    )


@pytest.mark.slow
def test_learns_resumes_and_writes(user_env, folder):
  workdir = folder / "out"
  flags = *SMALL, f"--workdir={workdir}"
  done = run(user_env, folder, *flags)
  assert done.returncode == 0, done.stderr
  assert done.stderr == ""  # no progress bar: it is not a terminal
  assert "bits per character" in done.stdout
  result = result_of(workdir)
  rows = rows_of(workdir)
  assert [int(row["step"]) for row in rows] == list(range(30))
  vocabulary = result["vocabulary"]
  assert float(rows[0]["loss"]) == pytest.approx(math.log(vocabulary), abs=0.5)
  assert result["test_perplexity"] < vocabulary / 1.5
  assert result["test_bits_per_character"] == pytest.approx(
    math.log2(result["test_perplexity"])
  )
  assert sum(bool(row["validation_loss"]) for row in rows) == 10
  assert len(result["sample"]) == 400
  for name in ("loss.png", "backward_time.png"):
    assert (workdir / name).read_bytes().startswith(PNG)

  # As if it had been killed after the ninth of ten checkpoints.
  (workdir / "checkpoint" / "30").rename(folder / "gone")
  (workdir / "result.json").unlink()
  again = run(user_env, folder, *flags)
  assert again.returncode == 0, again.stderr
  resumed = result_of(workdir)
  assert resumed["resumed_from"] == 27
  assert resumed["sample"] == result["sample"]
  assert resumed["test_perplexity"] == result["test_perplexity"]
  assert [row["loss"] for row in rows_of(workdir)] == [
    row["loss"] for row in rows
  ]

  other = run(user_env, folder, *flags, "--seed=1")
  assert other.returncode == 1
  assert "--seed=0 there, --seed=1 now" in other.stderr


@pytest.mark.slow
def test_a_corpus_of_words(user_env, folder):
  text = (folder / "text.txt").read_text()
  data = folder / "corpus"
  data.mkdir()
  for part in ("train", "valid", "test"):
    (data / f"wiki.{part}.tokens").write_text(text)
  flags = "--data_dir={tmp}/corpus", "--level=word", *SMALL[1:]
  done = run(user_env, folder, *flags, f"--workdir={folder / 'out'}")
  assert done.returncode == 0, done.stderr
  result = result_of(folder / "out")
  words = text.replace("\n", " <eos> ").split() + ["<eos>"]
  assert result["test_tokens"] == len(words)
  assert result["vocabulary"] == len({*words, "<unk>"})
  bits = math.log2(result["test_perplexity"]) * len(words) / len(text)
  assert result["test_bits_per_character"] == pytest.approx(bits)
  assert set(result["sample"].split()) <= {*WORDS, "<unk>"}


@pytest.mark.slow
def test_a_training_that_explodes_stops(user_env, folder):
  workdir = folder / "out"
  flags = *SMALL, "--learning_rate=1e30", f"--workdir={workdir}"
  done = run(user_env, folder, *flags)
  assert done.returncode == 1
  assert "error: the loss of step" in done.stderr
  assert "lower --learning_rate" in done.stderr
  assert not (workdir / "result.json").exists()


@pytest.mark.sampled(1)
@pytest.mark.parametrize(
  ("flags", "message"),
  [
    (["--hidden-size=3"], "Did you mean: hidden_size"),
    (["--level=words"], "<character|word>"),
    (["--text={tmp}/short.txt"], "lower --batch_size"),
    (["--text={tmp}/short.txt", "--data_dir={tmp}"], "give one file"),
    (["--clip=0"], "must be positive"),
  ],
)
def test_a_wrong_flag_is_named(user_env, folder, flags, message):
  done = run(user_env, folder, *flags)
  assert done.returncode != 0
  assert message in done.stdout + done.stderr
