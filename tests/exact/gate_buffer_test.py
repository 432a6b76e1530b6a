"""Gates of each element's own against Python's integers, and over long runs."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from jax import lax

from revmom.exact import fixed_point, gate_buffer

SIZE, WALK = 5, 40  # of fixed sizes, so that examples share a program
LEAST = gate_buffer.least_gate(gate_buffer.MOST_BITS)
LIMIT = {"int32": 2**30 - 2**16, "int64": 2**62 - 2**32}
FEW = settings(
  max_examples=60,
  deadline=None,
  derandomize=True,
  suppress_health_check=[HealthCheck.function_scoped_fixture],
)


@jax.jit
def there_and_back(start, gates, increments):
  """The integers and stack after all steps, and those before, undone."""
  room = gate_buffer.room_needed(start.size, len(gates), gate_buffer.MOST_BITS)
  buffer = gate_buffer.init(start, room)

  def multiply(carry, now):
    after = gate_buffer.multiply_add(*carry, *now)
    return after, after[0]

  end, all_after = lax.scan(multiply, (start, buffer), (gates, increments))
  bare = lambda buffer: buffer._replace(words=None)
  words = end[1].words

  def divide(carry, now):
    integers, buffer = carry
    before, buffer = gate_buffer.subtract_divide(
      integers, buffer._replace(words=words), *now
    )
    return (before, bare(buffer)), before

  back, all_before = lax.scan(
    divide, (end[0], bare(end[1])), (gates, increments), reverse=True
  )
  return end, all_after, back, all_before


def plain(start, gates, increments):
  """Equation (1) with Python's integers and a list of bytes."""
  numbers = [2**24] * len(start)
  values, stack, rows = list(start), [], []
  for gates_now, increments_now in zip(gates, increments, strict=True):
    for e, (n, j) in enumerate(zip(gates_now, increments_now, strict=True)):
      high, low = divmod(numbers[e], 1024)
      if high * 1024 >= n * 2**22:
        high, byte = divmod(high, 256)
        stack.append(byte)
      rest, digit = divmod(high * 1024 + low, n)
      product, low = divmod(values[e] * n + digit, 1024)
      values[e], numbers[e] = product + j, rest * 1024 + low
    rows.append(list(values))
  return rows, numbers, stack


@st.composite
def walks(draw, dtype):
  """Integers that stay on their grid, gates and increments of all steps."""
  limit = LIMIT[dtype] // 8
  corners = st.sampled_from([0, 1, -1, limit, -limit, -1024, 1023])
  values = corners | st.integers(-limit, limit)
  gate = st.sampled_from([LEAST, 1024, 1023, 512, 103]) | st.integers(
    LEAST, 1024
  )
  step = st.sampled_from([0, -1]) | st.integers(-limit // 64, limit // 64)
  rows = lambda own: st.lists(own, min_size=SIZE, max_size=SIZE)
  walk = lambda own: st.lists(rows(own), min_size=WALK, max_size=WALK)
  return draw(rows(values)), draw(walk(gate)), draw(walk(step))


def check(drawn, dtype):
  start, gates, increments = drawn
  arrays = (
    np.array(start, dtype),
    np.array(gates, np.int32),
    np.array(increments, dtype),
  )
  (last, buffer), rows, (back, empty), before = there_and_back(*arrays)
  expected, numbers, stack = plain(*drawn)
  np.testing.assert_array_equal(rows, expected)
  np.testing.assert_array_equal(last, expected[-1])
  np.testing.assert_array_equal(buffer.number, numbers)
  used = int(buffer.used)
  assert used == len(stack) <= buffer.words.size
  np.testing.assert_array_equal(buffer.words[:used], stack)
  np.testing.assert_array_equal(before[1:], expected[:-1])
  np.testing.assert_array_equal(back, start)
  assert bool(gate_buffer.is_empty(empty))


SATURATED = (
  [-1, 1, -(2**20), 0, 7],
  [[LEAST, 1024, LEAST, 1024, LEAST]] * WALK,
  [[0, -3, 5, 0, 0]] * WALK,
)


@FEW
@given(drawn=walks("int32"))
@example(drawn=SATURATED)
def test_int32_is_undone_and_is_pythons(drawn):
  check(drawn, "int32")


@FEW
@given(drawn=walks("int64"))
@example(drawn=SATURATED)
def test_int64_is_undone_and_is_pythons(drawn, x64):
  check(drawn, "int64")


@pytest.mark.parametrize("gates", [0.1, 0.5, 0.9, 0.99, "random", "saturated"])
def test_a_thousand_steps_and_no_more_bits_than_are_forgotten(gates):
  rng = np.random.default_rng(0)
  shape = 1000, 16, 16
  if gates == "random":
    values = 1 / (1 + np.exp(-3 * rng.normal(size=shape)))
  elif gates == "saturated":
    values = rng.choice([0.0, 1.0], shape)
  else:
    values = np.full(shape, gates)
  values = np.maximum(values, 2.0**-gate_buffer.MOST_BITS).astype(np.float32)
  increments = rng.normal(0, 2**20, shape).astype(np.int32)
  start = rng.integers(-(2**25), 2**25, shape[1:]).astype(np.int32)
  rounded = gate_buffer.to_gates(jnp.asarray(values), LEAST)
  (_, buffer), _, (back, empty), _ = there_and_back(start, rounded, increments)
  np.testing.assert_array_equal(back, start)
  assert bool(gate_buffer.is_empty(empty)) and not gate_buffer.is_full(buffer)
  forgotten = -np.sum(np.log2(np.asarray(rounded, np.float64) / 1024))
  bits = float(gate_buffer.bits_in(buffer))
  assert bits == pytest.approx(forgotten, rel=2e-3)
  assert 8 * int(buffer.used) <= 1.002 * forgotten


def test_products_are_rounded_to_a_unit():
  rng = np.random.default_rng(1)
  start = rng.integers(-(2**29), 2**29, 4096).astype(np.int32)
  gates = rng.integers(LEAST, 1025, 4096).astype(np.int32)
  buffer = gate_buffer.init(jnp.asarray(start), 4096)
  after, _ = jax.jit(gate_buffer.multiply_add)(start, buffer, gates, 0 * start)
  exact = start.astype(np.float64) * gates / 1024
  assert np.max(np.abs(np.asarray(after) - exact)) < 1


def test_overflow_stays_and_what_is_no_gate_overflows():
  beyond = fixed_point.overflow(jnp.int32)
  start = jnp.array([beyond, 5, 5, 5, 2**29, 7])
  gates = gate_buffer.to_gates(
    jnp.array([1.0, jnp.nan, 1.5, 0.05, 1.0, 0.5]), 128
  )
  increments = jnp.array([0, 0, 0, 0, 2**29, 1])
  buffer = gate_buffer.init(start, 9)
  after, _ = gate_buffer.multiply_add(start, buffer, gates, increments)
  assert after[:5].tolist() == [beyond] * 5 and abs(int(after[5]) - 4) <= 1
  back, _ = gate_buffer.subtract_divide(after, buffer, gates, increments)
  assert back[:4].tolist() == [beyond] * 4


def test_a_stack_without_room_says_so_for_good():
  start = jnp.arange(64, dtype=jnp.int32)

  @jax.jit
  def after(steps):
    gates = jnp.full((4, 64), 512)

    def multiply(carry, gates):
      gates = jnp.where(carry[2] < steps, gates, 1024)
      done = gate_buffer.multiply_add(*carry[:2], gates, 0 * start)
      return (*done, carry[2] + 1), gate_buffer.is_full(done[1])

    room = 64 * 2 // 8
    carry = start, gate_buffer.init(start, room), jnp.int32(0)
    many = jnp.repeat(gates, 16, 0)
    return lax.scan(multiply, carry, many)[1]

  assert not after(7).any()  # the head alone has room for these
  full = after(64)
  first = int(jnp.argmax(full))
  assert bool(full[first:].all()) and not full[:first].any() and first


def test_batches_have_stacks_of_their_own():
  rng = np.random.default_rng(2)
  arrays = (
    rng.integers(-999, 999, (3, SIZE)).astype(np.int32),
    rng.integers(LEAST, 1025, (3, WALK, SIZE)).astype(np.int32),
    rng.integers(-9, 9, (3, WALK, SIZE)).astype(np.int32),
  )
  (_, buffers), rows, (back, empty), _ = jax.vmap(there_and_back)(*arrays)
  np.testing.assert_array_equal(back, arrays[0])
  for k in range(3):
    expected, _, stack = plain(*(a[k].tolist() for a in arrays))
    np.testing.assert_array_equal(rows[k], expected)
    assert buffers.words[k][: len(stack)].tolist() == stack
  assert bool(jnp.all(jax.vmap(gate_buffer.is_empty)(empty)))


def test_room_that_always_suffices():
  for bits in (0.25, 1, 3, 8):
    least = gate_buffer.least_gate(bits)
    # Bytes without slack, and how far the proven bound is above them.
    exact = 1000 * math.log2(1024 / least) / 8
    room = gate_buffer.room_needed(1, 1000, bits)
    assert exact <= room < 1.01 * exact + 2
