"""Sequential rounds and connections against formulas and brute force."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

from revmom.analysis import cost
from revmom.cells import elman, gru, lstm, mdlstm, mdrnn

UNITS = 5


def shape(*sizes):
  return jax.ShapeDtypeStruct(sizes, jnp.float32)


def count(function, *args):
  found = cost(function, *args, backward=False, feature_axes=2)
  assert not found.forward.uncounted and not found.forward.inexact
  return found


def grids(layers, schedule):
  """Layers of cells on a grid [H, W, 1, D]."""

  def run(params, xs):
    for own in params:
      xs = mdrnn.apply(own, xs, schedule=schedule)
    return xs

  sizes = [2] + [UNITS] * layers
  params = [
    jax.eval_shape(lambda k, i=i: mdrnn.init(k, sizes[i], UNITS), KEY)
    for i in range(layers)
  ]
  return run, params


KEY = jax.random.key(0)


@pytest.mark.parametrize("layers", [1, 3])
@pytest.mark.parametrize("size", [(4, 7), (6, 1)])
def test_a_grid_of_cells_needs_as_many_rounds_as_diagonals(layers, size):
  height, width = size
  for schedule in ("rows", "wavefront"):
    run, params = grids(layers, schedule)
    found = count(run, params, shape(*size, 1, 2)).forward
    assert found.dataflow_rounds == height + width + layers - 2, schedule
    # A product with the inputs of all cells comes first.
    steps = height * (1 + width) if schedule == "rows" else height + width - 1
    assert found.scheduled_rounds == layers * (1 + steps), schedule


def test_grids_in_another_direction_and_in_three_dimensions():
  run = lambda p, x: mdrnn.apply(p, x, schedule="rows", direction=(-1, 1))
  params = jax.eval_shape(lambda k: mdrnn.init(k, 2, UNITS), KEY)
  found = count(run, params, shape(3, 5, 1, 2)).forward
  assert found.dataflow_rounds == 3 + 5 - 1
  run = lambda p, x: mdlstm.apply(p, x, schedule="rows")
  params = jax.eval_shape(lambda k: mdlstm.init(k, 2, UNITS, ndim=3), KEY)
  found = count(run, params, shape(2, 3, 2, 1, 2)).forward
  assert found.dataflow_rounds == 2 + 3 + 2 - 2


def test_connections_of_a_grid_are_those_between_cells():
  height, width = 4, 7
  run, params = grids(1, "rows")
  found = count(run, params, shape(height, width, 1, 2))
  inputs = height * width * 2 * UNITS
  neighbours = (height - 1) * width + height * (width - 1)
  assert found.connections == inputs + neighbours * UNITS**2
  assert found.parameters == 2 * UNITS + 2 * UNITS**2 + UNITS


@pytest.mark.parametrize("cell", [elman, lstm, gru])
def test_a_recurrent_layer_takes_a_round_for_each_step(cell):
  params = jax.eval_shape(lambda k: cell.init(k, 3, UNITS), KEY)
  run = lambda params, xs: cell.apply(params, xs)[0]
  for length in (1, 6, 700):  # the last in blocks
    found = count(run, params, shape(length, 1, 3))
    assert found.forward.dataflow_rounds == length
    gates = params.input_weights.shape[1] // UNITS
    inputs, recurrent = 3 * gates * UNITS, gates * UNITS**2
    products = length * inputs + (length - 1) * recurrent
    # In the first step of a GRU, its reset gate multiplies a bias alone.
    alone = UNITS if cell is gru else 0
    assert found.connections == products + alone
    assert found.context == length


def convolutions(kernels, image, **options):
  for kernel in kernels:
    image = jnp.tanh(
      lax.conv_general_dilated(
        image, kernel, dimension_numbers=("NHWC", "HWIO", "NHWC"), **options
      )
    )
  return image


def test_convolutions_take_a_round_for_each_layer():
  kernels = [shape(3, 3, 4, 4)] * 6
  run = lambda kernels, x: convolutions(
    kernels, x, window_strides=(1, 1), padding="SAME"
  )
  found = cost(run, kernels, shape(1, 15, 17, 4), feature_axes=1)
  assert found.forward.dataflow_rounds == 6
  assert found.forward.scheduled_rounds == 6
  assert found.backward.scheduled_rounds == 6
  assert found.context == 13 * 13
  per_axis = [3 * size - 2 for size in (15, 17)]
  assert found.connections == 6 * 16 * np.prod(per_axis)


def test_layers_in_a_scan_take_no_more_rounds_than_one_after_the_other():
  def run(kernels, x):
    layer = lambda x, kernel: (jnp.tanh(x @ kernel), None)
    return lax.scan(layer, x, kernels)[0]

  for depth in (3, 200, 5000):  # the last two are not run step by step
    found = count(run, shape(depth, 4, 4), shape(2, 4))
    assert found.forward.dataflow_rounds == depth
    assert found.connections == 2 * 16 * depth


def test_independent_products_in_a_loop_are_one_round():
  def run(w, xs):
    return lax.scan(lambda c, x: (c, w @ x), None, xs)[1]

  for length in (9, 1000):
    found = count(run, shape(4, 4), shape(length, 4)).forward
    assert (found.scheduled_rounds, found.dataflow_rounds) == (length, 1)


def test_rows_that_a_loop_writes_and_reads_by_its_counter():
  """y_i = w y_{i-2}: two chains, the longer with half of the steps."""

  def run(w, x):
    ys = jnp.zeros((11, 4)).at[:2].set(x)

    def step(i, ys):
      row = lax.dynamic_index_in_dim(ys, i - 2, keepdims=False)
      return lax.dynamic_update_index_in_dim(ys, w @ row, i, 0)

    return lax.fori_loop(2, 11, step, ys)

  found = count(run, shape(4, 4), shape(2, 4))
  assert found.forward.dataflow_rounds == 5
  assert found.connections == 9 * 16
  every = count(lambda w, x: run(w, x)[-1], shape(4, 4), shape(2, 4))
  assert every.context == 1  # of two positions, that of its own chain


def two_chains(length):
  """One is 20 products ahead and stays, the other grows."""

  def run(w, x):
    late = x
    for _ in range(20):
      late = w @ late

    def step(carry, _):
      fast, slow = carry
      fast = w @ fast
      return (fast, slow), fast + slow

    return lax.scan(step, (x, late), None, length=length)[1]

  return run


def test_steps_are_left_out_only_where_nothing_overtakes():
  for length in (7, 90, 1500):
    found = count(two_chains(length), shape(4, 4), shape(4))
    assert found.forward.dataflow_rounds == max(20, length)
    assert found.connections == 16 * (20 + length)


def mask_of(kind, channels):
  """As PixelCNN's: what is above, on the left, and for B itself."""
  mask = np.ones((3, 3, channels, channels), np.float32)
  mask[2] = mask[1, 2] = 0
  if kind == "A":
    mask[1, 1] = 0
  else:  # channels in order
    mask[1, 1] = np.triu(mask[1, 1])
  return mask


@pytest.mark.parametrize("kind", ["A", "B"])
def test_masked_weights_are_no_connections(kind):
  mask = mask_of(kind, 4)

  def run(kernel, x):
    return convolutions(
      [kernel * mask], x, window_strides=(1, 1), padding="SAME"
    )

  found = count(run, shape(3, 3, 4, 4), shape(1, 5, 6, 4))
  places = np.ones((3, 3), int)
  for axis, size in ((0, 5), (1, 6)):
    meets = [size - abs(tap - 1) for tap in range(3)]
    places = places * np.expand_dims(meets, 1 - axis)
  assert found.connections == (places * mask.sum((2, 3))).sum()
  # The program multiplies with zeros all the same.
  assert found.forward.multiply_adds == 16 * places.sum()


def test_masked_matrices_are_counted_by_their_entries():
  mask = np.tril(np.ones((6, 6), np.float32), -1)
  wide = lambda w, x: jnp.where(mask.T > 0, w, 0.0) @ x
  found = count(wide, shape(6, 6), shape(6))
  assert found.connections == 15
  assert cost(wide, shape(6, 6), shape(6)).context == 5


def test_single_factors_are_connections_and_biases_are_not():
  scale = lambda p, x: jnp.tanh(x * p["gain"] + p["bias"])
  params = {"gain": shape(4), "bias": shape(4)}
  assert count(scale, params, shape(7, 4)).connections == 28


def test_a_weight_of_weights_is_used_where_it_meets_data():
  tied = lambda w, x: (x @ (2 * w).T) @ w
  assert count(tied, shape(4, 3), shape(5, 3)).connections == 2 * 5 * 12
