"""Every cell and every option against a plain loop and its autodiff.

The references below are the equations of the papers, written out step by step;
masks are drawn as the cells draw them, but applied by `where` and products.
Most tests run operation by operation, which is quicker here than to compile
hundreds of programs.
"""

import itertools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from revmom.cells import elman, gated_input, gru, lstm, ugrnn
from revmom.cells.sequences import masks, residuals

T, B, D, H = 3, 3, 3, 4
CELLS = {
  "elman": elman,
  "gated_input": gated_input,
  "gru": gru,
  "lstm": lstm,
  "ugrnn": ugrnn,
}
ON_OFF = (True, False)
COMMON = {"bias": ON_OFF, "layer_norm": ON_OFF, "learned_carry": ON_OFF}
CHOICES = {
  "elman": COMMON,
  "gated_input": COMMON,
  "gru": {"reset": ("before", "after"), **COMMON},
  "lstm": {"peephole": ON_OFF, "projection_size": (3, None), **COMMON},
  "ugrnn": COMMON,
}


def combinations(choices):
  return [
    dict(zip(choices, values, strict=True))
    for values in itertools.product(*choices.values())
  ]


STRUCTURES = [
  (name, structure)
  for name in CELLS
  for structure in combinations(CHOICES[name])
]
# Everything on.
FULL = {name: combinations(CHOICES[name])[0] for name in CELLS}


def only(*quick):
  """All cells, of which some are quick enough to be tested every time."""
  marks = lambda name: () if name in quick else pytest.mark.slow
  return [pytest.param(name, marks=marks(name)) for name in CELLS]


# The equations.


def layer_norm(values):
  mean = jnp.mean(values, -1, keepdims=True)
  variance = jnp.mean((values - mean) ** 2, -1, keepdims=True)
  return (values - mean) / jnp.sqrt(variance + 1e-5)


def affine(inputs, weights, gain, bias=None):
  result = inputs @ weights
  result = result if gain is None else layer_norm(result) * gain
  return result if bias is None else result + bias


def both_sides(p, x, h, parts):
  from_input = affine(x, p.input_weights, p.input_gain, p.bias)
  from_state = affine(h, p.recurrent_weights, p.recurrent_gain)
  return jnp.split(from_input, parts, -1), jnp.split(from_state, parts, -1)


def elman_step(p, x, states, kept, nudge):
  (a,), (b,) = both_sides(p, x, states[0], 1)
  return (nudge("hidden", jnp.tanh(a + b)),)


def lstm_step(p, x, states, kept, nudge):
  h, c = states
  inputs, recurrent = both_sides(p, x, h, 4)
  i, f, o, g = (a + b for a, b in zip(inputs, recurrent, strict=True))
  if p.peephole is not None:
    i, f = i + p.peephole[0] * c, f + p.peephole[1] * c
  i = nudge("input_gate", jax.nn.sigmoid(i))
  f = nudge("forget_gate", jax.nn.sigmoid(f))
  g = nudge("candidate", jnp.tanh(g))
  c = nudge("cell", f * c + i * g * kept)
  if p.peephole is not None:
    o = o + p.peephole[2] * c
  o = nudge("output_gate", jax.nn.sigmoid(o))
  seen = c
  if p.cell_gain is not None:
    seen = layer_norm(c) * p.cell_gain + p.cell_bias
  h = o * jnp.tanh(seen)
  if p.projection is not None:
    h = h @ p.projection
  return nudge("hidden", h), c


def gru_step(p, x, states, kept, nudge):
  (h,) = states
  inputs = affine(x, p.input_weights, p.input_gain, p.bias)
  xr, xz, xn = jnp.split(inputs, 3, -1)
  recurrent = affine(h, p.recurrent_weights, p.recurrent_gain)
  before = p.candidate_weights is not None
  hr, hz, *hn = jnp.split(recurrent, 2 if before else 3, -1)
  r = nudge("reset_gate", jax.nn.sigmoid(xr + hr))
  z = nudge("update_gate", jax.nn.sigmoid(xz + hz))
  if before:
    inner = affine(r * h, p.candidate_weights, p.candidate_gain)
  elif p.candidate_bias is None:
    inner = r * hn[0]
  else:
    inner = r * (hn[0] + p.candidate_bias)
  n = nudge("candidate", jnp.tanh(xn + inner))
  return (nudge("hidden", (1 - z) * h + z * n * kept),)


def ugrnn_step(p, x, states, kept, nudge):
  (h,) = states
  (xg, xr), (hg, hr) = both_sides(p, x, h, 2)
  gate = nudge("update_gate", jax.nn.sigmoid(xg + hg))
  candidate = nudge("candidate", jnp.tanh(xr + hr))
  return (nudge("hidden", gate * h + (1 - gate) * candidate * kept),)


def gated_input_step(p, x, states, kept, nudge):
  (h,) = states
  (xg, xf, xr), (hg, hf, hr) = both_sides(p, x, h, 3)
  if p.recurrent_bias is not None:
    hr = hr + p.recurrent_bias
  gate = nudge("update_gate", jax.nn.sigmoid(xg + hg))
  mixing = nudge("input_gate", jax.nn.sigmoid(xf + hf))
  candidate = nudge("candidate", jnp.tanh(mixing * hr + (1 - mixing) * xr))
  return (nudge("hidden", gate * h + (1 - gate) * candidate * kept),)


STEPS = {
  "elman": elman_step,
  "gated_input": gated_input_step,
  "gru": gru_step,
  "lstm": lstm_step,
  "ugrnn": ugrnn_step,
}


class Problem(NamedTuple):
  name: str
  params: Any
  xs: jax.Array  # [T, B, D]
  carry: Any
  output_bars: jax.Array  # [T, B, H]
  carry_bar: Any

  @property
  def cell(self):
    return CELLS[self.name]


def problem(
  name, steps=T, batch=B, inputs=D, hidden=H, dtype=jnp.float64, **structure
):
  """Parameters, data and cotangents, none of them special."""
  rng = np.random.default_rng(7)
  init = lambda key: CELLS[name].init(
    key, inputs, hidden, dtype=dtype, **structure
  )
  normal = lambda *shape: jnp.asarray(rng.normal(size=shape), dtype)
  params = jax.tree.map(
    lambda leaf: jnp.asarray(rng.normal(size=leaf.shape) * 0.6, dtype),
    jax.eval_shape(init, jax.random.key(0)),
  )
  outputs = structure.get("projection_size") or hidden
  carry = normal(batch, outputs) * 0.5
  if name == "lstm":
    carry = lstm.LSTMCarry(carry, normal(batch, hidden))
  return Problem(
    name,
    params,
    normal(steps, batch, inputs),
    carry,
    normal(steps, batch, outputs),
    jax.tree.map(lambda leaf: normal(*leaf.shape), carry),
  )


def hold(rate, held, old, new):
  """Zoneout, or its mean if nothing was drawn."""
  if held is None:
    return rate * old + (1 - rate) * new
  return jnp.where(held == 1, old, new)


def reference(
  problem,
  params,
  xs,
  carry,
  *,
  lengths=None,
  reverse=False,
  batch_major=False,
  zoneout=0.0,
  dropout=0.0,
  key=None,
  recompute=False,
  nudges=None,
):
  """One step after the other: outputs and the final carry."""
  del recompute
  xs = jnp.swapaxes(xs, 0, 1) if batch_major else xs
  if carry is None:
    carry = jax.tree.map(jnp.zeros_like, problem.carry)
    if params.initial_carry is not None:
      carry = jax.tree.map(jnp.add, carry, params.initial_carry)
  states, structure = jax.tree.flatten(carry)
  rates = zoneout if isinstance(zoneout, tuple) else (zoneout,) * len(states)
  times = jnp.arange(len(xs))
  drawn = masks.draw(masks.Rates(rates, dropout), key, None, times, states)
  outputs = [None] * len(xs)
  for t in range(len(xs))[:: -1 if reverse else 1]:
    kept = 1.0 if drawn.kept is None else drawn.kept[t]
    nudge = lambda name, value, t=t: (
      value if nudges is None else value + nudges[name][t]
    )
    new = STEPS[problem.name](params, xs[t], states, kept, nudge)
    if any(rates):
      held = [None if key is None else held[t] for held in drawn.held]
      new = list(map(hold, rates, held, states, new))
    outputs[t] = new[0]
    if lengths is not None:
      valid = (t < lengths)[:, None]
      outputs[t] = jnp.where(valid, new[0], 0)
      new = [jnp.where(valid, n, o) for o, n in zip(states, new, strict=True)]
    states = new
  stacked = jnp.stack(outputs)
  stacked = jnp.swapaxes(stacked, 0, 1) if batch_major else stacked
  return stacked, structure.unflatten(states)


def assert_close(got, expected, tolerance=1e-12):
  """Equal relative to the largest element of each array."""
  assert jax.tree.structure(got) == jax.tree.structure(expected)
  for a, b in zip(jax.tree.leaves(got), jax.tree.leaves(expected), strict=True):
    a, b = np.asarray(a, np.float64), np.asarray(b, np.float64)
    size = np.max(np.abs(b), initial=1e-3)
    np.testing.assert_allclose(a, b, rtol=0, atol=tolerance * size)


def in_layout(problem, batch_major):
  if not batch_major:
    return problem
  return problem._replace(
    xs=jnp.swapaxes(problem.xs, 0, 1),
    output_bars=jnp.swapaxes(problem.output_bars, 0, 1),
  )


def with_gradients(problem, carry, function):
  """The results of a sweep, and its gradients by its own derivatives."""
  results, pull = jax.vjp(function, problem.params, problem.xs, carry)
  return results, pull((problem.output_bars, problem.carry_bar))


def by_hand(problem, carry, **options):
  """The same by `forward` and `backward`."""
  outputs, final, residuals = problem.cell.forward(
    problem.params, problem.xs, carry, **options
  )
  gradients = problem.cell.backward(
    problem.params, residuals, problem.output_bars, problem.carry_bar
  )
  initial = None if carry is None else gradients.initial_carry
  return (outputs, final), (gradients.params, gradients.inputs, initial)


def check(problem, given_carry=True, by_apply=True, **options):
  """Values and gradients of a sweep equal those of the reference."""
  problem = in_layout(problem, options.get("batch_major", False))
  carry = problem.carry if given_carry else None
  with jax.disable_jit():
    expected = with_gradients(
      problem, carry, lambda *args: reference(problem, *args, **options)
    )
    assert_close(by_hand(problem, carry, **options), expected)
    if by_apply:
      apply = lambda *args: problem.cell.apply(*args, **options)
      assert_close(with_gradients(problem, carry, apply), expected)


def everything(name):
  """All options of a sweep."""
  return {
    "lengths": jnp.array([T, 0, 2]),
    "zoneout": (0.4, 0.2) if name == "lstm" else 0.3,
    "dropout": 0.0 if name == "elman" else 0.25,
    "key": jax.random.key(3),
    "reverse": True,
    "batch_major": True,
    "recompute": True,
  }


def is_odd(_, structure):
  """Whether an odd number of its options is on: so are half of them."""
  return (
    sum(value not in (False, None, "after") for value in structure.values()) % 2
  )


# Any two options are on and off in all four ways among them.
@pytest.mark.sampled(2, rest="exhaustive")
@pytest.mark.parametrize(
  ("name", "structure"), [pair for pair in STRUCTURES if is_odd(*pair)]
)
def test_half_of_the_structures(x64, name, structure):
  learned = structure["learned_carry"]
  check(
    problem(name, **structure),
    given_carry=not learned,
    by_apply=False,
    **everything(name),
  )


@pytest.mark.sampled(36, rest="exhaustive")
@pytest.mark.slow
@pytest.mark.parametrize("full", [False, True])
@pytest.mark.parametrize(("name", "structure"), STRUCTURES)
def test_structures_with_and_without_all_options(x64, name, structure, full):
  learned = structure["learned_carry"]
  options = everything(name) if full else {}
  check(problem(name, **structure), given_carry=learned != full, **options)


SWEEPS = combinations(
  {
    "zoneout": (0.0, 0.3, "each"),
    "dropout": (0.0, 0.25),
    "key": (None, 3),
    "lengths": (None, (T, 0, 2)),
    "reverse": (False, True),
    "batch_major": (False, True),
    "recompute": (False, True),
  }
)


def check_sweep(name, zoneout, key, lengths, **options):
  rates = (0.4, 0.2) if name == "lstm" else (0.4,)
  check(
    problem(name, **FULL[name]),
    by_apply=options["recompute"],
    zoneout=rates if zoneout == "each" else zoneout,
    key=None if key is None else jax.random.key(key),
    lengths=None if lengths is None else jnp.array(lengths),
    **options,
  )


@pytest.mark.sampled(3)
# Every 13th has each value of each option with each of every other.
@pytest.mark.parametrize("options", SWEEPS[::13])
def test_some_sweeps(x64, options):
  check_sweep("lstm", **options)


@pytest.mark.sampled(24, rest="exhaustive")
@pytest.mark.slow
@pytest.mark.parametrize(
  ("name", "options"),
  [("lstm", options) for options in SWEEPS]
  + [("ugrnn", options) for options in SWEEPS[::5]],
)
def test_all_sweeps(x64, name, options):
  check_sweep(name, **options)


@pytest.mark.parametrize(
  ("name", "structure"), [*FULL.items(), ("gru", {"learned_carry": True})]
)
def test_every_parameter_receives_a_gradient(x64, name, structure):
  given = problem(name, **structure)
  with jax.disable_jit():
    _, (gradients, of_inputs, _) = by_hand(given, None)
  for path, leaf in jax.tree.leaves_with_path(gradients):
    assert bool(jnp.all(leaf != 0)), path
  assert bool(jnp.all(of_inputs != 0))
  for leaf, bar in zip(
    jax.tree.leaves(given.params), jax.tree.leaves(gradients), strict=True
  ):
    assert leaf.shape == bar.shape and leaf.dtype == bar.dtype


@pytest.mark.slow
@pytest.mark.parametrize("name", CELLS)
def test_blocks(x64, name, monkeypatch):
  monkeypatch.setattr(residuals, "BLOCK_ROWS", 2 * B)  # 2, 2 and 1 steps
  lengths = jnp.array([5, 0, 3])
  given = problem(name, steps=5, **FULL[name])
  check(given, **everything(name) | {"lengths": lengths})
  check(given, **everything(name) | {"lengths": lengths, "reverse": False})


@pytest.mark.parametrize("name", only("lstm", "gru"))
def test_padding_may_hold_anything(x64, name):
  options = {**everything(name), "batch_major": False}
  given = problem(name, **FULL[name])
  padded = jnp.arange(T)[:, None] >= options["lengths"]
  with jax.disable_jit():
    _, expected = by_hand(given, given.carry, **options)
    for anything in (jnp.nan, jnp.inf, 0.0):
      xs = jnp.where(padded[..., None], anything, given.xs)
      other = given._replace(xs=xs)
      (outputs, _), gradients = by_hand(other, given.carry, **options)
      jax.tree.map(np.testing.assert_array_equal, gradients, expected)
      assert not bool(jnp.any(outputs[padded]))
      assert not bool(jnp.any(gradients[1][padded]))


@pytest.mark.parametrize("name", CELLS)
def test_steps_in_a_scan_are_a_sweep(x64, name):
  given = problem(name, **FULL[name])
  with jax.disable_jit():
    carry, outputs = given.carry, []
    for x in given.xs:
      carry, output = given.cell.step(given.params, carry, x)
      outputs.append(output)
    expected = reference(given, given.params, given.xs, given.carry)
    assert_close((jnp.stack(outputs), carry), expected)


@pytest.mark.parametrize("name", only("lstm", "gru"))
def test_adjoints_of_gates_and_states(x64, name):
  """Those of what is added to a gate or state, at every step."""
  given = problem(name, **FULL[name])
  options = {**everything(name), "batch_major": False}
  with jax.disable_jit():
    _, _, residuals = given.cell.forward(
      given.params, given.xs, given.carry, **options
    )
    adjoints = given.cell.backward(
      given.params,
      residuals,
      given.output_bars,
      given.carry_bar,
      adjoints=True,
    ).adjoints._asdict()
    nudges = jax.tree.map(jnp.zeros_like, adjoints)
    _, pull = jax.vjp(
      lambda nudges: reference(
        given, given.params, given.xs, given.carry, nudges=nudges, **options
      ),
      nudges,
    )
    (expected,) = pull((given.output_bars, given.carry_bar))
  assert_close(adjoints, expected)
  assert {"hidden"} <= set(adjoints)
  for name, bar in adjoints.items():
    assert bool(jnp.any(bar != 0)), name
    assert not bool(jnp.any(bar[:, 1])), "a sequence of length 0"


def squares(results):
  return sum(jnp.sum(leaf**2) for leaf in jax.tree.leaves(results))


@pytest.mark.parametrize("name", only("lstm"))
def test_finite_differences(x64, name):
  given = problem(name, **FULL[name])
  arguments = given.params, given.xs, given.carry
  direction = jax.tree.map(jnp.cos, arguments)
  moved = lambda by: jax.tree.map(lambda a, d: a + by * d, arguments, direction)
  with jax.disable_jit():
    loss = lambda arguments: squares(given.cell.apply(*arguments))
    gradients = jax.grad(loss)(arguments)
    slope = sum(
      jnp.vdot(a, b)
      for a, b in zip(
        jax.tree.leaves(gradients), jax.tree.leaves(direction), strict=True
      )
    )
    rise = lambda by: loss(moved(by)) - loss(moved(-by))
    small = 1e-4
    numerical = (8 * rise(small) - rise(2 * small)) / (12 * small)
  np.testing.assert_allclose(slope, numerical, rtol=1e-8)


def check_second_derivatives(name, structure, **options):
  given = problem(name, **structure)
  arguments = given.params, given.xs, given.carry
  direction = jax.tree.map(jnp.cos, arguments)

  def gradient(function):
    return jax.grad(lambda args: squares(function(*args, **options)))

  def along(gradients):
    return sum(
      jnp.vdot(a, b)
      for a, b in zip(
        jax.tree.leaves(gradients), jax.tree.leaves(direction), strict=True
      )
    )

  of_apply = gradient(given.cell.apply)
  plain = gradient(lambda *args, **kw: reference(given, *args, **kw))
  with jax.disable_jit():
    _, expected = jax.jvp(plain, (arguments,), (direction,))
    _, forward_over_reverse = jax.jvp(of_apply, (arguments,), (direction,))
    assert_close(forward_over_reverse, expected)
    reverse_over_reverse = jax.grad(lambda args: along(of_apply(args)))
    assert_close(reverse_over_reverse(arguments), expected)
    jvp = lambda function: jax.jvp(
      lambda args: function(*args, **options)[:2], (arguments,), (direction,)
    )
    plain_jvp = jvp(lambda *args, **kw: reference(given, *args, **kw))
    assert_close(jvp(given.cell.forward), plain_jvp)


@pytest.mark.slow
def test_second_derivatives(x64):
  check_second_derivatives("lstm", {}, lengths=jnp.array([T, 0, 2]))


@pytest.mark.slow
@pytest.mark.parametrize("name", CELLS)
def test_second_derivatives_with_all_options(x64, name):
  options = {**everything(name), "batch_major": False}
  check_second_derivatives(name, FULL[name], **options)


def bfloat16_errors(name):
  """Results, and distances from float32's of theirs and of the reference's."""
  structure = FULL[name] | {"learned_carry": False}
  short = problem(name, steps=5, dtype=jnp.bfloat16, **structure)
  widen = lambda tree: jax.tree.map(lambda a: a.astype(jnp.float32), tree)
  wide = Problem(name, *widen(short[1:]))
  mixed = short._replace(carry=wide.carry, carry_bar=wide.carry_bar)
  plain = lambda *args: reference(short, *args)
  exact, ours, naive = jax.jit(
    lambda: (
      by_hand(wide, wide.carry),
      by_hand(mixed, mixed.carry),
      with_gradients(short, short.carry, plain),
    )
  )()
  error = lambda a, b: float(jnp.max(jnp.abs(a - b)) / jnp.max(jnp.abs(b)))
  return ours, *(
    jax.tree.leaves(jax.tree.map(error, widen(results), exact))
    for results in (ours, naive)
  )


@pytest.mark.slow
@pytest.mark.parametrize("name", only("elman"))
def test_bfloat16(name):
  (values, gradients), errors, naive = bfloat16_errors(name)
  (outputs, final), (params_bar, xs_bar, carry_bar) = values, gradients
  for leaf in jax.tree.leaves((outputs, params_bar, xs_bar)):
    assert leaf.dtype == jnp.bfloat16
  for leaf in jax.tree.leaves((final, carry_bar)):
    assert leaf.dtype == jnp.float32
  # Rounding may be amplified by a problem: a loop in bfloat16, whose states
  # are rounded as well, says by how much. The type's spacing is 0.008.
  for ours, loop in zip(errors, naive, strict=True):
    assert ours < 1.25 * loop + 0.008, (errors, naive)
  assert sum(errors) < sum(naive)


def wrong(name, match, xs=(T, B, D), dtype=jnp.float32, **arguments):
  given = problem(name, dtype=jnp.float32)
  with pytest.raises(ValueError, match=match):
    given.cell.apply(given.params, jnp.zeros(xs, dtype), **arguments)
  with pytest.raises(ValueError, match=match):
    given.cell.forward(given.params, jnp.zeros(xs, dtype), **arguments)


@pytest.mark.parametrize("name", CELLS)
def test_wrong_inputs(name):
  wrong(name, f"{name}: .*must be.*give a single sequence", xs=(T, D))
  wrong(name, r"\(3, 3, 5\).*\[T, B, 3\].*set batch_major", xs=(T, B, 5))
  wrong(name, "bfloat16.*float32: cast one", dtype=jnp.bfloat16)


@pytest.mark.parametrize("name", CELLS)
def test_wrong_carries(name):
  match = "the carry .* shapes .* must (have|be)"
  carry = problem(name, dtype=jnp.float32).carry
  wrong(name, match, initial_carry=jax.tree.map(lambda a: a[:2], carry))
  wrong(name, match, initial_carry=jax.tree.map(lambda a: a[0], carry))
  wrong(name, match, initial_carry=(jnp.zeros((B, H)),) * 3)


@pytest.mark.parametrize("name", ["lstm", "gru"])
def test_carries_of_other_libraries(name):
  given = problem(name, dtype=jnp.float32)
  arrays = tuple(jax.tree.leaves(given.carry))
  if name == "lstm":  # (h, c) and (c, h) can't be told apart
    wrong(name, r"is a tuple.*LSTMCarry\(hidden=\(3, 4\)", initial_carry=arrays)
  layered = jax.tree.map(lambda array: array[None], given.carry)
  wrong(name, "without an axis of layers", initial_carry=layered)
  with pytest.raises(ValueError, match="without an axis of layers"):
    given.cell.step(given.params, layered, jnp.zeros((B, D)))


@pytest.mark.parametrize("name", CELLS)
def test_wrong_sizes(name):
  key, init = jax.random.key(0), CELLS[name].init
  for size in (0, -3, 2.5):
    with pytest.raises(
      ValueError, match=f"hidden_size={size}; give at least 1"
    ):
      init(key, D, size)
    with pytest.raises(ValueError, match=f"input_size={size}; give at least 1"):
      init(key, size, H)


def test_wrong_lengths():
  match = "must be between 0 and 3, the number of steps; got "
  wrong("lstm", match + r"\[4, -1\]", lengths=jnp.array([4, 3, -1]))
  match = "must be 3 integers, one for each sequence; got "
  wrong("lstm", match + r"float32 of shape \(3,\)", lengths=jnp.ones(3))
  wrong("lstm", match + r"int32 of shape \(2,\)", lengths=jnp.array([1, 2]))
  wrong("lstm", match + r"int32 of shape \(\)", lengths=jnp.array(1))


def test_wrong_rates():
  for name, rate in itertools.product(["zoneout", "dropout"], [1.0, -0.1, 2]):
    match = rf"{name} is {float(rate)}, but must be in \[0, 1\)"
    wrong("lstm", match, **{name: rate})
  wrong("lstm", "nan, but must be in", zoneout=float("nan"))
  match = "has 3 rates, but the carry has 2 arrays: give one rate, or one"
  wrong("lstm", match, zoneout=(0.1, 0.2, 0.3))
  wrong("gru", "has 2 rates, but the carry has 1 ", zoneout=(0.1, 0.2))
  wrong("elman", "elman cell has none.*Use zoneout, or drop", dropout=0.1)
