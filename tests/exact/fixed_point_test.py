"""Fixed point against Python's integers and fractions, which never round."""

from fractions import Fraction

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from revmom.exact import fixed_point

# Of a fixed length, so that every example runs the same compiled program.
SIZE = 8
quick = settings(max_examples=150, deadline=None, derandomize=True)
# The x64 fixture holds for all examples of a test alike.
quick_x64 = settings(
  quick, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
LIMIT = {32: 2**30 - 2**16, 64: 2**62 - 2**32}
LOWEST = {32: -(2**31), 64: -(2**63)}


def on_grid(bits):
  limit = LIMIT[bits]
  corners = st.sampled_from(
    [0, 1, -1, limit, -limit, limit - 1, 1 - limit, limit // 2, -limit // 2]
  )
  return st.one_of(corners, st.integers(-limit, limit))


def flagged_or_on_grid(bits):
  return st.one_of(on_grid(bits), st.just(LOWEST[bits]))


def rows(elements):
  return st.lists(elements, min_size=SIZE, max_size=SIZE)


def integers(values, bits):
  return jnp.asarray(np.array(values, f"int{bits}"))


def ints(array):
  return [int(value) for value in np.asarray(array)]


_add = jax.jit(fixed_point.add)
_subtract = jax.jit(fixed_point.subtract)
_to_fixed = jax.jit(fixed_point.to_fixed, static_argnums=(1, 2))


def check_add(left, right, bits):
  got = ints(_add(integers(left, bits), integers(right, bits)))
  for a, b, total in zip(left, right, got, strict=True):
    fits = LOWEST[bits] not in (a, b) and abs(a + b) <= LIMIT[bits]
    assert total == (a + b if fits else LOWEST[bits])


def check_subtract(left, right, bits):
  a, b = integers(left, bits), integers(right, bits)
  total = _add(a, b)
  back = ints(_subtract(total, b))
  for value, sum_, undone in zip(left, ints(total), back, strict=True):
    if sum_ != LOWEST[bits]:
      assert undone == value


def reference(value, fraction_bits, bits):
  """round(x 2^b), halves to even, of a float taken at its exact value."""
  if not np.isfinite(value):
    return LOWEST[bits]
  scaled = Fraction(float(value)) * 2**fraction_bits
  return LOWEST[bits] if abs(scaled) > LIMIT[bits] else round(scaled)


def check_to_fixed(values, fraction_bits, bits, dtype):
  values = np.array(values, dtype)
  got = _to_fixed(jnp.asarray(values), fraction_bits, f"int{bits}")
  assert got.dtype == f"int{bits}"
  assert ints(got) == [reference(v, fraction_bits, bits) for v in values]


def floats(width, largest):
  limits = st.sampled_from([0.0, -0.0, largest, -largest, np.nan, np.inf])
  near = st.floats(
    -2 * largest, 2 * largest, width=width, allow_subnormal=False
  )
  return st.one_of(limits, near)


@pytest.mark.parametrize("bits", [32, 64])
def test_limit_and_overflow(bits):
  assert fixed_point.limit(f"int{bits}") == LIMIT[bits]
  assert fixed_point.overflow(f"int{bits}") == LOWEST[bits]
  # Two values and a carry never wrap around.
  assert 2 * LIMIT[bits] + 1 < 2 ** (bits - 1)


@quick
@given(rows(flagged_or_on_grid(32)), rows(flagged_or_on_grid(32)))
@example([LIMIT[32]] * SIZE, [-LIMIT[32]] * SIZE)
@example([LIMIT[32]] * SIZE, [1] * SIZE)
@example([-LIMIT[32]] * SIZE, [-LIMIT[32]] * SIZE)
@example([LOWEST[32]] * SIZE, [LIMIT[32]] * SIZE)
@example([LOWEST[32]] * SIZE, [LOWEST[32]] * SIZE)
def test_add_int32(left, right):
  check_add(left, right, 32)


@quick_x64
@given(left=rows(flagged_or_on_grid(64)), right=rows(flagged_or_on_grid(64)))
@example(left=[LIMIT[64]] * SIZE, right=[LIMIT[64]] * SIZE)
@example(left=[-LIMIT[64]] * SIZE, right=[-1] * SIZE)
@example(left=[LOWEST[64]] * SIZE, right=[LOWEST[64]] * SIZE)
def test_add_int64(x64, left, right):
  check_add(left, right, 64)


@quick
@given(rows(on_grid(32)), rows(on_grid(32)))
@example([-1] * SIZE, [LIMIT[32]] * SIZE)
def test_subtract_undoes_add_int32(left, right):
  check_subtract(left, right, 32)


@quick_x64
@given(left=rows(on_grid(64)), right=rows(on_grid(64)))
def test_subtract_undoes_add_int64(x64, left, right):
  check_subtract(left, right, 64)


@quick
@given(rows(floats(32, 64.0)))
@example([0.5 * 2.0**-24, -0.5 * 2.0**-24, 1.5 * 2.0**-24] + [63.99609375] * 5)
@example([-63.99609375, 63.996097564697266] + [float("-inf")] * 6)
def test_to_fixed_int32(values):
  check_to_fixed(values, 24, 32, "float32")


@quick_x64
@given(values=rows(floats(64, 2.0**14)))
@example(values=[2.0**14 - 2.0**-16, 2.0**14, -(2.0**14)] + [0.0] * 5)
def test_to_fixed_int64(x64, values):
  check_to_fixed(values, 48, 64, "float64")


@quick_x64
@given(values=rows(floats(32, 2.0**13)))
def test_to_fixed_int64_of_float32(x64, values):
  check_to_fixed(values, 48, 64, "float32")


@quick
@given(rows(st.integers(-(2**24), 2**24)), st.sampled_from([0, 12, 24, 28]))
def test_from_fixed_inverts_to_fixed(values, fraction_bits):
  # What a float32 can hold comes back; larger integers round when shown.
  shown = fixed_point.from_fixed(integers(values, 32), fraction_bits)
  assert ints(_to_fixed(shown, fraction_bits, "int32")) == values


def test_overflow_is_sticky():
  value = integers([LIMIT[32]], 32)
  value = _add(value, integers([1], 32))
  for increment in (-1, -LIMIT[32], LIMIT[32], 0, 12345):
    assert ints(value) == [LOWEST[32]]
    assert bool(fixed_point.has_overflowed(value)[0])
    value = _add(value, integers([increment], 32))


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf, 1e38, -64.0])
def test_what_has_no_integer_overflows(bad):
  assert ints(fixed_point.to_fixed(jnp.array([bad]), 24)) == [LOWEST[32]]


def test_largest_is_the_last_float_inside():
  largest = fixed_point.largest(24, "int32")
  beyond = np.nextafter(np.float32(largest), np.float32(np.inf))
  inside = fixed_point.to_fixed(jnp.array([largest, -largest]), 24)
  assert ints(inside) == [LIMIT[32], -LIMIT[32]]
  outside = fixed_point.to_fixed(jnp.array([beyond, -beyond]), 24)
  assert ints(outside) == [LOWEST[32]] * 2


def check_no_sum_with(bad, dtype, integer, bits):
  """Increments that no integer can be leave the grid, from anywhere on it."""
  corners = [0, 1, -1, 127, -127, 2**10, -(2**10), LIMIT[bits], -LIMIT[bits]]
  start = integers(corners, bits)
  bad = jnp.full(len(corners), bad, dtype)
  alone = fixed_point.to_increment(bad, 20, integer)
  whole, _ = fixed_point.to_fine(bad, 20, jnp.asarray(2**22, integer))
  np.testing.assert_array_equal(whole, alone)
  for change in fixed_point.add, fixed_point.subtract:
    assert ints(change(start, alone)) == [LOWEST[bits]] * len(corners)


BAD = [np.nan, -np.nan, np.inf, -np.inf, 1e38, -1e38]


@pytest.mark.parametrize("bad", BAD)
def test_increments_without_an_integer_overflow(bad):
  check_no_sum_with(bad, "float32", "int32", 32)


@pytest.mark.parametrize("bad", BAD)
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_increments_without_an_integer_overflow_int64(x64, dtype, bad):
  check_no_sum_with(bad, dtype, "int64", 64)


@pytest.mark.parametrize("positive", [False, True])
@pytest.mark.parametrize("base", [2**15, 4_194_304, 2**30 - 7])
def test_fine_grids(positive, base):
  rng = np.random.default_rng(0)
  values = rng.normal(size=1000).astype(np.float32) * 10.0 ** rng.integers(
    -9, 1, 1000
  ).astype(np.float32)
  whole, parts = fixed_point.to_fine(
    jnp.asarray(values), 24, jnp.array(base), positive
  )
  exact = [Fraction(float(v)) * 2**24 * base for v in values]
  got = [i * base + f for i, f in zip(ints(whole), ints(parts), strict=True)]
  # A float32 holds 24 bits of the parts of a unit.
  slack = 1 + base * Fraction(1, 2**24)
  assert all(abs(a - b) <= slack for a, b in zip(got, exact, strict=True))
  assert all(abs(f) <= base // 2 + slack for f in ints(parts))
  if positive:
    assert all(a > 0 for a, v in zip(got, values, strict=True) if v > 0)
  back = fixed_point.from_fine(whole, parts, jnp.array(base), 24)
  errors = np.abs(np.asarray(back) - values)
  assert np.all(
    errors <= np.abs(values) * 2.0**-23 + 2.0**-47 + 2.0**-24 / base
  )
