"""The ledger of a descent against dense determinants, and the script."""

from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.flatten_util import ravel_pytree

from revmom.jacobian import lanczos_quadrature


def numpy_log_likelihoods(params, inputs, targets):
  w0, b0, w1, b1 = (np.asarray(p, np.float64) for p in params)
  found = np.tanh(inputs @ w0 + b0) @ w1 + b1
  if targets.dtype.kind == "i":
    logs = found - np.log(np.exp(found).sum(1, keepdims=True))
    return logs[np.arange(len(targets)), targets]
  return -((found[:, 0] - targets) ** 2) - 0.5 * np.log(2 * np.pi)


@pytest.mark.parametrize("classes", [False, True])
def test_likelihoods_are_numpys(load, classes):
  training = load("duvenaud2016.training")
  rng = np.random.default_rng(0)
  shapes = (3, 4), (4,), (4, 2 if classes else 1), (2 if classes else 1,)
  params = [rng.normal(size=s).astype(np.float32) for s in shapes]
  inputs = rng.normal(size=(6, 3)).astype(np.float32)
  targets = rng.normal(size=6).astype(np.float32)
  if classes:
    targets = rng.integers(0, 2, 6).astype(np.int32)
  examples = training.Examples(inputs, targets)
  found = training.log_likelihoods(params, examples)
  expected = numpy_log_likelihoods(params, inputs, targets)
  np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("threshold", [0.0, 0.7])
def test_a_step_and_its_determinant_are_those_of_the_formula(
  load, x64, threshold
):
  training = load("duvenaud2016.training")
  rng = np.random.default_rng(1)
  params = [jnp.asarray(rng.normal(size=s)) for s in ((3, 2), (2,))]
  inputs, targets = rng.normal(size=(5, 3)), rng.normal(size=(5, 2))

  def loss(params):
    return jnp.sum(jnp.cos(jnp.tanh(inputs @ params[0] + params[1]) - targets))

  rate, g0 = jnp.float64(0.3), jnp.float64(threshold)
  flat, unravel = ravel_pytree(params)

  def formula(flat):
    g = jax.grad(lambda flat: loss(unravel(flat)))(flat)
    damped = g - threshold * jnp.tanh(g / threshold) if threshold else g
    return flat - 0.3 * damped

  done = training.descend(params, loss, rate, g0)
  np.testing.assert_allclose(ravel_pytree(done.after)[0], formula(flat))
  jacobian = np.asarray(jax.jacfwd(formula)(flat))
  expected = np.linalg.slogdet(jacobian)[1]
  size = flat.size
  estimator = lanczos_quadrature(size, size)  # exact
  found = done.curvature(estimator, jax.random.key(0))
  np.testing.assert_allclose(found.value, expected, rtol=1e-9)
  assert abs(expected) > 0.1
  # T^2 H has the eigenvalues of T H T.
  eigenvalues = np.linalg.eigvals(np.eye(size) - jacobian).real
  np.testing.assert_allclose(
    done.largest_eigenvalue(jax.random.key(1)), eigenvalues.max(), rtol=1e-6
  )


@pytest.mark.slow
def test_the_entropy_of_a_run_is_that_of_its_dense_jacobian(load):
  training = load("duvenaud2016.training")
  # The same example over and over, so that all batches are alike.
  inputs = np.tile(np.float32([[0.7, -1.2]]), (4, 1))
  examples = training.Examples(inputs, np.ones(4, np.int32))
  sizes, scale, rate, threshold = (2, 2, 2), 0.8, 0.5, 0.3
  problem = training.Problem(
    sizes, examples, examples, scale, rate, 2, threshold
  )
  runs = 200
  keys = jax.random.split(jax.random.key(0), runs)
  states = jax.vmap(lambda key: training.initial(problem, key))(keys)
  numbers = np.int32(0), np.float32(rate), np.float32(threshold)
  after = training.advance(
    states, examples, keys, *numbers, length=5, batch_size=2
  )
  measured = training.measure(problem, after, keys)

  def five_steps(flat):
    for _ in range(5):
      w0, b0, w1, b1 = jnp.split(flat, np.array([4, 6, 10]))

      def loss(w0, b0, w1, b1):
        units = jnp.tanh(inputs[0] @ w0.reshape(2, 2) + b0)
        return -4 * jax.nn.log_softmax(units @ w1.reshape(2, 2) + b1)[1]

      g = jnp.concatenate(jax.grad(loss, (0, 1, 2, 3))(w0, b0, w1, b1))
      flat = flat - rate / 4 * (g - threshold * jnp.tanh(g / threshold))
    return flat

  starts = jnp.concatenate([p.reshape(runs, -1) for p in states.params], 1)
  ends = jnp.concatenate([p.reshape(runs, -1) for p in after.params], 1)
  np.testing.assert_allclose(
    jax.jit(jax.vmap(five_steps))(starts), ends, rtol=1e-4, atol=1e-5
  )
  dense = jax.jit(jax.vmap(jax.jacfwd(five_steps)))(starts)
  log_dets = np.linalg.slogdet(np.asarray(dense, np.float64))[1]
  entropy = 12 * (0.5 + 0.5 * np.log(2 * np.pi) + np.log(scale)) + log_dets
  assert np.abs(log_dets).max() > 1
  apart = np.asarray(measured.entropy - entropy / 4, np.float64)
  assert abs(apart.mean()) < 4 * apart.std() / runs**0.5
  variances = np.asarray(measured.entropy_stderr, np.float64) ** 2
  assert 0.5 < variances.mean() / apart.var() < 2
  covered = (measured.entropy_low <= entropy / 4) & (
    measured.entropy_high >= entropy / 4
  )
  # Few steps of two directions each, whose forms are far from normal.
  assert covered.mean() > 0.85

  w = np.asarray(ends, np.float64)
  log_prior = -0.5 * (w**2).sum(1) / scale**2 - 12 * np.log(
    scale * np.sqrt(2 * np.pi)
  )
  np.testing.assert_allclose(measured.log_prior, log_prior / 4, rtol=1e-4)
  likelihoods = [
    numpy_log_likelihoods(
      [p[run] for p in after.params], inputs, examples.targets
    ).mean()
    for run in range(6)
  ]
  np.testing.assert_allclose(
    measured.train_likelihood[:6], likelihoods, rtol=1e-4
  )


def test_determinants_in_the_plane_are_those_of_differences(load):
  funnel = load("duvenaud2016.funnel")
  points = np.array([[-0.5, 0.3], [1.0, 1.5]])
  steps, g0, h = 4, 0.25, 1e-5

  def energy(x):
    mean, log_std = x
    std = np.exp(log_std)
    return log_std + 0.5 * (mean / (std + 0.01)) ** 2 + 0.1 / std

  def descend(x):
    for _ in range(steps):
      g = np.array(
        [(energy(x + d) - energy(x - d)) / 2e-6 for d in 1e-6 * np.eye(2)]
      )
      x = x - 0.01 * (g - g0 * np.tanh(g / g0))
    return x

  path = funnel.descend(points, steps, g0)
  assert path.points.shape == (5, 2, 2)
  for point, end, log_det in zip(
    points, path.points[-1], path.log_dets[-1], strict=True
  ):
    np.testing.assert_allclose(end, descend(point), rtol=1e-4)
    jacobian = [
      (descend(point + d) - descend(point - d)) / (2 * h) for d in h * np.eye(2)
    ]
    expected = np.linalg.slogdet(jacobian)[1]
    np.testing.assert_allclose(log_det, expected, rtol=5e-3)


def test_discs_and_their_outlines(load):
  funnel = load("duvenaud2016.funnel")
  radius = 1.5
  ring, disc = funnel.ring(radius), funnel.disc(radius)
  assert funnel.area(ring) == pytest.approx(np.pi * radius**2, rel=1e-3)
  moved = disc - np.array([-1.0, 1.0])
  second = (moved**2).mean(0)  # of a disc: radius^2 / 4 each way
  np.testing.assert_allclose(second, radius**2 / 4, rtol=1e-3)
  np.testing.assert_allclose(moved.mean(0), 0, atol=1e-12)


def test_tables_are_split_as_the_authors_do(load, tmp_path):
  data = load("duvenaud2016.data")
  rng = np.random.default_rng(0)
  table = rng.normal(size=(30, 14)) * 3 + 1
  text = "\n".join(" ".join(f"{v:.17g}" for v in row) for row in table)
  (tmp_path / "housing.data").write_text(text)
  train, test, scale, notes = data.table("housing", str(tmp_path))
  np.random.seed(2)
  order = np.random.choice(range(30), 30, replace=False)
  x, y = table[:, :-1], table[:, -1]
  x = x - np.mean(x[order[:3], :])
  x = x / np.std(x[order[:3], :])
  y = y - np.mean(y[order[:3]])
  y_std = np.std(y[order[:3]])
  np.testing.assert_allclose(train.inputs, x[order[:3]], rtol=1e-5)
  np.testing.assert_allclose(test.inputs, x[order[3:]], rtol=1e-5)
  np.testing.assert_allclose(test.targets, y[order[3:]] / y_std, rtol=1e-5)
  assert scale == pytest.approx(y_std) and notes == []


def test_tables_with_headers_and_without_numbers(load, tmp_path):
  read = load("duvenaud2016.data").read_table
  path = tmp_path / "housing.csv"
  path.write_text('"crim","medv"\n1.5,"2"\n\n3,4\n')
  np.testing.assert_array_equal(read(path, 2), [[1.5, 2], [3, 4]])
  for text, message in (
    ("1,2\n3,x\n", "row without numbers: 3,x"),
    ("1,2,3\n", "3 numbers in a row, expected 2"),
    ("a,b\n", "holds no numbers"),
  ):
    path.write_text(text)
    with pytest.raises(ValueError, match=message):
      read(path, 2)


@pytest.mark.parametrize("count", [60_000, 1200])
def test_images_are_the_papers_if_there_are_enough(load, monkeypatch, count):
  data = load("duvenaud2016.data")
  label = np.arange(count + 100, dtype=np.int32)
  image = lambda labels: (labels[:, None, None] / 1000).astype(np.float32)
  ends = [0, count - count // 6, count, count + 100]
  parts = [label[a:b] for a, b in zip(ends[:-1], ends[1:], strict=True)]
  arrays = [array for part in parts for array in (image(part), part)]
  loaded = data.image_data.Data(*arrays)
  monkeypatch.setattr(data.image_data, "load", lambda *_: loaded)
  train, test, notes = data.images("mnist", "folder", 70)
  if count == 60_000:
    np.testing.assert_array_equal(train.targets, label[:50_000])
    np.testing.assert_array_equal(test.targets, label[50_000:50_070])
  else:
    np.testing.assert_array_equal(train.targets, label[:1200])
    np.testing.assert_array_equal(test.targets, label[1200:1270])
    assert "1200 training images, the paper has 50 000" in notes[0]
  np.testing.assert_allclose(train.inputs.mean(), 0, atol=1e-3)
  np.testing.assert_allclose(test.inputs[1] - test.inputs[0], 1e-3, rtol=0.05)


def test_values_that_make_sense(load):
  networks = load("duvenaud2016.networks")
  config = lambda figure, *values: SimpleNamespace(
    figure=figure, dataset="mnist", values=values or None
  )
  of = networks.values_of
  assert of(config("5"), networks.HIDDEN_UNITS)[-1] == 3000
  assert of(config("6", 0.0, 2.5), {}) == [0, 2.5]
  for bad in (config("5", 3.0, 2.5), config("5", 0.0), config("6", -1.0)):
    with pytest.raises(ValueError, match="expected"):
      of(bad, {})
  with pytest.raises(ValueError, match="--values=2.5; expected numbers of hid"):
    of(config("5", 2.5), {})


@pytest.mark.slow
def test_when_to_stop_and_resuming(script, tmp_path):
  script = script.at(tmp_path)
  flags = "--steps=20", "--runs=2"
  done = script.run(*flags)
  assert done.stderr == ""  # no progress bar: it is not a terminal
  result, rows, bits = script.result(), script.rows(), script.bits()
  assert len(rows) == 2 * 21
  for row in rows:
    parts = ("train_likelihood", "log_prior", "entropy")
    total = sum(float(row[name]) for name in parts)
    assert float(row["marginal"]) == pytest.approx(total, abs=1e-6)
  marginals = [
    (float(a["marginal"]) + float(b["marginal"])) / 2
    for a, b in zip(rows[::2], rows[1::2], strict=True)
  ]
  assert result["best_marginal"] == pytest.approx(max(marginals))
  best = result["best_iteration"]
  assert best == int(rows[2 * int(np.argmax(marginals))]["iteration"]) > 0
  assert result["last_entropy_change"] < 0
  assert "figure_4" in script.figures()

  script.resume(*flags)
  assert script.bits() == bits
  assert "--seed=0 there, --seed=1 now" in script.fails(*flags, "--seed=1")


@pytest.mark.slow
@pytest.mark.parametrize(
  ("flags", "key"),
  [
    (["--figure=3", "--steps=20"], "friendly_entropy_change"),
    (["--figure=5", "--values=2", "--steps=3"], "marginal_2"),
  ],
)
def test_other_figures(script, tmp_path, flags, key):
  script = script.at(tmp_path)
  assert "published" in script.run(*flags).stdout
  assert np.isfinite(script.result()[key])
  assert f"figure_{flags[0][-1]}" in script.figures()


@pytest.mark.sampled(1)
@pytest.mark.parametrize(
  ("flags", "message"),
  [
    (["--figure=2"], "<1|3|4|5|6>"),
    (["--values=3"], "--values is for --figure=5 or 6"),
    (["--figure=1", "--dataset=mnist"], "of a density in the plane"),
    (["--figure=5", "--dataset=housing"], "is for --figure=4"),
  ],
)
def test_a_wrong_flag_is_named(script, flags, message):
  assert message in script.fails(*flags)
