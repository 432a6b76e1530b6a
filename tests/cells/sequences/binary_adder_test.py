"""The adder against Python's integers."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from revmom.cells import binary_adder


def bits(integers, length):
  """[len(integers), length], least significant first."""
  return np.array([[n >> k & 1 for k in range(length)] for n in integers])


def integers(rows):
  return [
    sum(int(bit) << k for k, bit in enumerate(row)) for row in np.asarray(rows)
  ]


@pytest.mark.parametrize("length", [1, 2, 5, 10])
def test_all_pairs(length):
  every = bits(range(2**length), length)
  sums = jax.jit(binary_adder.add)(every[:, None], every[None])
  values = np.asarray(sums) @ (1 << np.arange(length + 1))
  n = np.arange(2**length)
  np.testing.assert_array_equal(values, n[:, None] + n)


def test_random_numbers_of_4096_bits():
  rng = np.random.default_rng(0)
  a, b = rng.integers(0, 2, (2, 20, 4096))
  a[0], b[0], b[1] = 1, 1, 1 - a[1]  # a carry all the way, and none at all
  got = integers(jax.jit(binary_adder.add)(a, b))
  pairs = zip(integers(a), integers(b), strict=True)
  assert got == [x + y for x, y in pairs]


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float32", "float64"])
def test_any_float_is_exact(x64, dtype):
  every = bits(range(64), 6)
  sums = binary_adder.add(every[:, None], every[None], dtype=dtype)
  n = np.arange(64)
  np.testing.assert_array_equal(
    np.asarray(sums) @ (1 << np.arange(7)), n[:, None] + n
  )
  assert sums.dtype == "int32"


@pytest.mark.parametrize("lengths", [(3, 8), (8, 3), (1, 1), (0, 4), (4, 0)])
def test_lengths_differ(lengths):
  rng = np.random.default_rng(0)
  a, b = (rng.integers(0, 2, (5, length)) for length in lengths)
  got = binary_adder.add(a, b)
  assert got.shape == (5, max(lengths) + 1)
  pairs = zip(integers(a), integers(b), strict=True)
  assert integers(got) == [x + y for x, y in pairs]


def test_nothing_and_nobody():
  np.testing.assert_array_equal(binary_adder.add([], []), [0])
  assert binary_adder.add(np.zeros((0, 3)), np.zeros((0, 3))).shape == (0, 4)


@pytest.mark.slow
def test_batches_and_types():
  """Broadcast over leading axes; bools and floats are bits, too."""
  rng = np.random.default_rng(0)
  a, b = rng.integers(0, 2, (4, 1, 6)), rng.integers(0, 2, (3, 6))
  got = binary_adder.add(a.astype(bool), b.astype("float32"))
  assert got.shape == (4, 3, 7)
  for i in range(4):
    for j in range(3):
      alone = binary_adder.add(a[i, 0], b[j])
      np.testing.assert_array_equal(got[i, j], alone)
  vmapped = jax.vmap(binary_adder.add)(jnp.asarray(a[:3, 0]), jnp.asarray(b))
  np.testing.assert_array_equal(vmapped, got[np.arange(3), np.arange(3)])


def test_hidden_units_count():
  """Unit k fires if the bits and the carry are at least k, by schoolbook."""
  rng = np.random.default_rng(0)
  a, b = rng.integers(0, 2, (2, 40))
  trace = binary_adder.explain(a, b)
  carry = 0
  for t in range(41):
    first, second = (int(n[t]) if t < 40 else 0 for n in (a, b))
    total = first + second + carry
    assert trace.inputs[t].tolist() == [first, second]
    assert trace.hidden[t].tolist() == [int(total >= k) for k in (1, 2, 3)]
    assert int(trace.outputs[t]) == total % 2
    carry = total // 2


def test_weights_have_the_shapes_of_the_equations():
  shapes = {n: w.shape for n, w in binary_adder.WEIGHTS._asdict().items()}
  assert shapes == {
    "W_xh": (2, 3),
    "W_hh": (3, 3),
    "W_hy": (3,),
    "b_h": (3,),
    "b_y": (),
  }


@pytest.mark.parametrize(
  "a, b, message",
  [
    ([0, 2], [1, 0], r"bits_a has \[2\]"),
    ([0, 1], [1, -1], r"bits_b has \[-1\]"),
    ([0.5], [1.0], r"bits_a has \[0.5\]"),
    ([np.nan], [1.0], "bits_a has"),
    (1, [1], r"must be an array of bits"),
  ],
)
def test_not_bits(a, b, message):
  with pytest.raises(ValueError, match=message):
    binary_adder.add(a, b)


def test_dtype_must_be_a_float():
  with pytest.raises(ValueError, match="must be a float"):
    binary_adder.add([1], [1], dtype="int32")
