"""Sweeps against autodiff of one `lax.scan`: blocks, lengths, transformations.

They carry the plain recurrent network, whose equation is one line.
"""

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

from revmom.cells import elman, gated_input, gru, lstm, ugrnn
from revmom.cells.sequences import blocks, residuals
from revmom.jacobian.program.control_flow import scan_form


def draw(seed, *shape):
  return jnp.asarray(np.random.default_rng(seed).normal(size=shape))


def problem(steps=5, batch=3, inputs=2, hidden=4):
  """Arguments of `apply`, and cotangents of its results."""
  params = elman.init(jax.random.key(0), inputs, hidden, dtype=jnp.float64)
  params = params._replace(bias=draw(1, hidden))
  arguments = params, draw(2, steps, batch, inputs), draw(3, batch, hidden)
  return arguments, (draw(4, steps, batch, hidden), draw(5, batch, hidden))


def plain(params, xs, h, lengths=None, reverse=False):
  if lengths is None:
    lengths = jnp.full(xs.shape[1], len(xs))
  times = jnp.arange(len(xs), dtype=lengths.dtype)

  def step(h, now):
    t, x = now
    a = x @ params.input_weights + h @ params.recurrent_weights + params.bias
    valid = (t < lengths)[:, None]
    h = jnp.where(valid, jnp.tanh(a), h)
    return h, jnp.where(valid, h, 0)

  h, outputs = jax.lax.scan(step, h, (times, xs), reverse=reverse)
  return outputs, h


def gradients(function, arguments, bars, **options):
  results, pull = jax.vjp(lambda *a: function(*a, **options), *arguments)
  return results, pull(bars)


def close(got, expected):
  assert jax.tree.structure(got) == jax.tree.structure(expected)
  for a, b in zip(jax.tree.leaves(got), jax.tree.leaves(expected), strict=True):
    np.testing.assert_allclose(a, b, rtol=1e-12, atol=1e-12)


def check(arguments, bars, **options):
  ours = jax.jit(lambda *a: gradients(elman.apply, *a, **options))
  theirs = jax.jit(lambda *a: gradients(plain, *a, **options))
  close(ours(arguments, bars), theirs(arguments, bars))


def few_rows(monkeypatch, rows=4):
  monkeypatch.setattr(residuals, "BLOCK_ROWS", rows)


SIZES = {
  "two blocks and a rest": (7, 3, 2, 4),
  "equal blocks of an odd size": (9, 2, 2, 4),
  "one step": (1, 3, 2, 4),
  "no step": (0, 3, 2, 4),
  "no sequence": (5, 0, 2, 4),
  "one sequence of scalars": (9, 1, 1, 1),
  "no inputs": (5, 3, 0, 4),
}
QUICK = ("two blocks and a rest", "no step", "no sequence")


@pytest.mark.parametrize(
  ("size", "reverse"),
  [
    pytest.param(
      size,
      reverse,
      marks=() if size in QUICK and reverse else pytest.mark.slow,
    )
    for size in SIZES
    for reverse in (True, False)
  ],
)
def test_sizes(x64, monkeypatch, size, reverse):
  few_rows(monkeypatch, 6)
  steps, batch, *_ = SIZES[size]
  lengths = jnp.asarray([steps, 0, steps // 2][:batch], jnp.int32)
  check(*problem(*SIZES[size]), reverse=reverse, lengths=lengths)


def test_blocks():
  """At least `rows` rows, equal if some size below twice that divides."""
  rows = 512
  assert blocks.steps_of(rows - 1, 1, rows) == rows - 1
  assert blocks.steps_of(2 * rows, 1, rows) == rows
  assert blocks.steps_of(3 * (rows + 1), 1, rows) == rows + 1
  prime = 8191
  assert blocks.steps_of(prime, 1, rows) == rows
  assert blocks.steps_of(100, 10 * rows, rows) == 1
  assert blocks.steps_of(0, 0, rows) == 1


def scans(jaxpr):
  """All scans of a program, also those within others."""
  for equation in jaxpr.eqns:
    if equation.primitive.name == "scan":
      yield equation
    for inner in jax.tree.leaves(list(equation.params.values())):
      inner = getattr(inner, "jaxpr", inner)
      if hasattr(inner, "eqns"):
        yield from scans(inner)


def scan_outputs(jaxpr):
  """Shapes of all that the scans of a program stack."""
  return [
    variable.aval.shape
    for scan in scans(jaxpr)
    for variable in scan.outvars[scan_form(scan).carry :]
  ]


def late_problem(results):
  """Arguments of `scan_late`, of results like one of `arrays` or unlike."""

  def step(weights, carry, now):
    x, y = now
    carry = jnp.tanh(carry @ weights + x)
    return carry, {"like": carry * y, "unlike": (carry, y[:2])[results]}

  return step, (draw(0, 3, 3), draw(1, 3), (draw(2, 7, 3), draw(3, 7, 3)))


@pytest.mark.sampled(2)
@pytest.mark.parametrize("reverse", [True, False])
@pytest.mark.parametrize("results", [0, 1])
def test_scan_late_is_scan(x64, results, reverse):
  """All results and derivatives, first and second, batched ones as well."""
  step, args = late_problem(results)
  late = lambda *args: blocks.scan_late(step, *args, reverse)
  plain = lambda weights, carry, arrays: jax.lax.scan(
    partial(step, weights), carry, arrays, reverse=reverse
  )
  program = jax.make_jaxpr(late)(*args).jaxpr
  carried = [scan_form(scan).carry for scan in scans(program)]
  # The time, the carry and two results, which take the room of `arrays`.
  assert carried == ([4], [1])[results]
  many = jax.tree.map(lambda a: jnp.stack([a, 2 * a]), args)

  def everything(scan):
    loss = lambda *args: sum(
      jnp.sum(leaf**2) for leaf in jax.tree.leaves(scan(*args))
    )
    gradient = jax.grad(loss, argnums=(0, 1, 2))
    return (
      *(scan(*args), jax.vmap(scan)(*many), gradient(*args)),
      jax.jvp(gradient, args, args)[1],
      jax.grad(lambda w: jnp.sum(gradient(w, *args[1:])[1] ** 2))(args[0]),
    )

  jax.tree.map(
    partial(np.testing.assert_allclose, rtol=1e-12, atol=1e-12),
    everything(late),
    everything(plain),
  )


@pytest.mark.parametrize("steps", [0, 1])
def test_scan_late_of_few_steps(steps):
  step, (weights, carry, arrays) = late_problem(0)
  arrays = jax.tree.map(lambda array: array[:steps], arrays)
  end, results = blocks.scan_late(step, weights, carry, arrays, True)
  assert results["like"].shape == (steps, 3)
  assert (end == carry).all() == (steps == 0)


def test_every_sequence_is_swept_alone(x64):
  """Padding, here NaN, changes no value and no gradient."""
  (params, xs, h), (outputs_bar, h_bar) = problem()
  sizes = (5, 0, 3)
  padded = jnp.arange(5)[:, None] >= jnp.array(sizes)

  def alone(params, xs, h):
    outputs, finals = [], []
    for b, size in enumerate(sizes):
      one = slice(b, b + 1)
      output, final = plain(params, xs[:size, one], h[one])
      outputs.append(jnp.pad(output, ((0, 5 - size), (0, 0), (0, 0))))
      finals.append(final)
    return jnp.concatenate(outputs, 1), jnp.concatenate(finals)

  bars = outputs_bar, h_bar
  expected = jax.jit(lambda *a: gradients(alone, *a))((params, xs, h), bars)
  xs = jnp.where(padded[..., None], jnp.nan, xs)
  ours = jax.jit(
    lambda lengths, *a: gradients(elman.apply, *a, lengths=lengths)
  )
  # Lengths may be traced, and so have no values to check.
  close(ours(jnp.array(sizes), (params, xs, h), bars), expected)
  close(ours(jnp.array((9, 0, 3)), (params, xs, h), bars), expected)


def test_reverse_flips_every_sequence(x64):
  (params, xs, h), bars = problem()
  lengths = jnp.array([5, 0, 3])
  times = jnp.arange(5)[:, None]
  order = jnp.where(times < lengths, lengths - 1 - times, times)
  flip = lambda array: jnp.take_along_axis(array, order[..., None], 0)

  def flipped(params, xs, h):
    outputs, h = plain(params, flip(xs), h, lengths)
    return flip(outputs), h

  expected = jax.jit(lambda *a: gradients(flipped, *a))((params, xs, h), bars)
  ours = jax.jit(
    lambda *a: gradients(elman.apply, *a, lengths=lengths, reverse=True)
  )
  close(ours((params, xs, h), bars), expected)


@pytest.mark.slow
def test_vmap_over_parameters_and_over_inputs(x64):
  (params, xs, h), bars = problem()
  many = jax.tree.map(lambda leaf: jnp.stack([leaf, leaf / 2]), params)
  more = jnp.stack([xs, -xs])
  for axes, arguments in (
    ((0, None, None), (many, xs, h)),
    ((None, 0, None), (params, more, h)),
  ):
    vmapped = lambda function, axes=axes: jax.jit(
      jax.vmap(lambda *a: gradients(function, a, bars), axes)
    )
    close(vmapped(elman.apply)(*arguments), vmapped(plain)(*arguments))


def test_a_second_call_does_not_trace():
  traces = []
  params = elman.init(jax.random.key(0), 2, 4)

  @jax.jit
  def loss(params, xs, lengths, key):
    traces.append(xs)
    outputs, _ = elman.apply(params, xs, lengths=lengths, zoneout=0.5, key=key)
    return jnp.sum(outputs)

  results = [
    float(loss(params, jnp.ones((5, 3, 2)), jnp.array(n), jax.random.key(s)))
    for n, s in (([5, 5, 5], 0), ([1, 0, 5], 0), ([5, 5, 5], 1))
  ]
  assert len(traces) == 1 and len(set(results)) == 3


@pytest.mark.sharded
@pytest.mark.parametrize("axis_type", [AxisType.Auto, AxisType.Explicit])
def test_a_batch_sharded_over_eight_devices(x64, monkeypatch, axis_type):
  few_rows(monkeypatch, 32)
  (params, xs, h), bars = problem(batch=16)
  lengths = jnp.arange(16) % 6
  theirs = jax.jit(lambda n, *a: gradients(plain, *a, lengths=n))
  expected = theirs(lengths, (params, xs, h), bars)
  mesh = jax.make_mesh((8,), ("data",), axis_types=(axis_type,))
  rows = lambda *spec: NamedSharding(mesh, P(*spec))
  arguments = jax.device_put(
    (lengths, (params, xs, h), bars),
    (
      rows("data"),
      (rows(), rows(None, "data"), rows("data")),
      (rows(None, "data"), rows("data")),
    ),
  )
  ours = jax.jit(lambda n, *a: gradients(elman.apply, *a, lengths=n))
  with jax.set_mesh(mesh):
    result = ours(*arguments)
  close(result, expected)
  (outputs, _), _ = result
  assert len(outputs.sharding.device_set) == 8
  assert outputs.sharding.shard_shape(outputs.shape)[1] == 2


@pytest.mark.sharded
@pytest.mark.slow
@pytest.mark.parametrize("cell", [lstm, gru, ugrnn, gated_input])
def test_meshes_with_explicit_axes(x64, cell):
  """Every cell, with the carry that it begins with."""
  options = {"layer_norm": True, "learned_carry": True, "dtype": jnp.float64}
  params = cell.init(jax.random.key(0), 2, 4, **options)
  xs = draw(0, 3, 16, 2)
  gradient = jax.jit(
    jax.grad(lambda *a: jnp.sum(jnp.sin(cell.apply(*a)[0])), (0, 1))
  )
  expected = gradient(params, xs)
  mesh = jax.make_mesh((8,), ("data",), axis_types=(AxisType.Explicit,))
  sharding = NamedSharding(mesh, P(None, "data", None))
  with jax.set_mesh(mesh):
    result = gradient(params, jax.device_put(xs, sharding))
  close(result, expected)
  assert result[1].sharding.is_equivalent_to(sharding, 3)


STEPS, BATCH, UNITS = 2048, 4, 8


@pytest.mark.parametrize("batch", [1, 3])
def test_states_and_gates_kept_apart_or_side_by_side(x64, monkeypatch, batch):
  params = lstm.init(jax.random.key(0), 2, 4, dtype=jnp.float64)
  arguments = params, draw(2, 5, batch, 2)
  bars = (
    draw(3, 5, batch, 4),
    lstm.LSTMCarry(draw(4, batch, 4), draw(5, batch, 4)),
  )
  together = gradients(lstm.apply, arguments, bars)
  monkeypatch.setattr(blocks, "_SMALL", 0)
  close(gradients(lstm.apply, arguments, bars), together)


def lstm_arguments() -> Any:
  params = jax.eval_shape(lambda: lstm.init(jax.random.key(0), 3, UNITS))
  xs = jax.ShapeDtypeStruct((STEPS, BATCH, 3), jnp.float32)
  return params, xs, jax.ShapeDtypeStruct((BATCH,), jnp.int32)


def test_evaluation_stacks_nothing_but_outputs():
  program = jax.make_jaxpr(lambda p, xs, n: lstm.apply(p, xs, lengths=n))
  shapes = scan_outputs(program(*lstm_arguments()).jaxpr)
  block = 128  # steps, of 512 rows
  assert sorted(shapes) == [
    (STEPS // block, block, BATCH, UNITS),
    (block, BATCH, UNITS),
  ] or sorted(shapes) == [
    (block, BATCH, UNITS),
    (STEPS // block, block, BATCH, UNITS),
  ], shapes


def temporaries(function):
  compiled = jax.jit(function).lower(*lstm_arguments()).compile()
  return compiled.memory_analysis().temp_size_in_bytes


@pytest.mark.slow
def test_memory():
  history = STEPS * BATCH * UNITS * 4  # of one array of the carry

  def gradient(recompute):
    def loss(params, xs, lengths):
      outputs, _ = lstm.apply(params, xs, lengths=lengths, recompute=recompute)
      return jnp.sum(outputs**2)

    return jax.grad(loss)

  of_values = temporaries(
    lambda p, xs, n: jnp.sum(lstm.apply(p, xs, lengths=n)[0] ** 2)
  )
  assert of_values < 3 * history  # outputs, a copy of them and a block
  kept, computed = temporaries(gradient(False)), temporaries(gradient(True))
  assert kept - computed > 3 * history  # of the four gates
  # The carry after each step is kept once.
  assert computed < of_values + 4 * history


def test_recomputing_keeps_no_gates():
  params, xs, lengths = lstm_arguments()

  def gates(recompute):
    forward = partial(lstm.forward, recompute=recompute)
    return jax.eval_shape(
      lambda *a: forward(a[0], a[1], lengths=a[2])[2].gates, params, xs, lengths
    )

  assert gates(True) is None
  assert gates(False).shape == (STEPS, BATCH, 4 * UNITS)
