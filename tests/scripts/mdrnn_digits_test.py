"""The classifier's adjoints, and the script as users run it."""

import gzip
import math
import struct

import jax
import jax.numpy as jnp
import numpy as np
import pytest

SMALL = "--hidden_sizes=2,3", "--batch_size=20", "--steps=20"


@pytest.fixture(scope="module")
def model(load):
  return load("digits.classifier")


@pytest.mark.slow
def test_blocks_of_positions_become_one(model):
  images = np.arange(2 * 3 * 5, dtype=np.float32).reshape(2, 3, 5)
  grid = np.asarray(model.positions(jnp.asarray(images)))
  assert grid.shape == (4, 6, 2, 1)  # padded to whole blocks
  np.testing.assert_array_equal(grid[:3, :5, :, 0], images.transpose(1, 2, 0))
  assert not grid[3].any() and not grid[:, 5].any()

  params = model.init(jax.random.key(0), 4, (1, 4))
  # Each of the four positions goes to a feature of its own.
  to_features = jnp.eye(4) / 30
  params = params._replace(blocks=to_features)
  merged = np.arctanh(model.merge_blocks(params, jnp.asarray(grid)))
  for row, column in np.ndindex(2, 3):
    block = grid[2 * row : 2 * row + 2, 2 * column : 2 * column + 2, :, 0]
    np.testing.assert_allclose(
      merged[row, column] * 30, block.reshape(4, 2).T, atol=1e-4
    )


def plain_logits(model, params, images, moved):
  """The classifier in NumPy, cell by cell.

  `moved` is (level, direction, row, column, image, unit, size): what is added
  to the memory of one cell.
  """
  sigmoid = lambda x: 1 / (1 + np.exp(-x))

  def sweep(level, params, direction, xs):
    height, width, batch, _ = xs.shape
    size = params.recurrent_weights.shape[1]
    h, c = np.zeros((2, height + 2, width + 2, batch, size))
    for i in range(height)[:: direction[0]]:
      for j in range(width)[:: direction[1]]:
        before = (i + 1 - direction[0], j + 1), (i + 1, j + 1 - direction[1])
        a = xs[i, j] @ params.input_weights + params.bias
        for at, weights in zip(before, params.recurrent_weights, strict=True):
          a = a + h[at] @ weights
        g, i_, o, f1, f2 = np.split(a, 5, -1)
        c[i + 1, j + 1] = sigmoid(i_) * np.tanh(g)
        for at, f in zip(before, (f1, f2), strict=True):
          c[i + 1, j + 1] += sigmoid(f) * c[at]
        if moved and moved[:4] == (level, direction, i, j):
          c[i + 1, j + 1, moved[4], moved[5]] += moved[6]
        h[i + 1, j + 1] = sigmoid(o) * np.tanh(c[i + 1, j + 1])
    return h[1:-1, 1:-1]

  def all_corners(level, params, xs):
    return np.concatenate(
      [
        sweep(level, p, direction, xs)
        for p, direction in zip(params, model.DIRECTIONS, strict=True)
      ],
      -1,
    )

  params = jax.tree.map(lambda leaf: np.asarray(leaf, np.float64), params)
  ys = all_corners(0, params.first, images.transpose(1, 2, 0)[..., None])
  blocks = np.concatenate(
    [ys[i::2, j::2] for i in range(2) for j in range(2)], -1
  )
  xs = np.tanh(blocks @ params.blocks + params.blocks_bias)
  pooled = all_corners(1, params.second, xs).mean((0, 1))
  return pooled @ params.read_out + params.read_out_bias


@pytest.mark.slow
def test_logits_and_adjoints_are_those_of_plain_loops(model):
  params = model.init(jax.random.key(0), 3, (2, 3))
  rng = np.random.default_rng(0)
  images = rng.uniform(size=(2, 4, 6))
  labels = np.array([2, 0], np.int32)
  on_device = jnp.asarray(images, jnp.float32)
  np.testing.assert_allclose(
    jax.jit(model.logits)(params, on_device),
    plain_logits(model, params, images, None),
    rtol=1e-4,
    atol=1e-5,
  )
  adjoints = jax.jit(model.adjoints)(params, on_device, jnp.asarray(labels))
  assert adjoints.first.shape == (4, 4, 6, 2, 2)
  assert adjoints.second.shape == (4, 2, 3, 2, 3)
  step = 1e-5
  for level, bars in enumerate(adjoints):
    for number in range(4):  # of directions
      place = [int(rng.integers(size)) for size in bars.shape[1:]]
      row, column, image, unit = place
      moved = level, model.DIRECTIONS[number], row, column, image, unit
      logit = lambda size, moved=moved, image=image: plain_logits(
        model, params, images, (*moved, size)
      )[image, labels[image]]
      difference = (logit(step) - logit(-step)) / (2 * step)
      assert difference != 0
      np.testing.assert_allclose(
        bars[number, *place], difference, rtol=1e-3, atol=1e-6
      )


@pytest.mark.slow
def test_cells_that_no_gradient_reaches(load, model):
  script = load("mdrnn_digits")
  params = model.init(jax.random.key(0), 3, (2, 3))
  rng = np.random.default_rng(0)
  images, labels = rng.uniform(size=(2, 4, 6)).astype(np.float32), np.arange(2)
  norms, without = script.reached(params, images, labels)
  assert without == 0 and norms.first.shape == (4, 4, 6)
  images[1] *= 1e6  # its gates are zeros and ones
  norms, without = script.reached(params, images, labels)
  assert 0 < without < 0.5 and norms.first.min() > 0
  apart = params._replace(read_out=jnp.zeros_like(params.read_out))
  with pytest.raises(RuntimeError, match="first level's sweep .* all of 2"):
    script.reached(apart, images, labels)


@pytest.mark.slow
def test_learns_resumes_and_writes(script, tmp_path):
  script = script.at(tmp_path)
  done = script.run(*SMALL)
  assert done.stderr == ""  # no progress bar: it is not a terminal
  assert "reaches every position" in done.stdout
  result, rows = script.result(), script.rows()
  assert [int(row["step"]) for row in rows] == list(range(20))
  assert float(rows[0]["loss"]) == pytest.approx(math.log(10), abs=0.3)
  assert float(rows[-1]["loss"]) < float(rows[0]["loss"])
  assert sum(bool(row["validation_loss"]) for row in rows) == 10
  assert result["share_of_cells_without_gradient"] == 0
  # One of 300 test images is a third of a percent.
  right = 300 * result["test_accuracy"]
  assert right == pytest.approx(round(right), abs=1e-6)
  assert script.figures() >= {"loss", "gradients"}

  script.resume(*SMALL)  # after the ninth of ten checkpoints
  resumed = script.result()
  assert resumed["resumed_from"] == 18
  for name in ("test_loss", "test_accuracy", "first_level_adjoints_least"):
    assert resumed[name] == result[name]
  assert "--seed=0 there, --seed=1 now" in script.fails(*SMALL, "--seed=1")


@pytest.mark.slow
def test_idx_files_of_an_odd_size(script, tmp_path):
  rng = np.random.default_rng(0)
  for prefix, count in (("train", 40), ("t10k", 7)):
    labels = rng.integers(0, 3, count, np.uint8)
    images = rng.integers(0, 99, (count, 5, 3), np.uint8) + 50 * labels[
      :, None, None
    ].astype(np.uint8)
    for name, array in (("images-idx3", images), ("labels-idx1", labels)):
      header = struct.pack(
        f">4B{array.ndim}I", 0, 0, 8, array.ndim, *array.shape
      )
      path = tmp_path / f"{prefix}-{name}-ubyte.gz"
      path.write_bytes(gzip.compress(header + array.tobytes()))
  script = script.at(tmp_path / "out")
  script.run("--dataset=mnist", f"--data_dir={tmp_path}", *SMALL)
  result = script.result()
  assert result["dataset"] == "mnist"
  right = 7 * result["test_accuracy"]
  assert right == pytest.approx(round(right), abs=1e-6)


@pytest.mark.slow
def test_a_training_that_explodes_stops(script, tmp_path):
  flags = *SMALL, "--learning_rate=1e38"
  assert "lower --learning_rate" in script.at(tmp_path).stops(*flags)


@pytest.mark.sampled(1)
@pytest.mark.parametrize(
  ("flags", "message"),
  [
    (["--hidden-sizes=3,4"], "Did you mean: hidden_sizes"),
    (["--hidden_sizes=8"], "--hidden_sizes=8; expected two numbers"),
    (["--hidden_sizes=8,0"], "expected integers between commas"),
    (["--dataset=mnist"], "needs --data_dir"),
  ],
)
def test_a_wrong_flag_is_named(script, flags, message):
  assert message in script.fails(*flags)
