"""Runs scripts/edit_history.py as a user would."""

import numpy as np
import pytest

TINY = "--steps=40", "--back=7", "--batch_size=5", "--hidden=4"


def test_edits_are_exact(load):
  """Without a figure, in this process."""
  problems, edits = load("editing.problem"), load("editing.edits")
  config = problems.Config(steps=30, back=7, batch_size=5, hidden=4)
  problem = problems.pose(config)
  spike = edits.take_back_a_spike(problem, config)
  assert spike.same and spike.step == 23
  assert len(spike.edited) == 6
  # The broken batch has gone: what follows it comes in its place.
  assert spike.edited[0] != spike.losses[23]
  images, labels, weights = problem.without(int(problem.indices[3, 2]))
  assert weights[3, 2] == 0 and weights.sum() < weights.size
  np.testing.assert_array_equal(images, problem.batches[0])
  wrong = problem.renamed(10)[1]
  np.testing.assert_array_equal(wrong[:10], labels[:10])
  assert not np.any(wrong[10:] == problems.RENAMED[0])


@pytest.mark.slow
def test_all_edits(script, tmp_path):
  script = script.at(tmp_path)
  done = script.run(*TINY)
  assert done.stderr == ""
  result = script.result()
  assert result["spike_integers_same"] and result["unlearning_integers_same"]
  assert result["bisection_exact"] and result["spike_at"] == 33
  assert result["example_uses"] >= 1
  assert result["metric_before"] >= result["metric_there"]
  assert 0 < result["bits_per_parameter_and_step"] < 1
  assert len(script.rows()) == 40 and script.figures() == {"edits"}
  first = result["example_first_seen"]
  for row in script.rows()[:first]:
    assert row["plain"] == row["unlearned"]
  assert script.rows()[first]["plain"] != script.rows()[first]["unlearned"]


def test_a_spike_within_the_run(script):
  assert "--back=40: a spike is noticed after" in script.fails(
    "--steps=40", "--back=40"
  )
