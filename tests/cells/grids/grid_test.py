"""Plans, masks, skewing, and sweeps, against loops over positions."""

import itertools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from revmom.cells import grid
from revmom.cells.grids import grid_weights, sweep
from revmom.jacobian.program.control_flow import scan_form

SHAPES = [(5,), (3, 4), (4, 3), (1, 6), (2, 3, 4), (3, 1, 2), (2, 2, 3, 2)]


def count_paths(shape, direction, schedule, keep=lambda state: state):
  """A state is one more than the sum of its neighbours' states."""
  one = jnp.ones((*shape, 1, 1))
  recurrence = sweep.Recurrence(
    weights=(jnp.eye(1),) * len(shape),
    cell=lambda received, memories, local: received,
    message=lambda state: state,
    memory=lambda state, axis: None,
    boundary=jnp.zeros((1, 1)),
  )
  plan = grid.plan(len(shape), direction, schedule)
  return sweep.sweep(recurrence, one, None, plan, keep)[..., 0, 0]


def count_paths_in_a_loop(shape, direction):
  paths = np.zeros(shape)
  axes = [
    range(size) if d > 0 else reversed(range(size))
    for size, d in zip(shape, direction, strict=True)
  ]
  for position in itertools.product(*map(list, axes)):
    paths[position] = 1
    for axis, d in enumerate(direction):
      neighbour = position[axis] - d
      if 0 <= neighbour < shape[axis]:
        index = (*position[:axis], neighbour, *position[axis + 1 :])
        paths[position] += paths[index]
  return paths


@pytest.mark.sampled(6, rest="exhaustive")
@pytest.mark.parametrize("schedule", grid.SCHEDULES)
@pytest.mark.parametrize("shape", SHAPES)
def test_sweep_counts_paths(shape, schedule):
  for direction in grid.all_directions(len(shape))[:5]:
    with jax.disable_jit():
      paths = count_paths(shape, direction, schedule)
    np.testing.assert_array_equal(
      paths, count_paths_in_a_loop(shape, direction)
    )


def test_memories_come_from_the_neighbours():
  # What goes along an axis is marked with the axis, and nothing else goes.
  shape, direction = (2, 3), (1, -1)
  index = jnp.arange(1.0, 7.0).reshape(*shape, 1, 1)
  for schedule in grid.SCHEDULES:
    recurrence = sweep.Recurrence(
      weights=(jnp.zeros((1, 1)),) * 2,
      cell=lambda received, memories, local: jnp.concatenate(
        [local, *memories], -1
      ),
      message=lambda state: state[..., :1],
      memory=lambda state, axis: state[..., :1] * (-1.0) ** axis,
      boundary=jnp.zeros((1, 3)),
    )
    plan = grid.plan(2, direction, schedule)
    states = sweep.sweep(recurrence, jnp.zeros((*shape, 1, 1)), index, plan)
    own, above, right = jnp.moveaxis(states[..., 0, :], -1, 0)
    np.testing.assert_array_equal(own, [[1, 2, 3], [4, 5, 6]])
    np.testing.assert_array_equal(above, [[0, 0, 0], [1, 2, 3]])
    np.testing.assert_array_equal(right, [[-2, -3, 0], [-5, -6, 0]])


def test_wavefront_has_one_round_for_each_diagonal():
  shape = (3, 4, 5)
  program = jax.make_jaxpr(lambda: count_paths(shape, (1, -1, 1), "wavefront"))
  scans = [e for e in program().eqns if e.primitive.name == "scan"]
  assert [scan_form(e).length for e in scans] == [sum(shape) - len(shape) + 1]


@pytest.mark.parametrize("shape", SHAPES)
def test_skew_and_back(shape):
  values = jnp.arange(1.0, math.prod(shape) * 2 + 1).reshape(*shape, 2)
  skewed = sweep.skew(values, len(shape))
  expected = np.zeros((sum(shape) - len(shape) + 1, *shape[:-1], 2))
  for position in np.ndindex(*shape):
    expected[(sum(position), *position[:-1])] = values[position]
  np.testing.assert_array_equal(skewed, expected)
  np.testing.assert_array_equal(sweep.unskew(skewed, shape), values)


def test_plan_has_defaults():
  assert grid.plan(3).direction == (1, 1, 1)
  backend = jax.default_backend()
  assert grid.plan(1).schedule == ("rows" if backend == "cpu" else "wavefront")
  assert grid.plan(2, [1, -1], "rows").reversed().direction == (-1, 1)


@pytest.mark.parametrize("direction", [(1,), (1, 0), (1, 1, 1), (2, 1), ()])
def test_wrong_direction(direction):
  with pytest.raises(ValueError, match=r"\+1 or -1 for each of the 2 axes"):
    grid.plan(2, direction)


def test_wrong_schedule():
  with pytest.raises(ValueError, match="choose one of .*rows.*wavefront"):
    grid.plan(2, None, "diagonal")


def test_valid_cells():
  sizes = jnp.array([[2, 3], [0, 1], [1, 2]])
  valid = grid.valid_cells(sizes, (2, 3), 3)
  assert valid.shape == (2, 3, 3, 1)
  for row, column, example in np.ndindex(2, 3, 3):
    inside = row < sizes[example, 0] and column < sizes[example, 1]
    assert bool(valid[row, column, example, 0]) == bool(inside)
  assert grid.valid_cells(None, (2, 3), 3) is None


@pytest.mark.parametrize(
  ("sizes", "message"),
  [
    ([[1, 4]], r"sizes\[0, 1\] is 4, .* give 0 to 3"),
    ([[-1, 1]], r"sizes\[0, 0\] is -1, .* give 0 to 2"),
    ([[1, 1], [1, 1]], r"needs \(1, 2\)"),
    ([1, 1], r"needs \(1, 2\)"),
    ([[1.0, 1.0]], "give integers"),
  ],
)
def test_wrong_sizes(sizes, message):
  with pytest.raises(ValueError, match=message):
    grid.valid_cells(jnp.array(sizes), (2, 3), 1)


def test_traced_sizes_are_clipped():
  clip = jax.jit(lambda sizes: grid.valid_cells(sizes, (2, 3), 1))
  beyond, full = clip(jnp.array([[9, 9]])), clip(jnp.array([[2, 3]]))
  np.testing.assert_array_equal(beyond, full)


def test_masked_replaces_nan():
  values = jnp.array([[jnp.nan], [2.0]])
  valid = jnp.array([[False], [True]])
  np.testing.assert_array_equal(grid.masked(valid, values), [[0.0], [2.0]])


@pytest.mark.slow
@pytest.mark.parametrize("gates", [1, 5])
def test_initial_weights(gates):
  inputs, recurrent = grid_weights.init(jax.random.key(0), 400, 8, 2, gates)
  assert inputs.shape == (400, gates * 8)
  np.testing.assert_allclose(jnp.std(inputs), 1 / 20, rtol=0.05)
  for matrix in (
    recurrent.reshape(2, 8, gates, 8).swapaxes(1, 2).reshape(-1, 8, 8)
  ):
    np.testing.assert_allclose(matrix @ matrix.T, jnp.eye(8) / 4, atol=1e-6)


@pytest.mark.sampled(3)
@pytest.mark.parametrize("part", [1, 24, 4096])
@pytest.mark.parametrize("direction", [(1, -1), (-1, 1)])
def test_gradients_of_weights_in_parts(x64, monkeypatch, part, direction):
  # The sum over positions does not depend on how it is cut into parts.
  monkeypatch.setattr(grid_weights, "_PART", part)
  keys = jax.random.split(jax.random.key(0), 3)
  xs = jax.random.normal(keys[0], (6, 3, 2, 4), jnp.float64)
  hidden = jax.random.normal(keys[1], (6, 3, 2, 5), jnp.float64)
  bars = jax.random.normal(keys[2], (6, 3, 2, 7), jnp.float64)
  plan = grid.plan(2, direction, "rows")
  totals = grid_weights._outer_products(xs, hidden, bars, plan)
  expected = np.zeros((7, 4 + 2 * 5))
  for row, column in np.ndindex(6, 3):
    seen = [xs[row, column]]
    for step_row, step_column in ((direction[0], 0), (0, direction[1])):
      above, left = row - step_row, column - step_column
      inside = 0 <= above < 6 and 0 <= left < 3
      seen.append(hidden[above, left] if inside else jnp.zeros((2, 5)))
    expected += bars[row, column].T @ np.concatenate(seen, -1)
  np.testing.assert_allclose(totals, expected, atol=1e-13)
