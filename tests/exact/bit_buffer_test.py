"""Information buffers against Python's integers, and over long runs."""

import math
from fractions import Fraction
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from jax import lax

from revmom.exact import bit_buffer, capacities, fixed_point

# Of a fixed length, so that every example runs the same compiled program.
SIZE, WALK = 8, 40
quick = settings(max_examples=150, deadline=None, derandomize=True)
fewer = settings(quick, max_examples=40)
# The x64 fixture holds for all examples of a test alike.
shared = dict(suppress_health_check=[HealthCheck.function_scoped_fixture])

BETAS = (0.5, 0.9, 0.98, 0.999, 58983 / 65536)
LONG = 5000
LIMIT = {32: 2**30 - 2**16, 64: 2**62 - 2**32}
LOWEST = {32: -(2**31), 64: -(2**63)}
WORD = {32: 8, 64: 32}
LIMB = {32: 15, 64: 31}


def integers(values, bits):
  return jnp.asarray(np.array(values, f"int{bits}"))


def ints(array):
  return [int(value) for value in np.asarray(array).ravel()]


def ratio(numerators, denominators, bits):
  """Long division by Python, halves up."""
  one = 2 ** (2 * LIMB[bits])
  whole = [n // d for n, d in zip(numerators, denominators, strict=True)]
  fraction = [
    math.floor(Fraction(n % d * one, d) + Fraction(1, 2))
    for n, d in zip(numerators, denominators, strict=True)
  ]
  columns = numerators, denominators, whole, fraction
  return capacities.Ratio(*(integers(column, bits) for column in columns))


def rescaled(i, r, numerator, denominator):
  """N = i b + r = i' b' + r' with -b'/2 <= r' < b'/2, by Python."""
  half = denominator >> 1
  quotient, rest = divmod(i * numerator + r + half, denominator)
  return quotient, rest - half


# One number on two bases.


@st.composite
def numbers(draw, bits):
  """(i, r, b, b') as a step before multiplication can meet them."""
  limit, full = LIMIT[bits], 2 ** (2 * LIMB[bits])
  corners = [0, 1, -1, 2, -2, limit, -limit, limit - 1, 1 - limit, limit // 2]
  i = draw(st.sampled_from(corners) | st.integers(-limit, limit))
  smallest = max(full >> (2 * WORD[bits] - 1), 2**14)
  capacity = draw(
    st.sampled_from([smallest, full >> WORD[bits], full - 1])
    | st.integers(smallest, full - 1)
  )
  after = min(full, capacity << (WORD[bits] - 1))
  after = draw(
    st.sampled_from([capacity, min(capacity + 1, after), after])
    | st.integers(capacity, after)
  )
  low, high = -(capacity >> 1), capacity - (capacity >> 1) - 1
  r = draw(st.sampled_from([0, low, high]) | st.integers(low, high))
  return i, r, capacity, after


def rows(elements):
  return st.lists(elements, min_size=SIZE, max_size=SIZE)


_rescale = jax.jit(bit_buffer.rescale)


def wrapped(numbers, bits):
  """Modulo the word size, as signed integers."""
  half = 2 ** (bits - 1)
  return integers([(n + half) % (2 * half) - half for n in numbers], bits)


def check_rescale(drawn, bits):
  i, _, before, after = (list(column) for column in zip(*drawn, strict=True))
  number = wrapped([i_ * b + r for i_, r, b, _ in drawn], bits)
  product = _rescale(integers(i, bits), number, ratio(before, after, bits))
  for n, product_ in zip(drawn, ints(product), strict=True):
    i_, r_, b, c = n
    assert -(c >> 1) <= i_ * b + r_ - product_ * c < c - (c >> 1)
    assert abs(product_ - Fraction(i_ * b, c)) <= 1
  back = _rescale(product, number, ratio(after, before, bits))
  assert ints(back) == i


@quick
@given(rows(numbers(32)))
@example([(LIMIT[32], 2**29 - 1, 2**30 - 1, 2**30)] * SIZE)
@example([(-LIMIT[32], -(2**14), 2**15, 2**22)] * SIZE)
@example([(-1, 0, 2**22, 2**22)] * SIZE)
def test_rescale_int32(drawn):
  check_rescale(drawn, 32)


@settings(quick, **shared)
@given(drawn=rows(numbers(64)))
@example(drawn=[(LIMIT[64], 2**61 - 1, 2**62 - 1, 2**62)] * SIZE)
@example(drawn=[(-LIMIT[64], -1, 2**30, 2**61)] * SIZE)
def test_rescale_int64(x64, drawn):
  check_rescale(drawn, 64)


# A walk of multiplications and sums, and back.


WORDS_AXIS = bit_buffer.BitBuffer(0, 1)


def by_group(function, now, in_axes, out_axes):
  """Applies `function` to each group of elements with its own schedule."""
  now = jax.tree.map(lambda a: a[..., 0], now)
  if now.spill.ndim:
    function = jax.vmap(function, (*in_axes, 0), out_axes)
  return lambda *args: function(*args, now)


def multiply_add(value, buffer, now, increment):
  product = lambda value, buffer, increment, now: bit_buffer.multiply_add(
    value, buffer, now, increment
  )
  axes = (0, WORDS_AXIS)
  return by_group(product, now, (*axes, 0), axes)(value, buffer, increment)


def subtract_divide(value, buffer, now, increment):
  quotient = lambda value, buffer, increment, now: bit_buffer.subtract_divide(
    value, buffer, now, increment
  )
  in_axes = (0, WORDS_AXIS, 0)
  return by_group(quotient, now, in_axes, (0, 0))(value, buffer, increment)


def erase(words, now):
  return by_group(bit_buffer.erase, now, (1,), 1)(words)


def forward_walk(start, increments, schedule, row_count):
  def step(carry, inputs):
    now, increment = inputs
    value, buffer = multiply_add(*carry, now, increment)
    return (value, buffer), (value, buffer.number)

  carry = start, bit_buffer.init(start, row_count)
  return lax.scan(step, carry, (schedule, increments))


def inverse_walk(end, increments, schedule):
  def step(carry, inputs):
    value, buffer = carry
    now, increment = inputs
    visited = value, buffer.number
    value, number = subtract_divide(value, buffer, now, increment)
    words = erase(buffer.words, now)
    return (value, bit_buffer.BitBuffer(number, words)), visited

  return lax.scan(step, end, (schedule, increments), reverse=True)


@partial(jax.jit, static_argnums=3)
def there_and_back(start, increments, forgetting, row_count):
  schedule = capacities.schedule(forgetting, start.dtype)
  end, visited = forward_walk(start, increments, schedule, row_count)
  back, revisited = inverse_walk(end, increments, schedule)
  return schedule, end, visited, back, revisited


def check_walk(start, increments, forgetting, bits):
  word, dtype = WORD[bits], {32: "float32", 64: "float64"}[bits]
  forgetting = np.array(forgetting, dtype)[:, None]
  schedule, end, visited, back, _ = there_and_back(
    integers(start, bits), integers(increments, bits), forgetting, WALK
  )
  spill, row, full, befores, afters, factor, whole, fraction = jax.tree.map(
    ints, schedule
  )
  values, remainders = list(start), [0] * SIZE
  words = [[0] * SIZE for _ in range(WALK)]
  capacity, next_row = 2 ** (2 * LIMB[bits] - word), 0
  for t in range(WALK):
    before, after = befores[t], afters[t]
    assert row[t] == next_row and full[t] == capacity
    if spill[t]:
      # The remainder of half a capacity still fits, and the next one does.
      assert before << word > capacity
      words[next_row] = [r % 2**word for r in remainders]
      remainders = [r >> word for r in remainders]
      next_row += 1
    else:
      assert before == capacity
    assert before <= after <= 2 ** (2 * LIMB[bits])
    exact = ratio([before], [after], bits)
    one = 2 ** (2 * LIMB[bits])
    assert factor[t] == ints(exact.whole)[0] * one + ints(exact.fraction)[0]
    exact = ratio([after], [before], bits)
    assert [whole[t], fraction[t]] == ints(exact.whole) + ints(exact.fraction)
    for k in range(SIZE):
      assert abs(remainders[k]) <= before >> 1
      values[k], remainders[k] = rescaled(
        values[k], remainders[k], before, after
      )
      values[k] += increments[t][k]
    assert ints(visited[0][t]) == values
    number = [
      value * after + r for value, r in zip(values, remainders, strict=True)
    ]
    assert ints(visited[1][t]) == ints(wrapped(number, bits))
    capacity = after
  assert ints(end[1].words) == sum(words, [])
  assert ints(back[0]) == list(start)
  assert bool(bit_buffer.is_empty(*back)) and not any(ints(back[1].words))


@st.composite
def walks(draw, bits):
  quarter, small = LIMIT[bits] // 4, LIMIT[bits] // (2 * WALK)
  corners = st.sampled_from([0, 1, -1, quarter, -quarter])
  start = draw(rows(corners | st.integers(-quarter, quarter)))
  seed = draw(st.integers(0, 2**32 - 1))
  increments = np.random.default_rng(seed).integers(
    -small, small, (WALK, SIZE), endpoint=True
  )
  # 0.9921875 forgets all but 2^-7: a spill in every step.
  forgetting = st.sampled_from([0.0, 1e-5, 0.001, 0.1, 0.5, 0.9921875])
  forgetting = forgetting | st.floats(0, 0.9921875, width=32)
  constant = draw(st.booleans())
  each = st.lists(forgetting, min_size=WALK, max_size=WALK)
  forgetting = [draw(forgetting)] * WALK if constant else draw(each)
  return start, increments.tolist(), forgetting


@fewer
@given(walks(32))
def test_walk_int32(walk):
  check_walk(*walk, 32)


@settings(fewer, **shared)
@given(walk=walks(64))
def test_walk_int64(x64, walk):
  check_walk(*walk, 64)


# Long runs. Groups: each beta, one beta a step, a weight decay, no change.


def forgetting_of_groups(dtype):
  rng = np.random.default_rng(0)
  constant = [1 - beta for beta in BETAS] + [1e-5, 0.0]
  varying = rng.uniform(0, 0.4, LONG), rng.choice([0.0, 0.9921875], LONG)
  columns = [np.full(LONG, f) for f in constant] + list(varying)
  return np.stack(columns, -1).astype(dtype)


def check_long_round_trip(bits):
  dtype = {32: "float32", 64: "float64"}[bits]
  forgetting = forgetting_of_groups(dtype)
  groups = forgetting.shape[1]
  needed = [
    capacities.rows_needed(forgetting[:, g], f"int{bits}")
    for g in range(groups)
  ]
  rng = np.random.default_rng(1)
  shape = groups, 6
  quarter, small = LIMIT[bits] // 4, LIMIT[bits] // 2**12
  start = rng.integers(-quarter, quarter, shape)
  start[:, 0] = 0
  increments = rng.integers(-small, small, (LONG, *shape), endpoint=True)
  schedule, end, visited, back, revisited = there_and_back(
    integers(start, bits),
    integers(increments, bits),
    forgetting[..., None],
    max(needed),
  )
  assert not np.any(fixed_point.has_overflowed(visited[0]))
  # Every state on the way back is the one on the way there.
  for there, here in zip(visited, revisited, strict=True):
    np.testing.assert_array_equal(there, here)
  np.testing.assert_array_equal(back[0], start)
  assert bool(bit_buffer.is_empty(*back))
  assert not np.any(back[1].words)
  assert np.any(end[1].words)
  # A group writes no row beyond those that it is said to need.
  spills = np.sum(np.asarray(schedule.spill), 0).ravel()
  assert np.all(spills <= np.asarray(needed))
  for g, count in enumerate(needed):
    assert not np.any(np.asarray(end[1].words)[count:, g])


def test_long_round_trip_int32():
  check_long_round_trip(32)


def test_long_round_trip_int64(x64):
  check_long_round_trip(64)


@pytest.mark.parametrize("beta", BETAS)
def test_float_multiply_and_divide_lose_bits(beta):
  beta = jnp.float32(beta)
  increments = jax.random.normal(jax.random.key(0), (LONG, 64)) * 2.0**-6
  multiply = lambda v, g: (beta * v + g, None)
  divide = lambda v, g: ((v - g) / beta, None)
  start = jax.random.normal(jax.random.key(1), (64,))
  end, _ = lax.scan(multiply, start, increments)
  back, _ = lax.scan(divide, end, increments, reverse=True)
  assert not np.array_equal(back, start)


def test_integers_without_a_buffer_lose_bits():
  start = integers([12345, -6789, 2**29, -(2**29)], 32)
  increments = np.zeros((50, 4), np.int32)
  schedule = capacities.schedule(jnp.full((50, 1), 0.1))
  (value, buffer), _ = forward_walk(start, increments, schedule, 4)
  forgotten = jax.tree.map(jnp.zeros_like, buffer)
  kept, _ = inverse_walk((value, buffer), increments, schedule)
  lost, _ = inverse_walk((value, forgotten), increments, schedule)
  np.testing.assert_array_equal(kept[0], start)
  assert not np.array_equal(lost[0], start)


# Memory and accuracy.


@pytest.mark.parametrize("steps", [1, 100, LONG])
@pytest.mark.parametrize("bits", [32, 64])
@pytest.mark.parametrize("beta", [*BETAS, 1 - 1e-5, 1.0])
def test_bits_used(beta, bits, steps):
  rows_ = capacities.rows_needed(np.full(steps, 1 - beta), f"int{bits}")
  allowed = steps * (1.03 * math.log2(1 / beta) + 0.002) + WORD[bits]
  assert WORD[bits] * rows_ <= allowed
  # The words themselves keep to it; the head is the one word more.
  assert WORD[bits] * rows_ <= allowed - WORD[bits]
  # And no less than the information that is lost can do.
  least = steps * math.log2(1 / beta) - WORD[bits]
  assert WORD[bits] * rows_ >= math.floor(least)


def spill_counts(forgetting, bits):
  dtype = {32: "float32", 64: "float64"}[bits]
  schedule = jax.jit(capacities.schedule, static_argnums=1)(
    forgetting.astype(dtype), f"int{bits}"
  )
  return np.asarray(schedule.spill), np.asarray(schedule.row)


def test_no_segment_spills_more_rows_than_needed():
  rng = np.random.default_rng(2)
  steps, groups = 600, 40
  largest = rng.uniform(0, 1, groups) ** 3 * 0.9921875
  forgetting = rng.uniform(0, 1, (steps, groups)) * largest
  forgetting[:, 0], forgetting[:, 1] = 0.9921875, 0.5
  forgetting = forgetting.astype("float32")
  spill, row = spill_counts(forgetting, 32)
  total = np.concatenate([np.zeros((1, groups), int), np.cumsum(spill, 0)])
  np.testing.assert_array_equal(row, total[:-1])
  for length in (0, 1, 2, 7, 25, 100, 599, 600):
    most = np.max(total[length:] - total[: len(total) - length], 0)
    for g in range(groups):
      column = forgetting[:, g]
      assert most[g] <= capacities.rows_needed(column, "int32", length)
  assert capacities.rows_needed(forgetting[:, 1], "int32", 0) == 0


def drift(forgetting, bits):
  """log of the product of all capacity ratios over that of the betas."""
  dtype = {32: "float32", 64: "float64"}[bits]
  forgetting = forgetting.astype(dtype)
  schedule = jax.jit(capacities.schedule, static_argnums=1)(
    forgetting, f"int{bits}"
  )
  exact = np.log1p(-forgetting.astype(np.longdouble))
  before = np.asarray(schedule.before).astype(np.longdouble)
  after = np.asarray(schedule.after).astype(np.longdouble)
  return np.cumsum(exact, 0), np.cumsum(np.log(before / after), 0)


def check_product_of_ratios(bits, relative):
  exact, got = drift(forgetting_of_groups("float64"), bits)
  assert np.max(np.abs(np.exp(got) - np.exp(exact))) <= 2.0**-20
  steps = np.arange(1, LONG + 1)[:, None]
  assert np.max(np.abs(got - exact) / steps) <= relative


def test_product_of_ratios_int32():
  # A step's factor is off by less than the rounding of a float32 beta; what
  # is left out of one capacity is made up for in the next.
  check_product_of_ratios(32, 2.0**-21)


def test_product_of_ratios_int64(x64):
  check_product_of_ratios(64, 2.0**-30)


# Failures and edges.


def test_overflow_is_sticky():
  start = integers([fixed_point.overflow("int32"), 5], 32)
  schedule = capacities.schedule(jnp.full((30, 1), 0.5))
  increments = np.full((30, 2), 7, np.int32)
  _, visited = forward_walk(start, increments, schedule, 3)
  flags = np.asarray(fixed_point.has_overflowed(visited[0]))
  assert np.all(flags[:, 0]) and not np.any(flags[:, 1])


def test_nan_is_sticky():
  schedule = capacities.schedule(jnp.full((30, 1), 0.5))
  increments = np.ones((30, 2), np.float32)
  increments[3, 0] = np.nan
  increments = fixed_point.to_fixed(increments, 20)
  _, visited = forward_walk(integers([0, 0], 32), increments, schedule, 3)
  flags = np.asarray(fixed_point.has_overflowed(visited[0]))
  assert np.all(flags[3:, 0]) and not np.any(flags[:3]) and not flags[-1, 1]


def test_no_rows():
  value = integers([3, -7], 32)
  schedule = capacities.schedule(jnp.full((5, 1), 0.001))
  increments = np.ones((5, 2), np.int32)
  assert capacities.rows_needed(np.full(5, 0.001)) == 0
  end, _ = forward_walk(value, increments, schedule, 0)
  assert end[1].words is None
  back, _ = inverse_walk(end, increments, schedule)
  np.testing.assert_array_equal(back[0], value)


def test_vmap_over_betas():
  value = integers([[3, -7], [9999, -1234567]], 32)
  increments = np.ones((100, 2), np.int32)
  forgetting = jnp.array([0.1, 0.5])

  def round_trip(start, forgotten):
    schedule = capacities.schedule(jnp.full((100, 1), forgotten))
    end, _ = forward_walk(start, increments, schedule, 12)
    back, _ = inverse_walk(end, increments, schedule)
    return end, back

  end, back = jax.jit(jax.vmap(round_trip))(value, forgetting)
  np.testing.assert_array_equal(back[0], value)
  assert bool(bit_buffer.is_empty(*back)) and not np.any(back[1].words)
  alone = jax.jit(round_trip)(value[1], forgetting[1])[0]
  np.testing.assert_array_equal(end[0][1], alone[0])
  np.testing.assert_array_equal(end[1].words[1], alone[1].words)


def test_only_int32_and_int64():
  with pytest.raises(ValueError, match="int16; use int32 or int64"):
    bit_buffer.init(jnp.zeros(3, jnp.int16), 1)


# Increments below the grid.


@st.composite
def finer_numbers(draw, bits):
  """(i, r, b, b', j, parts) with everything on the grid."""
  i, r, before, after = draw(numbers(bits))
  half = after >> 1
  parts = draw(st.sampled_from([0, half, -half]) | st.integers(-half, half))
  j = draw(st.integers(-(2**20), 2**20))
  i = max(-LIMIT[bits] + 2**21, min(LIMIT[bits] - 2**21, i))
  return i, r, before, after, j, parts


@jax.jit
def _there_and_back(i, r, forward, inverse, j, parts):
  never, row = jnp.zeros((), bool), jnp.zeros((), jnp.int32)
  before, after = forward.numerator, forward.denominator
  limbs = 2 * capacities.layout(i.dtype).limb
  factor = (forward.whole << limbs) + forward.fraction
  step = capacities.Schedule(
    never, row, before, before, after, factor, inverse.whole, inverse.fraction
  )
  full = bit_buffer.init(i, 0)._replace(number=i * before + r)
  total, buffer = bit_buffer.multiply_add(i, full, step, j, parts)
  back, number = bit_buffer.subtract_divide(total, buffer, step, j, parts)
  head = bit_buffer.remainder(total, buffer.number, after)
  return (total, head), (back, bit_buffer.remainder(back, number, before))


def check_finer(drawn, bits):
  i, r, before, after, j, parts = zip(*drawn, strict=True)
  (total, remainder), back = jax.vmap(_there_and_back)(
    integers(i, bits),
    integers(r, bits),
    ratio(before, after, bits),
    ratio(after, before, bits),
    integers(j, bits),
    integers(parts, bits),
  )
  for n, total_, remainder_ in zip(
    drawn, ints(total), ints(remainder), strict=True
  ):
    i_, r_, b, c, j_, parts_ = n
    assert i_ * b + r_ + j_ * c + parts_ == total_ * c + remainder_
    assert -(c >> 1) <= remainder_ < c - (c >> 1)
  assert ints(back[0]) == list(i)
  assert ints(back[1]) == list(r)


@quick
@given(rows(finer_numbers(32)))
def test_increments_may_be_finer_than_the_grid_int32(drawn):
  check_finer(drawn, 32)


@settings(quick, **shared)
@given(drawn=rows(finer_numbers(64)))
def test_increments_may_be_finer_than_the_grid_int64(x64, drawn):
  check_finer(drawn, 64)
