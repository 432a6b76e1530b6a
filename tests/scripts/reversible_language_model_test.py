"""Reversible language models, and the script as users run it."""

import jax
import numpy as np
import pytest

from revmom import depth

SMALL = (
  "--steps=4",
  "--batch_size=4",
  "--window=8",
  "--embedding_size=6",
  "--hidden_size=8",
  "--limits=3",
)


@pytest.fixture(scope="module")
def networks(load):
  return load("reversible_text.networks")


def test_windows_go_on_where_they_end(load):
  learning = load("reversible_text.learning")
  tokens, following = learning.windows(np.arange(50), 2, 7)
  assert tokens.shape == following.shape == (3, 7, 2)
  np.testing.assert_array_equal(tokens + 1, following)
  first = np.asarray(tokens)[:, :, 0].ravel()
  np.testing.assert_array_equal(first, np.arange(21))
  with pytest.raises(ValueError, match="lower --batch_size or --window"):
    learning.windows(np.arange(14), 2, 7)


@pytest.mark.parametrize("cell", ["revgru", "revlstm"])
def test_losses_are_those_of_outputs_that_are_kept(networks, cell):
  network = networks.Network(cell, 3.0)
  params = network.init(jax.random.key(0), 7, 6, 8)
  tokens = np.random.default_rng(0).integers(0, 7, (10, 3)).astype(np.int32)

  @jax.jit
  def both(params, tokens):
    window = tokens[:-1], tokens[1:]
    losses, _ = network.losses(params, window, network.start(params, 3))
    outputs, _ = getattr(depth, cell).apply(
      params.cell, params.embeddings[window[0]]
    )
    scores = outputs @ params.readout + params.bias
    found = jax.nn.log_softmax(scores)
    return losses, found

  losses, found = both(params, tokens)
  expected = -np.take_along_axis(found, tokens[1:, :, None], 2)[..., 0]
  np.testing.assert_allclose(losses, expected, rtol=1e-5)


@pytest.mark.slow
def test_writes_and_resumes(script, tmp_path):
  script = script.at(tmp_path)
  done = script.run(*SMALL)
  result, rows = script.result(), script.rows()
  assert len(rows) == 4 * 4  # models, steps
  for name in ("gru", "lstm", "revgru_3", "revlstm_3"):
    assert name in done.stdout
    assert 1 < result[f"{name}_test_perplexity"] < 2 * result["vocabulary"]
  for name, most in (("revgru_3", 3), ("revlstm_3", 6)):
    assert 0 <= result[f"{name}_bits"] <= most
    assert result[f"{name}_memory_ratio"] > 1
  assert script.figures() >= {"limits"}
  script.resume(*SMALL)
  assert script.result()["resumed_from"] == 3
