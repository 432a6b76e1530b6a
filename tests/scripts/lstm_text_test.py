"""The language model against a plain loop, and the script as users run it."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

WORDS = "the cat sat on the mat and the dog sat on the log".split()
SMALL = (
  "--steps=30",
  "--batch_size=4",
  "--window=8",
  "--embedding_size=12",
  "--hidden_size=16",
)


@pytest.fixture(scope="module")
def model(load):
  return load("text.model")


@pytest.fixture
def folder(tmp_path):
  rng = np.random.default_rng(0)
  for name, count in (("text.txt", 1000), ("short.txt", 30)):
    lines = [" ".join(rng.choice(WORDS, 8)) for _ in range(count // 8)]
    (tmp_path / name).write_text("\n".join(lines))
  return tmp_path


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


@pytest.mark.slow
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
def test_learns_resumes_and_writes(script, folder):
  script = script.at(folder / "out")
  flags = f"--text={folder}/text.txt", *SMALL
  done = script.run(*flags)
  assert done.stderr == ""  # no progress bar: it is not a terminal
  assert "bits per character" in done.stdout
  result, rows = script.result(), script.rows()
  assert [int(row["step"]) for row in rows] == list(range(30))
  vocabulary = result["vocabulary"]
  assert float(rows[0]["loss"]) == pytest.approx(math.log(vocabulary), abs=0.5)
  assert result["test_perplexity"] < vocabulary / 1.5
  assert result["test_bits_per_character"] == pytest.approx(
    math.log2(result["test_perplexity"])
  )
  assert sum(bool(row["validation_loss"]) for row in rows) == 10
  assert len(result["sample"]) == 400
  assert script.figures() >= {"loss", "backward_time"}

  script.resume(*flags)  # after the ninth of ten checkpoints
  resumed = script.result()
  assert resumed["resumed_from"] == 27
  assert resumed["sample"] == result["sample"]
  assert resumed["test_perplexity"] == result["test_perplexity"]
  losses = [row["loss"] for row in script.rows()]
  assert losses == [row["loss"] for row in rows]
  assert "--seed=0 there, --seed=1 now" in script.fails(*flags, "--seed=1")


@pytest.mark.slow
def test_a_corpus_of_words(script, folder):
  text = (folder / "text.txt").read_text()
  data = folder / "corpus"
  data.mkdir()
  for part in ("train", "valid", "test"):
    (data / f"wiki.{part}.tokens").write_text(text)
  script = script.at(folder / "out")
  script.run(f"--data_dir={data}", "--level=word", *SMALL)
  result = script.result()
  words = text.replace("\n", " <eos> ").split() + ["<eos>"]
  assert result["test_tokens"] == len(words)
  assert result["vocabulary"] == len({*words, "<unk>"})
  bits = math.log2(result["test_perplexity"]) * len(words) / len(text)
  assert result["test_bits_per_character"] == pytest.approx(bits)
  assert set(result["sample"].split()) <= {*WORDS, "<unk>"}


@pytest.mark.slow
def test_a_training_that_explodes_stops(script, folder):
  flags = f"--text={folder}/text.txt", *SMALL, "--learning_rate=1e30"
  error = script.at(folder / "out").stops(*flags)
  assert "error: the loss of step" in error
  assert "lower --learning_rate" in error


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
def test_a_wrong_flag_is_named(script, folder, flags, message):
  flags = [flag.format(tmp=folder) for flag in flags]
  assert message in script.fails(*flags)
