"""The language model, its weight gradients, and the script as users run it."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.special

import revmom

SMALL = (
  "--steps=10",
  "--examples=20",
  "--validation_examples=7",
  "--batch_size=4",
  "--context=8",
  "--width=8",
)


@pytest.fixture(scope="module")
def transformer(load):
  return load("attribution.network")


@pytest.mark.slow
def test_no_output_depends_on_a_later_token(transformer):
  sizes = transformer.Sizes(11, context=6, width=8, layers=2, heads=2)
  tokens = np.array([[3, 1, 4, 1, 5, 9]], np.int32)

  @jax.jit
  def derivatives(key):
    params = transformer.init(key, sizes)
    scores = lambda x: transformer.read_out(
      params, transformer.hidden(params, x[None])
    )[0]
    return jax.jacobian(scores)(transformer.embed(params, tokens)[0])

  jacobian = np.asarray(derivatives(jax.random.key(0)))
  assert jacobian.shape == (6, 11, 6, 8)
  strength = np.abs(jacobian).sum((1, 3))  # [output, input]
  later = np.triu(np.ones((6, 6), bool), 1)
  np.testing.assert_array_equal(strength[later], 0)
  assert (strength[~later] > 0).all()


@pytest.mark.slow
def test_an_untrained_model_knows_nothing_and_may_read_less(transformer):
  sizes = transformer.Sizes(50, context=16, width=32, layers=3, heads=4)
  rng = np.random.default_rng(0)
  windows = rng.integers(0, 50, (64, 17)).astype(np.int32)

  @jax.jit
  def everything(key, windows):
    params = transformer.init(key, sizes)
    return (
      params,
      transformer.losses(params, windows),
      transformer.logits(params, windows[:, :-1]),
      transformer.logits(params, windows[:, :5]),
    )

  params, losses, scores, early = everything(jax.random.key(0), windows)
  assert params["blocks"]["mlp_in"].shape == (3, 32, 128)
  assert losses.shape == (64,) and losses.dtype == jnp.float32
  assert float(losses.mean()) == pytest.approx(np.log(50), abs=0.6)
  np.testing.assert_allclose(early, scores[:, :5], rtol=0, atol=1e-5)
  # A mean over the tokens of minus the log of their probability.
  logs = scipy.special.log_softmax(np.asarray(scores[0]), axis=-1)
  by_hand = -np.mean([logs[i, windows[0, i + 1]] for i in range(16)])
  assert float(losses[0]) == pytest.approx(by_hand, rel=1e-5)


def test_heads_must_share_the_width(transformer):
  for bad in ({"width": 9}, {"heads": 3}, {"layers": 0}):
    sizes = {"context": 4, "width": 8, "layers": 1, "heads": 2, **bad}
    with pytest.raises(ValueError, match="multiple of|at least 1"):
      transformer.init(jax.random.key(0), transformer.Sizes(5, **sizes))


@pytest.mark.slow
def test_gradient_by_weights_equals_central_differences(transformer, x64):
  sizes = transformer.Sizes(7, context=5, width=4, layers=1, heads=2)
  params = jax.tree.map(
    lambda array: array.astype(jnp.float64),
    transformer.init(jax.random.key(0), sizes),
  )
  rng = np.random.default_rng(0)
  draw = lambda *shape: jnp.asarray(rng.integers(0, 7, shape), jnp.int32)
  train, validation = draw(6, 6), draw(4, 6)
  indices = jnp.asarray(rng.integers(0, 6, (12, 3)), jnp.int32)
  optimizer = revmom.adamw(
    jnp.linspace(0.02, 0.001, 12),
    b2=0.99,
    eps_root=1e-6,
    weight_decay=0.1,
    clip=0.3,  # of norms between 0.2 and 1.3
    grid=revmom.Grid(grid=revmom.Grid(integer="int64")),
  )

  def loss_fn(params, indices, weights, train):
    losses = transformer.losses(params, train[indices])
    return jnp.mean(weights[indices] * losses)

  def objective(weights):
    run = revmom.train(loss_fn, optimizer, params, indices, weights, train)
    return transformer.losses(run.params, validation).mean()

  weights = jnp.asarray(rng.uniform(0.5, 1.5, 6))
  gradient = jax.jit(jax.grad(objective))(weights)
  assert gradient.dtype == jnp.float64
  value = jax.jit(objective)
  step = 1e-4
  differences = [
    (value(weights.at[i].add(step)) - value(weights.at[i].add(-step)))
    / (2 * step)
    for i in range(6)
  ]
  scale = float(jnp.abs(gradient).max())
  assert scale > 1e-3
  np.testing.assert_allclose(
    gradient, jnp.stack(differences), rtol=0, atol=1e-6 * scale
  )


@pytest.mark.slow
def test_predicts_what_leaving_out_does_and_goes_on(script, tmp_path):
  # Few steps are only smooth with a large eps_root: where a gradient is almost
  # zero, Adam's first steps are those of its sign.
  flags = *SMALL, "--eps_root=1e-3"
  script = script.at(tmp_path)
  done = script.run(*flags, "--leave_out=5", "--perturbation=0.1")
  assert done.stderr == ""  # no progress bar: it is not a terminal
  assert "correlation        Spearman" in done.stdout
  result, rows = script.result(), script.rows()
  assert result["spearman"] > 0.85 and result["pearson"] > 0.99
  assert result["slope"] == pytest.approx(1, abs=0.1)
  assert result["gradient_correlation_with_optax"] > 0.999
  assert result["rounding_noise"] < result["measured_std"] / 10
  assert result["resumed_from"] == 0
  assert [int(row["example"]) for row in rows] == list(range(20))
  assert sum(bool(row["measured_change"]) for row in rows) == 5
  for row in rows:
    predicted = -0.1 * float(row["gradient"])
    assert float(row["predicted_change"]) == pytest.approx(predicted)
  assert "attribution" in script.figures()

  script.run(*flags, "--leave_out=7", "--perturbation=0.1")
  assert script.result()["resumed_from"] == 5
  again = script.rows()
  assert sum(bool(row["measured_change"]) for row in again) == 7
  for row, before in zip(again, rows, strict=True):
    assert row["gradient"] == before["gradient"]
    assert before["measured_change"] in ("", row["measured_change"])
  error = script.fails(*flags, "--leave_out=7")
  assert "--perturbation=0.1 there, --perturbation=1.0 now" in error


@pytest.mark.slow
def test_a_training_that_explodes_stops(script, tmp_path):
  script = script.at(tmp_path)
  assert "error: " in script.stops(*SMALL, "--learning_rate=1e4")


@pytest.mark.sampled(1)
@pytest.mark.parametrize(
  ("flags", "message"),
  [
    (["--leave-out=3"], "Did you mean: leave_out"),
    (["--leave_out=1"], "leave_out"),
    (["--leave_out=30", "--examples=20"], "--examples=20; leave out fewer"),
    (["--text=absent.txt"], "absent.txt"),
    (["--text={tmp}/short.txt"], "lower --examples"),
    (["--text={tmp}/bytes.bin"], "not UTF-8"),
    (["--perturbation=0"], "changes nothing"),
    (["--clip=0"], "must be positive"),
    (["--width=33"], "multiple of"),
    (["shakespeare.txt"], "flags begin --"),
  ],
)
def test_a_wrong_flag_is_named(script, tmp_path, flags, message):
  (tmp_path / "short.txt").write_text("to be or not to be")
  (tmp_path / "bytes.bin").write_bytes(b"\xff\xfe\x00")
  flags = [flag.format(tmp=tmp_path) for flag in flags]
  assert message in script.fails(*flags)
