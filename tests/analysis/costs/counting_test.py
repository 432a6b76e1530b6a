"""Arithmetic against XLA's own count of unrolled programs, and by hand."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

from revmom.analysis import cost

WEIGHTS = jax.ShapeDtypeStruct((8, 8), jnp.float32)
VECTOR = jax.ShapeDtypeStruct((8,), jnp.float32)


def xla(function, *args):
  """FLOPs and transcendentals before XLA rewrites anything."""
  found = jax.jit(function).lower(*args).cost_analysis()
  return found["flops"], found.get("transcendentals", 0)


def counted(function, *args):
  work = cost(function, *args, backward=False).forward
  assert not work.uncounted
  return work.flops, work.transcendentals


def step(weights, hidden):
  return jnp.tanh(weights @ hidden) * 0.5 + hidden


def scanned(length):
  def run(weights, hidden):
    body = lambda hidden, _: (step(weights, hidden), None)
    return lax.scan(body, hidden, None, length=length)[0]

  return run


def unrolled(length):
  def run(weights, hidden):
    for _ in range(length):
      hidden = step(weights, hidden)
    return hidden

  return run


@pytest.mark.parametrize("length", [1, 2, 7, 100])
def test_a_scan_costs_what_its_steps_do(length):
  expected = length * (2 * 64 + 2 * 8), length * 8
  assert counted(scanned(length), WEIGHTS, VECTOR) == expected
  assert xla(unrolled(length), WEIGHTS, VECTOR) == expected


def test_compiled_products_of_an_unrolled_program():
  compiled = jax.jit(unrolled(10)).lower(WEIGHTS, VECTOR).compile()
  elementwise = 2 * 80
  multiply_adds = cost(scanned(10), WEIGHTS, VECTOR).forward.multiply_adds
  flops = compiled.cost_analysis()["flops"]
  assert 2 * multiply_adds + elementwise == flops
  # Which is why there is a counter here: XLA counts the body once.
  once = jax.jit(scanned(10)).lower(WEIGHTS, VECTOR).compile()
  assert once.cost_analysis()["flops"] < flops / 5


def test_nested_loops_multiply():
  def nested(weights, hidden):
    def outer(_, hidden):
      body = lambda hidden, _: (step(weights, hidden), None)
      return lax.scan(body, step(weights, hidden), None, length=3)[0]

    return lax.fori_loop(2, 7, outer, hidden)

  assert counted(nested, WEIGHTS, VECTOR) == xla(unrolled(20), WEIGHTS, VECTOR)


def test_programs_that_xla_counts_too():
  def layer_norm(x, gain):
    centred = x - jnp.mean(x, -1, keepdims=True)
    variance = jnp.mean(centred * centred, -1, keepdims=True)
    return centred * lax.rsqrt(variance + 1e-5) * gain

  def attention(q, k):
    scores = jnp.einsum("bth,bsh->bts", q, k)
    scores = scores - jnp.max(scores, -1, keepdims=True)
    weights = jnp.exp(scores)
    weights = weights / jnp.sum(weights, -1, keepdims=True)
    return jnp.einsum("bts,bsh->bth", weights, k)

  x = jax.ShapeDtypeStruct((2, 5, 8), jnp.float32)
  for function, args in (
    (layer_norm, (x, VECTOR)),
    (lambda x: jnp.sum(x**3, (0, 2)), (x,)),
    (lambda x: lax.log(x) / (x + 2.0), (x,)),
  ):
    assert counted(function, *args) == xla(function, *args)
  # XLA counts the choice of the maximum's neutral element besides.
  flops, transcendentals = counted(attention, x, x)
  ours = 2 * (2 * 50 * 8) + 40 + 50 + 40 + 50
  assert (flops, transcendentals) == (ours, 50)


@pytest.mark.skipif(
  not hasattr(lax, "polynomial"), reason="this JAX has a loop in its place"
)
def test_a_polynomial_costs_a_product_and_a_sum_a_degree():
  coefficients = jnp.arange(1.0, 5.0)
  assert counted(lambda x: jnp.polyval(coefficients, x), VECTOR) == (48, 0)


CONVOLUTIONS = [
  dict(window_strides=(1, 1), padding="SAME"),
  dict(window_strides=(2, 3), padding=((0, 2), (3, 1))),
  dict(window_strides=(1, 1), padding=((2, 2), (4, 0)), rhs_dilation=(2, 1)),
  dict(window_strides=(1, 1), padding=((1, 0), (0, 2)), lhs_dilation=(2, 3)),
  dict(window_strides=(1, 2), padding="SAME", feature_group_count=2),
  dict(window_strides=(1, 1), padding="VALID", batch_group_count=2),
]


def pairs(image, kernel, options):
  """Multiply-adds inside of the image, by a convolution with ones."""
  options = {
    **options,
    "dimension_numbers": ("NHWC", "HWIO", "NHWC"),
    "preferred_element_type": jnp.float32,
  }
  ones = jnp.ones(image), jnp.ones(kernel)
  return int(jnp.sum(lax.conv_general_dilated(*ones, **options)))


@pytest.mark.parametrize("options", CONVOLUTIONS)
def test_convolutions_leave_out_what_is_around_the_image(options):
  groups = options.get("feature_group_count", 1)
  image, kernel = (4, 7, 9, 6), (3, 2, 6 // groups, 8)
  function = lambda kernel, image: lax.conv_general_dilated(
    image, kernel, dimension_numbers=("NHWC", "HWIO", "NHWC"), **options
  )
  args = [jax.ShapeDtypeStruct(s, jnp.float32) for s in (kernel, image)]
  found = cost(function, *args, backward=False)
  expected = pairs(image, kernel, options)
  assert found.forward.multiply_adds == expected
  assert found.forward.flops == xla(function, *args)[0]
  if "batch_group_count" not in options:
    assert found.connections == expected


def test_the_backward_pass_of_a_product_is_two():
  x = jax.ShapeDtypeStruct((5, 8), jnp.float32)
  found = cost(lambda w, x: x @ w, WEIGHTS, x, argnums=(0, 1))
  assert found.forward.multiply_adds == 5 * 64
  assert found.backward.multiply_adds == 2 * 5 * 64
  # Data need no adjoint.
  assert cost(lambda w, x: x @ w, WEIGHTS, x).backward.multiply_adds == 5 * 64


def loss(function):
  return lambda *args: jnp.sum(function(*args))


@pytest.mark.parametrize("length", [1, 7])
def test_a_gradient_is_the_forward_and_the_backward_pass(length):
  function = loss(scanned(length))
  found = cost(function, WEIGHTS, VECTOR)
  whole = cost(jax.grad(function), WEIGHTS, VECTOR, backward=False).forward
  both = found.forward.multiply_adds + found.backward.multiply_adds
  assert whole.multiply_adds == both == 3 * 64 * length
  # Unrolled, the adjoint of the first state is no one's.
  unrolled_too = cost(jax.grad(loss(unrolled(length))), WEIGHTS, VECTOR)
  assert unrolled_too.forward.multiply_adds == both - 64


def test_recomputation_is_counted_in_the_backward_pass():
  plain = lambda w, x: jnp.sum(jnp.sin(jnp.sin(x @ w) @ w))
  x = jax.ShapeDtypeStruct((5, 8), jnp.float32)
  kept, again = cost(plain, WEIGHTS, x), cost(jax.checkpoint(plain), WEIGHTS, x)
  assert again.forward == kept.forward
  recomputed = again.backward.multiply_adds - kept.backward.multiply_adds
  assert recomputed == 2 * 5 * 64
  # sin(x w), its derivative, and that of the other.
  assert kept.activation_bytes == 3 * 4 * 5 * 8
  assert again.activation_bytes == 0


def test_a_custom_backward_pass_is_the_one_that_counts():
  @jax.custom_vjp
  def layer(w, x):
    return x @ w

  def forward(w, x):
    return layer(w, x), (w, x)

  def backward(residuals, bar):
    w, x = residuals
    slow = x @ (w @ (w @ w))
    return x.T @ bar + jnp.sum(slow), bar @ w.T

  layer.defvjp(forward, backward)
  x = jax.ShapeDtypeStruct((5, 8), jnp.float32)
  found = cost(layer, WEIGHTS, x)
  assert found.forward.multiply_adds == 5 * 64
  assert found.backward.multiply_adds == 2 * 5 * 64 + 2 * 8 * 64
  assert found.activation_bytes == 0


def test_branches_and_the_dearest_of_them():
  def choose(w, x):
    dear = lambda x: w @ (w @ x)
    return lax.cond(x[0] > 0, dear, lambda x: w @ x, x)

  found = cost(choose, WEIGHTS, VECTOR)
  assert found.forward.multiply_adds == 2 * 64
  assert found.forward.dataflow_rounds == 2
  assert found.forward.scheduled_rounds == 2
  assert found.branches == 1
  assert "of 1 cond the dearest branch is counted" in str(found)


def newton(w, x, stop):
  def improve(state):
    return state[0] + 1, w @ state[1]

  return lax.while_loop(lambda state: state[0] < stop, improve, (0, x))[1]


def test_while_loops_need_a_number():
  with pytest.raises(ValueError, match="improve.*trip_counts={'improve'"):
    cost(newton, WEIGHTS, VECTOR, 5)
  found = cost(
    newton, WEIGHTS, VECTOR, 5, backward=False, trip_counts={"improve": 9}
  )
  assert found.forward.multiply_adds == 9 * 64
  assert found.forward.scheduled_rounds == 9
  assert found.forward.dataflow_rounds == 9
  assert found.connections == 9 * 64


def test_while_loops_with_static_bounds():
  # Doubles until it is 100 or more, from 3: 6 12 24 48 96 192.
  def grow(w, x):
    double = lambda state: (2 * state[0], w @ state[1])
    return lax.while_loop(lambda state: state[0] < 100, double, (3, x))[1]

  found = cost(grow, WEIGHTS, VECTOR, backward=False)
  assert found.forward.multiply_adds == 6 * 64
  assert found.forward.dataflow_rounds == 6


def test_what_is_unknown_is_listed():
  def solve(w, x):
    body = lambda x, _: (jnp.linalg.solve(w, x), None)
    return lax.scan(body, x, None, length=3)[0]

  found = cost(solve, WEIGHTS, VECTOR, backward=False)
  assert found.forward.uncounted["lu"] == 3
  assert "3 x lu" in str(found)


def test_integers_and_random_bits_are_no_floating_point_operations():
  def noise(key, x):
    return x + jax.random.uniform(key, (8,)) * jnp.arange(8, dtype=float)

  found = cost(noise, jax.random.key(0), VECTOR).forward
  assert not found.uncounted
  assert found.multiply_adds == 0
  # The noise, the sum, and what turns bits into floats.
  assert 16 <= found.flops <= 64


def test_the_report_is_a_table():
  found = cost(loss(scanned(10)), WEIGHTS, VECTOR)
  lines = str(found).splitlines()
  rows = {line[:24].strip(): line[24:].split() for line in lines}
  assert rows["parameters"] == ["64"]
  assert rows["multiply-adds"] == ["640", f"{found.backward.multiply_adds:,}"]
  assert rows["rounds as scheduled"][0] == "10"


def test_parameters_are_the_floats_of_their_arguments():
  tree = {"w": np.ones((3, 4), np.float32), "steps": np.arange(7)}
  found = cost(lambda p, x: x @ p["w"], tree, jnp.ones((2, 3)))
  assert found.parameters == 12
