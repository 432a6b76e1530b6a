"""Pipelined layers against the same layers one after the other."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, NamedSharding, PartitionSpec

from revmom.cells import grid, mdlstm, mdrnn, multidirectional
from revmom.jacobian.program.control_flow import scan_form

B, D, H = 2, 3, 2
CELLS = {
  "mdrnn": (mdrnn, {}),
  "mdrnn without bias": (mdrnn, {"bias": False}),
  "graves with peepholes": (mdlstm, {"peephole": True}),
  "stable": (mdlstm, {"cell": "stable"}),
  "leaky without bias": (mdlstm, {"cell": "leaky", "bias": False}),
}
slow = lambda *values: pytest.param(*values, marks=pytest.mark.slow)


def problem(name, layers, shape, dtype=jnp.float64, batch=B):
  """Parameters of which none is zero, inputs and adjoints of the outputs."""
  cell, options = CELLS[name]
  rng = np.random.default_rng(layers)
  draw = lambda *shape: jnp.asarray(rng.normal(size=shape), dtype)
  params = []
  for number in range(layers):
    init = functools.partial(cell.init, ndim=len(shape), **options)
    shapes = jax.eval_shape(
      lambda init=init, size=H if number else D: init(
        jax.random.key(0), size, H
      )
    )
    params.append(jax.tree.map(lambda leaf: 0.6 * draw(*leaf.shape), shapes))
  return cell, params, draw(*shape, batch, D), draw(*shape, batch, H)


def one_by_one(cell, schedule="rows", **options):
  def apply(layers, xs):
    for params in layers:
      xs = cell.apply(params, xs, schedule=schedule, **options)
    return xs

  return apply


def pipelined(cell, **options):
  return functools.partial(cell.apply, schedule="pipelined", **options)


def pullback(function, layers, xs, bars):
  outputs, pull = jax.vjp(function, layers, xs)
  return outputs, pull(bars)


def close(a, b, tolerance=1e-12):
  assert jax.tree.structure(a) == jax.tree.structure(b)
  for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True):
    np.testing.assert_allclose(x, y, rtol=tolerance, atol=tolerance)


def check(name, layers, shape, direction, sizes=None, schedule="rows"):
  cell, *arguments = problem(name, layers, shape)
  options = {"direction": direction, "sizes": sizes}

  @jax.jit
  def run(*arguments):
    return (
      pullback(pipelined(cell, **options), *arguments),
      pullback(one_by_one(cell, schedule, **options), *arguments),
    )

  got, expected = run(*arguments)
  assert all(np.all(leaf != 0) for leaf in jax.tree.leaves(expected[0]))
  close(got, expected)


@pytest.mark.sampled(2)
@pytest.mark.parametrize(
  ("name", "layers", "shape", "direction"),
  [
    ("mdrnn", 1, (3, 2), (1, 1)),
    ("mdrnn", 2, (3, 5), (1, -1)),
    ("mdrnn without bias", 5, (1, 4), (-1, 1)),
    ("graves with peepholes", 2, (4, 1), (-1, -1)),
    slow("graves with peepholes", 5, (3, 4), (-1, 1)),
    slow("stable", 2, (4, 3), (1, -1)),
    slow("stable", 1, (2, 3), (-1, 1)),
    slow("leaky without bias", 5, (3, 2), (-1, -1)),
    slow("mdrnn", 5, (1, 1), (1, 1)),
    slow("mdrnn", 3, (4,), (-1,)),
    slow("graves with peepholes", 2, (2, 3, 2), (1, -1, 1)),
  ],
)
def test_equals_one_by_one(x64, name, layers, shape, direction):
  check(name, layers, shape, direction)


@pytest.mark.slow
@pytest.mark.parametrize("direction", grid.all_directions(2))
def test_corners(x64, direction):
  check("mdrnn", 2, (2, 3), direction, schedule="wavefront")


@pytest.mark.slow
@pytest.mark.parametrize(
  "name", ["mdrnn", *map(slow, ["graves with peepholes", "stable"])]
)
def test_sizes(x64, name):
  """Padding may hold anything, and comes to nothing."""
  cell, layers, xs, bars = problem(name, 3, (3, 4))
  sizes = jnp.array([[2, 4], [3, 1]])
  valid = grid.valid_cells(sizes, (3, 4), B)
  xs, bars = (jnp.where(valid, array, jnp.nan) for array in (xs, bars))
  options = {"direction": (-1, 1), "sizes": sizes}
  run = jax.jit(
    lambda: [
      pullback(apply(cell, **options), layers, xs, bars)
      for apply in (pipelined, one_by_one)
    ]
  )
  got, expected = run()
  close(got, expected)
  assert not np.any(np.where(valid, 0, got[0]))
  assert not np.any(np.where(valid, 0, got[1][1]))


def scans(jaxpr):
  """The lengths of all loops of a jaxpr."""
  lengths = []
  for equation in jaxpr.eqns:
    if equation.primitive.name == "scan":
      lengths.append(scan_form(equation).length)
    for value in equation.params.values():
      inner = getattr(value, "jaxpr", value)
      if hasattr(inner, "eqns"):
        lengths += scans(inner)
  return lengths


@pytest.mark.parametrize(
  ("shape", "layers"), [((5, 8), 4), ((1, 6), 2), ((7,), 3), ((2, 3, 4), 5)]
)
def test_rounds(shape, layers):
  """One loop forward, one back; those of the weights have one step."""
  cell, params, xs, bars = problem("mdrnn", layers, shape, jnp.float32)
  rounds = sum(shape) - len(shape) + layers
  program = jax.make_jaxpr(functools.partial(pullback, pipelined(cell)))
  lengths = scans(program(params, xs, bars).jaxpr)
  assert lengths == [rounds, rounds] + [1] * layers
  program = jax.make_jaxpr(one_by_one(cell, "wavefront"))
  assert scans(program(params, xs).jaxpr) == [rounds - layers + 1] * layers


@pytest.mark.slow
def test_adjoints_of_all_layers(x64):
  """Forward and backward by hand, against those of each layer."""
  cell, layers, xs, bars = problem("graves with peepholes", 2, (2, 2))
  with jax.disable_jit():
    outputs, residuals = cell.forward(layers, xs, schedule="pipelined")
    got = cell.backward(layers, residuals, bars, adjoints=True)
    inputs, known = xs, []
    for params in layers:
      inputs, residuals = cell.forward(params, inputs, schedule="rows")
      known.append(residuals)
    for number in (1, 0):
      expected = cell.backward(
        layers[number], known[number], bars, adjoints=True
      )
      bars = expected.inputs
      close(got.params[number], expected.params)
      at = jax.tree.map(lambda leaf, number=number: leaf[number], got.adjoints)
      close(at, expected.adjoints)
  close((outputs, got.inputs), (inputs, bars))


@pytest.mark.slow
@pytest.mark.parametrize("name", ["mdrnn", "graves with peepholes"])
def test_second_derivatives(x64, name):
  cell, layers, xs, bars = problem(name, 2, (2, 2))
  at = (layers, xs)
  along = jax.tree.map(jnp.cos, at)

  @functools.partial(jax.jit, static_argnums=0)
  def products(apply):
    loss = lambda both: jnp.sum(bars * apply(*both) ** 2)
    _, forward = jax.jvp(jax.grad(loss), (at,), (along,))
    _, pull = jax.vjp(jax.grad(loss), at)
    return forward, pull(along)[0]

  forward, reverse = products(pipelined(cell))
  expected, _ = products(one_by_one(cell))
  close(forward, expected)
  close(reverse, expected)


def test_forward_mode_goes_through_forward(x64):
  cell, layers, xs, bars = problem("mdrnn", 2, (2, 3))
  with jax.disable_jit():
    got = jax.jvp(
      lambda xs: cell.forward(layers, xs, schedule="pipelined")[0], (xs,), (xs,)
    )
    expected = jax.jvp(
      lambda xs: cell.forward(layers[1], cell.forward(layers[0], xs)[0])[0],
      (xs,),
      (xs,),
    )
  close(got, expected)


@pytest.mark.parametrize("shape", [(0, 2), (2, 0)])
def test_empty_grid(shape):
  cell, layers, xs, bars = problem("mdrnn", 2, shape, jnp.float32)
  run = jax.jit(functools.partial(pullback, pipelined(cell)))
  outputs, gradients = run(layers, xs, bars)
  assert outputs.shape == bars.shape and gradients[1].shape == xs.shape
  assert not any(np.any(leaf) for leaf in jax.tree.leaves(gradients))


@pytest.mark.slow
def test_empty_batch():
  cell, layers, xs, bars = problem("mdrnn", 2, (2, 3), jnp.float32, batch=0)
  outputs, gradients = pullback(pipelined(cell), layers, xs, bars)
  assert outputs.shape == bars.shape and gradients[1].shape == xs.shape


@pytest.mark.sharded
@pytest.mark.slow
def test_vmap_and_sharded_batch():
  cell, layers, xs, bars = problem("mdrnn", 2, (2, 3), jnp.float32, batch=8)
  run = jax.jit(functools.partial(pullback, pipelined(cell)))
  expected = run(layers, xs, bars)
  mesh = jax.make_mesh((8,), ("batch",), axis_types=(AxisType.Auto,))
  shard = NamedSharding(mesh, PartitionSpec(None, None, "batch"))
  put = functools.partial(jax.device_put, device=shard)
  sharded = run(layers, put(xs), put(bars))
  assert sharded[0].sharding.is_equivalent_to(shard, xs.ndim)
  close(sharded, expected, 1e-5)
  both = jax.tree.map(lambda leaf: jnp.stack([leaf, 2 * leaf]), layers)
  outputs = jax.vmap(pipelined(cell), (0, None))(both, xs)
  close(outputs[0], expected[0], 1e-5)


@pytest.mark.slow
def test_bfloat16():
  """As short as the layers one by one, and no farther from float32."""
  cell, *arguments = problem("mdrnn", 2, (3, 3), jnp.bfloat16)
  widen = lambda tree: jax.tree.map(lambda leaf: leaf.astype(jnp.float32), tree)

  @jax.jit
  def run(*arguments):
    return (
      pullback(pipelined(cell), *arguments),
      pullback(one_by_one(cell), *arguments),
      pullback(one_by_one(cell), *widen(arguments)),
    )

  results = [jax.tree.leaves(result) for result in run(*arguments)]
  for got, layerwise, exact in zip(*results, strict=True):
    assert got.dtype == jnp.bfloat16
    errors = [np.linalg.norm(widen(a) - exact) for a in (got, layerwise)]
    eps = float(jnp.finfo(jnp.bfloat16).eps)
    assert errors[0] < 1.5 * errors[1] + eps * np.linalg.norm(exact)


@pytest.mark.slow
def test_chosen_by_the_schedule_of_a_stack():
  cell, _, xs, _ = problem("mdrnn", 1, (2, 3), jnp.float32)
  options = {"directions": [(1, -1)]}
  layers = multidirectional.init_stack(
    cell.init, jax.random.key(0), D, [H, H], **options
  )
  got, expected = (
    multidirectional.apply_stack(
      cell.apply, layers, xs, schedule=schedule, **options
    )
    for schedule in ("pipelined", "wavefront")
  )
  close(got, expected, 1e-6)


def test_stacks_that_cannot_be_pipelined():
  init = functools.partial(
    multidirectional.init_stack, mdrnn.init, jax.random.key(0), D
  )
  apply = functools.partial(
    multidirectional.apply_stack, mdrnn.apply, schedule="pipelined"
  )
  xs = jnp.ones((2, 3, B, D))
  with pytest.raises(ValueError, match="4 directions for layers of .4, 4."):
    apply(init([H, H]), xs)
  one = {"directions": [(1, 1)]}
  with pytest.raises(ValueError, match="1 directions for layers of .4, 4."):
    apply(init([H, H]), xs, **one)
  with pytest.raises(ValueError, match="layer 1 has 2 inputs and 3 outputs"):
    apply(init([H, 3], **one), xs, **one)


@pytest.mark.slow
def test_layers_that_cannot_be_pipelined():
  xs = jnp.ones((2, 3, B, D))
  first, second = (mdlstm.init(jax.random.key(0), size, H) for size in (D, H))
  run = functools.partial(mdlstm.apply, xs=xs, schedule="pipelined")
  leaky = mdlstm.init(jax.random.key(0), H, H, cell="leaky")
  for other in (leaky, second._replace(bias=None)):
    with pytest.raises(ValueError, match="layer 1 has other parameters"):
      run([first, other])
  with pytest.raises(ValueError, match="give at least one"):
    run([])
  with pytest.raises(ValueError, match="of one layer with schedule='pipe"):
    run(first)
  with pytest.raises(ValueError, match="a list with schedule='rows'"):
    run([first, second], schedule="rows")
  with pytest.raises(ValueError, match="has 2 features"):
    run([first, second], xs=xs[..., :2])
