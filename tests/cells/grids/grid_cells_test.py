"""What all cells on grids have in common, against loops over `step`."""

import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, NamedSharding, PartitionSpec

from revmom.cells import grid, mdlstm, mdrnn
from revmom.jacobian.program.control_flow import scan_form

B, D, H = 2, 3, 2
CELLS = {
  "mdrnn": (mdrnn, {}),
  "mdrnn without bias": (mdrnn, {"bias": False}),
  "graves": (mdlstm, {}),
  "graves without bias": (mdlstm, {"bias": False}),
  "graves with peepholes": (mdlstm, {"peephole": True}),
  "peepholes without bias": (mdlstm, {"peephole": True, "bias": False}),
  "stable": (mdlstm, {"cell": "stable"}),
  "stable without bias": (mdlstm, {"cell": "stable", "bias": False}),
  "leaky": (mdlstm, {"cell": "leaky"}),
  "leaky without bias": (mdlstm, {"cell": "leaky", "bias": False}),
}
MAIN = ["mdrnn", "graves with peepholes"]
ONE_OF_EACH = [*MAIN, "stable", "leaky"]
slow = lambda *values: pytest.param(*values, marks=pytest.mark.slow)
every_schedule = pytest.mark.parametrize("schedule", grid.SCHEDULES)


def problem(name, shape, dtype=jnp.float64, batch=B):
  """Parameters of which none is zero, inputs and adjoints of the outputs."""
  cell, options = CELLS[name]
  init = functools.partial(cell.init, ndim=len(shape), **options)
  params = jax.eval_shape(lambda: init(jax.random.key(0), D, H))
  rng = np.random.default_rng(0)
  draw = lambda *shape: jnp.asarray(rng.normal(size=shape), dtype)
  params = jax.tree.map(lambda leaf: 0.6 * draw(*leaf.shape), params)
  return cell, params, draw(*shape, batch, D), draw(*shape, batch, H)


def loop(cell, params, xs, direction):
  """The cells one by one, each by `step`."""
  shape, n = xs.shape[:-2], xs.ndim - 2
  zero = jnp.zeros((xs.shape[-2], H), xs.dtype)
  zero = mdlstm.State(zero, zero) if cell is mdlstm else zero
  output = lambda state: state.h if cell is mdlstm else state
  states = {}
  axes = [range(size)[::d] for size, d in zip(shape, direction, strict=True)]
  for position in itertools.product(*axes):
    neighbours = []
    for axis in range(n):
      neighbour = list(position)
      neighbour[axis] -= direction[axis]
      neighbours.append(states.get(tuple(neighbour), zero))
    states[position] = cell.step(params, xs[position], tuple(neighbours))
  outputs = [output(states[position]) for position in np.ndindex(*shape)]
  return jnp.stack(outputs).reshape(*shape, *outputs[0].shape)


def close(a, b, **tolerance):
  leaves, others = jax.tree.leaves(a), jax.tree.leaves(b)
  assert jax.tree.structure(a) == jax.tree.structure(b)
  for x, y in zip(leaves, others, strict=True):
    np.testing.assert_allclose(
      x, y, **(tolerance or {"rtol": 0, "atol": 1e-12})
    )


def pullback(function, params, xs, bars):
  outputs, pull = jax.vjp(function, params, xs)
  return outputs, pull(bars)


def check_against_loop(name, shape, direction):
  cell, params, xs, bars = problem(name, shape)
  expected = pullback(
    lambda params, xs: loop(cell, params, xs, direction), params, xs, bars
  )
  with jax.disable_jit():
    for schedule in grid.SCHEDULES:
      apply = functools.partial(
        cell.apply, direction=direction, schedule=schedule
      )
      close(pullback(apply, params, xs, bars), expected)


@pytest.mark.sampled(12, rest="exhaustive")
@pytest.mark.parametrize(
  ("name", "turn"),
  [(name, number % 4) for number, name in enumerate(CELLS)]
  + [slow(name, turn) for name in ONE_OF_EACH for turn in range(4)],
)
def test_backward_is_autodiff_of_the_steps(x64, name, turn):
  check_against_loop(name, (2, 3), grid.all_directions(2)[turn])


@pytest.mark.slow
@pytest.mark.parametrize("name", ONE_OF_EACH)
def test_backward_in_other_dimensions(x64, name):
  for ndim in (1, 3):
    for direction in grid.all_directions(ndim):
      check_against_loop(name, (3, 2, 2)[:ndim], direction)


@pytest.mark.slow
def test_backward_against_finite_differences(x64):
  cell, params, xs, bars = problem("graves with peepholes", (2, 3))
  loss = jax.jit(lambda params, xs: jnp.sum(bars * cell.apply(params, xs)))
  gradient = jax.grad(loss, (0, 1))(params, xs)
  tangent = jax.tree.map(
    lambda leaf: jnp.cos(jnp.arange(leaf.size)).reshape(leaf.shape), gradient
  )
  move = lambda size: loss(
    *jax.tree.map(lambda leaf, t: leaf + size * t, (params, xs), tangent)
  )
  slope = (move(1e-5) - move(-1e-5)) / 2e-5
  products = jax.tree.map(lambda g, t: jnp.sum(g * t), gradient, tangent)
  np.testing.assert_allclose(sum(jax.tree.leaves(products)), slope, rtol=1e-8)


@every_schedule
@pytest.mark.parametrize("name", ["mdrnn", slow("graves with peepholes")])
def test_a_cell_depends_on_its_quadrant_alone(x64, name, schedule):
  shape = (2, 3)
  cell, params, xs, _ = problem(name, shape, batch=1)
  for direction in grid.all_directions(2):
    apply = functools.partial(
      cell.apply, params, direction=direction, schedule=schedule
    )
    with jax.disable_jit():
      _, pull = jax.vjp(apply, xs)
      for out in np.ndindex(*shape):
        (bars,) = pull(jnp.zeros((*shape, 1, H)).at[out].set(1.0))
        reached = np.any(np.asarray(bars) != 0, (-2, -1))
        distance = [
          d * (out[axis] - np.indices(shape)[axis])
          for axis, d in enumerate(direction)
        ]
        np.testing.assert_array_equal(reached, np.min(distance, 0) >= 0)


@pytest.mark.parametrize(
  ("name", "shape"),
  [
    ("mdrnn", (5, 7)),
    slow("graves with peepholes", (4, 3)),
    slow("leaky", (2, 3, 4)),
  ],
)
def test_rows_equal_wavefront(name, shape):
  cell, *arguments = problem(name, shape, jnp.float32)

  @functools.partial(jax.jit, static_argnums=3)
  def run(params, xs, bars, schedule):
    direction = (-1, *(1,) * (len(shape) - 1))
    apply = functools.partial(
      cell.apply, direction=direction, schedule=schedule
    )
    return pullback(apply, params, xs, bars)

  rows, wavefront = (run(*arguments, s) for s in grid.SCHEDULES)
  close(rows, wavefront, rtol=1e-5, atol=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize(
  ("name", "schedule"),
  [
    ("mdrnn", "rows"),
    slow("graves with peepholes", "wavefront"),
    slow("mdrnn", "wavefront"),
    slow("graves with peepholes", "rows"),
  ],
)
def test_sizes_equal_examples_alone(x64, name, schedule):
  cell, params, xs, bars = problem(name, (3, 3))
  sizes = np.array([[2, 3], [3, 1]])
  padded_xs, padded_bars = (
    jnp.where(grid.valid_cells(sizes, (3, 3), B), array, jnp.nan)
    for array in (xs, bars)
  )
  with jax.disable_jit():
    for direction in grid.all_directions(2):
      options = {"direction": direction, "schedule": schedule}
      outputs, (params_bar, xs_bar) = pullback(
        functools.partial(cell.apply, sizes=sizes, **options),
        params,
        padded_xs,
        padded_bars,
      )
      total = jax.tree.map(jnp.zeros_like, params)
      beyond = np.ones((3, 3, B), bool)
      for example, (height, width) in enumerate(sizes):
        inside = np.s_[:height, :width, example : example + 1]
        beyond[inside] = False
        alone = pullback(
          functools.partial(cell.apply, **options),
          params,
          xs[inside],
          bars[inside],
        )
        close(outputs[inside], alone[0])
        close(xs_bar[inside], alone[1][1])
        total = jax.tree.map(jnp.add, total, alone[1][0])
      close(params_bar, total)
      assert not np.any(outputs[beyond]) and not np.any(xs_bar[beyond])


@pytest.mark.slow
def test_adjoints_beyond_sizes_are_zero():
  cell, params, xs, bars = problem("graves", (3, 3), jnp.float32)
  sizes = jnp.array([[2, 3], [0, 0]])
  _, residuals = cell.forward(params, xs, sizes=sizes, direction=(-1, 1))
  adjoints = cell.backward(params, residuals, bars, adjoints=True).adjoints
  assert np.all(adjoints.h[:2, :, 0] != 0)
  for adjoint in jax.tree.leaves(adjoints):
    assert not np.any(adjoint[2, :, 0]) and not np.any(adjoint[:, :, 1])


@pytest.mark.slow
@every_schedule
@pytest.mark.parametrize("name", ONE_OF_EACH)
def test_second_derivatives(x64, name, schedule):
  cell, params, xs, bars = problem(name, (2, 2))
  apply = functools.partial(
    cell.apply, direction=(1, -1), schedule=schedule, sizes=[[2, 2], [2, 1]]
  )
  tangent = jax.tree.map(jnp.cos, (params, xs))

  def loss(outputs):
    return jnp.sum(bars * outputs**2)

  def by_steps(params, xs):
    first = loop(cell, params, xs[:, :, :1], (1, -1))
    second = loop(cell, params, xs[:, :1, 1:], (1, -1))
    second = jnp.concatenate([second, jnp.zeros_like(second)], 1)
    return loss(jnp.concatenate([first, second], 2))

  ours = lambda params, xs: loss(apply(params, xs))
  gradient = lambda function: jax.grad(lambda both: function(*both))
  at = (params, xs)
  with jax.disable_jit():
    _, expected = jax.jvp(gradient(by_steps), (at,), (tangent,))
    _, forward = jax.jvp(gradient(ours), (at,), (tangent,))
    _, pull = jax.vjp(gradient(ours), at)
    (reverse,) = pull(tangent)
  close(forward, expected)
  close(reverse, expected)


@pytest.mark.parametrize("name", MAIN)
def test_forward_mode_goes_through_forward(x64, name):
  cell, params, xs, _ = problem(name, (2, 3))
  tangent = jnp.sin(xs)
  with jax.disable_jit():
    _, ours = jax.jvp(lambda xs: cell.forward(params, xs)[0], (xs,), (tangent,))
    _, expected = jax.jvp(
      lambda xs: loop(cell, params, xs, (1, 1)), (xs,), (tangent,)
    )
  close(ours, expected)


@every_schedule
def test_no_residuals_without_derivatives(schedule):
  # Of all that a memory cell computes, the outputs alone leave the sweep.
  cell, params, xs, _ = problem("graves", (3, 4), jnp.float32)

  def grids(function):
    program = jax.make_jaxpr(function)(params, xs).jaxpr
    found = []
    for equation in program.eqns:
      inner = equation.params.get("call_jaxpr")
      equations = inner.jaxpr.eqns if inner is not None else [equation]
      for scan in equations:
        if scan.primitive.name == "scan":
          carried = scan_form(scan).carry
          found.append(len(scan.outvars[carried:]))
    return found

  assert grids(lambda p, x: cell.apply(p, x, schedule=schedule)) == [1]
  assert grids(lambda p, x: cell.forward(p, x, schedule=schedule)) == [7]


@every_schedule
def test_vmap(schedule):
  cell, params, xs, _ = problem("leaky", (2, 3), jnp.float32)
  apply = jax.jit(functools.partial(cell.apply, schedule=schedule))
  every_xs = jnp.stack([xs, -xs])
  every_params = jax.tree.map(lambda leaf: jnp.stack([leaf, 2 * leaf]), params)
  outputs = jax.jit(jax.vmap(apply))(every_params, every_xs)
  close(outputs[0], apply(params, xs), rtol=1e-5, atol=1e-6)
  doubled = jax.tree.map(lambda leaf: 2 * leaf, params)
  close(outputs[1], apply(doubled, -xs), rtol=1e-5, atol=1e-6)


@pytest.mark.slow
@every_schedule
def test_vmap_of_gradients_and_sizes(schedule):
  cell, params, xs, _ = problem("mdrnn", (3, 3), jnp.float32)

  def gradient(params, xs, sizes):
    loss = lambda params: jnp.sum(
      cell.apply(params, xs, sizes=sizes, schedule=schedule) ** 2
    )
    return jax.grad(loss)(params)

  every_xs = jnp.stack([xs, -xs])
  sizes = jnp.array([[[3, 3], [1, 2]], [[2, 3], [0, 3]]])
  together = jax.jit(jax.vmap(gradient, (None, 0, 0)))(params, every_xs, sizes)
  alone = [gradient(params, x, s) for x, s in zip(every_xs, sizes, strict=True)]
  close(
    together,
    jax.tree.map(lambda *leaves: jnp.stack(leaves), *alone),
    rtol=1e-5,
    atol=1e-5,
  )


def test_one_trace_for_all_values():
  cell, params, xs, _ = problem("mdrnn", (2, 3), jnp.float32)
  traces = []

  @jax.jit
  def run(params, xs, sizes):
    traces.append(None)
    return cell.apply(params, xs, sizes=sizes, direction=[1, -1])

  for scale in (1.0, 2.0):
    run(params, scale * xs, jnp.full((B, 2), int(scale)))
  assert len(traces) == 1


@pytest.mark.sharded
@every_schedule
def test_sharded_batch(schedule):
  cell, params, xs, bars = problem("mdrnn", (3, 4), jnp.float32, batch=16)
  mesh = jax.make_mesh((8,), ("batch",), axis_types=(AxisType.Auto,))
  shard = NamedSharding(mesh, PartitionSpec(None, None, "batch"))
  run = jax.jit(
    lambda params, xs, bars: pullback(
      functools.partial(cell.apply, schedule=schedule), params, xs, bars
    )
  )
  outputs, (params_bar, xs_bar) = run(
    jax.device_put(params, NamedSharding(mesh, PartitionSpec())),
    jax.device_put(xs, shard),
    jax.device_put(bars, shard),
  )
  assert outputs.sharding.is_equivalent_to(shard, outputs.ndim)
  assert xs_bar.sharding.is_equivalent_to(shard, xs_bar.ndim)
  expected = run(params, xs, bars)
  close((outputs, (params_bar, xs_bar)), expected, rtol=1e-5, atol=1e-5)


@every_schedule
@pytest.mark.parametrize("name", ["mdrnn", slow("graves")])
def test_bfloat16(name, schedule):
  cell, params, xs, bars = problem(name, (4, 4), jnp.bfloat16)
  run = jax.jit(
    lambda *arguments: pullback(
      functools.partial(cell.apply, schedule=schedule), *arguments
    )
  )
  short = run(params, xs, bars)
  assert {leaf.dtype for leaf in jax.tree.leaves(short)} == {
    jnp.dtype("bfloat16")
  }
  widen = lambda tree: jax.tree.map(lambda leaf: leaf.astype(jnp.float32), tree)
  full = run(*widen((params, xs, bars)))
  for a, b in zip(*map(jax.tree.leaves, (widen(short), full)), strict=True):
    error = np.linalg.norm(a - b) / np.linalg.norm(b)
    assert error < 4 * float(jnp.finfo(jnp.bfloat16).eps)


@pytest.mark.slow
def test_memory_and_adjoints_are_wider_than_bfloat16():
  cell, params, xs, bars = problem("graves", (2, 2), jnp.bfloat16)
  outputs, residuals = cell.forward(params, xs)
  assert outputs.dtype == jnp.bfloat16
  assert residuals.memory.dtype == jnp.float32
  gradients = cell.backward(params, residuals, bars, adjoints=True)
  for adjoint in jax.tree.leaves(gradients.adjoints):
    assert adjoint.dtype == jnp.float32


@pytest.mark.slow
@every_schedule
@pytest.mark.parametrize("name", ["mdrnn", slow("graves")])
def test_empty_and_tiny_grids(name, schedule):
  for shape, batch in [((0, 2), 2), ((2, 0), 2), ((2, 2), 0), ((1, 1), 2)]:
    cell, params, xs, bars = problem(name, shape, jnp.float32, batch)
    with jax.disable_jit(0 not in (*shape, batch)):
      outputs, (params_bar, xs_bar) = pullback(
        functools.partial(cell.apply, schedule=schedule), params, xs, bars
      )
    assert outputs.shape == bars.shape and xs_bar.shape == xs.shape
    nonzero = any(np.any(leaf) for leaf in jax.tree.leaves(params_bar))
    assert nonzero == (xs.size > 0)


@pytest.mark.slow
@pytest.mark.parametrize("cell", [mdrnn, mdlstm])
def test_wrong_arguments(cell):
  params = jax.jit(lambda key: cell.init(key, D, H))(jax.random.key(0))
  xs = jnp.ones((2, 3, B, D))
  wrong = [
    (xs[0], {}, r"give \[S_1, S_2, batch, 3\]"),
    (xs[..., :2], {}, "has 2 features, .* need 3"),
    (xs.astype(jnp.int32), {}, "give floats"),
    (xs, {"direction": (1, 2)}, r"\+1 or -1"),
    (xs, {"schedule": "columns"}, "choose one of"),
    (xs, {"sizes": jnp.full((B, 2), 3)}, r"sizes\[0, 0\] is 3"),
  ]
  for inputs, options, message in wrong:
    for function in (cell.apply, cell.forward):
      with pytest.raises(ValueError, match=message):
        function(params, inputs, **options)


@pytest.mark.parametrize("name", MAIN)
def test_users_may_forbid_rank_promotion(x64, name):
  cell, params, xs, bars = problem(name, (2, 3))
  state = jnp.zeros((B, H))
  state = mdlstm.State(state, state) if cell is mdlstm else state
  sizes = jnp.array([[1, 3], [2, 2]])
  with jax.numpy_rank_promotion("raise"), jax.disable_jit():
    cell.step(params, xs[0, 0], (state, state))
    for schedule in grid.SCHEDULES:
      apply = functools.partial(cell.apply, schedule=schedule, sizes=sizes)
      pullback(apply, params, xs, bars)
