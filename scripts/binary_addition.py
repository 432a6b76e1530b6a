"""A recurrent network with three hidden units adds two numbers of any size.

  python scripts/binary_addition.py
  python scripts/binary_addition.py --a=0b11011 --b=12345678901234567890 \
    --workdir=out/binary_addition

The weights are designed by hand: unit k fires if the two bits and the carry sum
to at least k, so that the second unit is the carry and the parity is the output
(`revmom.cells.binary_adder`).  The script prints the weights and what every
unit does at every bit, then adds all pairs of 8-bit numbers and random ones of
4096 bits, and compares with Python's integers.

A few seconds.  Expect 181 + 110 = 291 and a table of 9 bits; that all 65,536
pairs and 64 random sums are right, or an error.

With --workdir it writes result.json, metrics.csv (inputs, units and output by
bit) and adder.png.
"""

import dataclasses
import sys
import time
from typing import Any

import jax
import numpy as np
from matplotlib.figure import Figure

from revmom.cells import binary_adder
from shared import output
from shared.settings import flag, launch

_UNITS = ("s >= 1", "s >= 2", "s >= 3")
_MEANINGS = (
  "any of the bits and the carry is 1",
  "two of them are: the next step's carry",
  "all of them are",
)
_LONGEST_TABLE = 64  # steps that are printed and drawn


@dataclasses.dataclass(frozen=True)
class Config:
  """One experiment."""

  a: str = flag("181", "A number: decimal, 0b..., or 0x...")
  b: str = flag("0b1101110", "Another one.")
  bits: int = flag(
    8, "All pairs of numbers of so many bits are added.", at_least=1, at_most=10
  )
  random_bits: int = flag(4096, "Of long random numbers.", at_least=1)
  random_pairs: int = flag(64, "How many of them are added.", at_least=0)
  seed: int = flag(0, "Of the random numbers.")


def parse(flag: str, text: str) -> int:
  """A natural number, decimal or with a prefix.

  Raises:
    ValueError: it is none.
  """
  digits = text.strip()
  try:
    # Leading zeros are no prefix.
    number = int(digits, 10 if digits.isdecimal() else 0)
  except ValueError as error:
    raise ValueError(
      f"--{flag}={text} is no number; write it like 181, 0b10110101 or 0xb5."
    ) from error
  if number < 0:
    raise ValueError(
      f"--{flag}={text} is negative; the network adds natural numbers."
    )
  return number


def to_bits(number: int, length: int) -> np.ndarray:
  """Least significant first: int32 [length]."""
  octets = number.to_bytes(-(-length // 8), "little")
  bits = np.unpackbits(np.frombuffer(octets, np.uint8), bitorder="little")
  return bits[:length].astype(np.int32)


def to_number(bits: np.ndarray) -> int:
  """The number that bits [T] stand for, least significant first."""
  octets = np.packbits(np.asarray(bits).astype(np.uint8), bitorder="little")
  return int.from_bytes(octets.tobytes(), "little")


def verify_all(bits: int) -> int:
  """Adds all pairs of numbers of some bits; returns how many.

  Raises:
    RuntimeError: a sum is wrong.
  """
  numbers = np.arange(2**bits)
  table = (numbers[:, None] >> np.arange(bits)) & 1  # [N, bits]
  sums = jax.jit(binary_adder.add)(
    table[:, None].astype(np.int32), table[None].astype(np.int32)
  )
  got = (np.asarray(sums, np.int64) << np.arange(bits + 1)).sum(-1)
  wrong = np.argwhere(got != numbers[:, None] + numbers)
  if len(wrong):
    a, b = wrong[0]
    raise RuntimeError(f"{a} + {b} is {a + b}, but the network has {got[a, b]}")
  return got.size


def verify_random(pairs: int, bits: int, seed: int) -> None:
  """Adds long random numbers.

  Raises:
    RuntimeError: a sum is wrong.
  """
  rng = np.random.default_rng(seed)
  a, b = rng.integers(0, 2, (2, pairs, bits)).astype(np.int32)
  sums = np.asarray(jax.jit(binary_adder.add)(a, b))
  for i in range(pairs):
    if to_number(sums[i]) != to_number(a[i]) + to_number(b[i]):
      raise RuntimeError(
        f"the sum of pair {i} of {bits}-bit numbers is wrong: "
        f"{to_number(a[i]):#x} + {to_number(b[i]):#x}"
      )


def rows_of(trace: binary_adder.Trace) -> list[dict[str, int]]:
  """What goes on at every bit, least significant first."""
  inputs, hidden, outputs = map(np.asarray, trace)
  carries = np.concatenate([[0], hidden[:-1, 1]])
  return [
    {
      "bit": t,
      "a": int(inputs[t, 0]),
      "b": int(inputs[t, 1]),
      "carry": int(carries[t]),
      "s": int(inputs[t].sum() + carries[t]),
      **dict(zip(_UNITS, map(int, hidden[t]), strict=True)),
      "output": int(outputs[t]),
    }
    for t in range(len(outputs))
  ]


def figure(rows: list[dict[str, int]], title: str) -> Figure:
  """Inputs, hidden units and outputs, most significant bit at the left."""
  names = ["a", "b", *_UNITS, "output"]
  labels = [
    "input a",
    "input b",
    *(f"hidden unit {k}: {unit}" for k, unit in enumerate(_UNITS, start=1)),
    "output",
  ]
  values = np.array([[row[name] for row in rows[::-1]] for name in names])
  width = max(6.0, 3 + 0.32 * len(rows))
  drawn = Figure(figsize=(width, 3.4), layout="constrained")
  axes = drawn.subplots()
  axes.pcolormesh(
    values[::-1], cmap="Blues", vmin=0, vmax=1.4, edgecolors="white"
  )
  for (row, column), value in np.ndenumerate(values[::-1]):
    axes.text(
      column + 0.5,
      row + 0.5,
      str(value),
      ha="center",
      va="center",
      color="white" if value else "gray",
    )
  axes.set_yticks(np.arange(len(names)) + 0.5, labels[::-1])
  every = -(-len(rows) // 32)
  places = np.arange(0, len(rows), every)
  axes.set_xticks(len(rows) - places - 0.5, [str(place) for place in places])
  axes.set_xlabel("bit; the network reads them from right to left")
  axes.set_title(title)
  return drawn


def run(config: Config, workdir: str | None = None) -> dict[str, Any]:
  """The experiment: add, verify, write.

  Raises:
    ValueError: a number is none.
    RuntimeError: a sum is wrong.
  """
  begin = time.perf_counter()
  path = output.folder(workdir)
  # Python refuses to read and print more than 4300 decimal digits.
  sys.set_int_max_str_digits(0)
  a, b = parse("a", config.a), parse("b", config.b)
  length = max(1, a.bit_length(), b.bit_length())
  trace = binary_adder.explain(to_bits(a, length), to_bits(b, length))
  rows = rows_of(trace)
  total = to_number(np.asarray(trace.outputs))
  if total != a + b:
    raise RuntimeError(f"{a} + {b} is {a + b}, but the network has {total}")
  pairs = verify_all(config.bits)
  verify_random(config.random_pairs, config.random_bits, config.seed)
  result = {
    # As text: JSON's readers round large numbers.
    "a": str(a),
    "b": str(b),
    "sum": str(total),
    "pairs_verified": pairs,
    "bits": config.bits,
    "random_pairs_verified": config.random_pairs,
    "random_bits": config.random_bits,
    **{
      name: np.asarray(weights).tolist()
      for name, weights in binary_adder.WEIGHTS._asdict().items()
    },
    "seconds": time.perf_counter() - begin,
  }
  if path is not None:
    shown = rows[:_LONGEST_TABLE]
    title = (
      f"{a} + {b} = {total}"
      if len(shown) == len(rows)
      else f"The first {len(shown)} of {len(rows)} bits"
    )
    drawn = figure(shown, f"Three hidden units add: {title}")
    output.write_results(path, rows, {"adder": drawn}, result)
  return {**result, "rows": rows}


def weights_table(result: dict[str, Any]) -> list[str]:
  """The weights, a column for each hidden unit."""
  line = lambda name, values: (
    f"  {name:24}" + "".join(f"{value:>8g}" for value in values)
  )
  lines = [line("hidden unit", (1, 2, 3))]
  for name, source in (("W_xh", "ab"), ("W_hh", "123")):
    kind = "input" if name == "W_xh" else "unit"
    lines += [
      line(f"{name}  from {kind} {one}", values)
      for one, values in zip(source, result[name], strict=True)
    ]
  return [
    *lines,
    line("b_h", result["b_h"]),
    line("W_hy  to the output", result["W_hy"]),
    f"  {'b_y':24}{result['b_y']:>8g}",
  ]


def report(result: dict[str, Any]) -> str:
  """The result for people."""
  rows = result["rows"]
  names = list(rows[0])
  table = [
    "  " + "".join(f"{name:>8}" for name in names),
    *(
      "  " + "".join(f"{row[name]:>8}" for name in names)
      for row in rows[:_LONGEST_TABLE]
    ),
  ]
  if len(rows) > _LONGEST_TABLE:
    table.append(
      f"  and {len(rows) - _LONGEST_TABLE} more bits; metrics.csv has them"
    )
  meanings = [
    f"  {unit}: {meaning}"
    for unit, meaning in zip(_UNITS, _MEANINGS, strict=True)
  ]
  return "\n".join(
    [
      f"{result['a']} + {result['b']} = {result['sum']}",
      "weights, of h_t = [x_t W_xh + h_(t-1) W_hh + b_h > 0] and "
      "y_t = [h_t W_hy + b_y > 0]",
      *weights_table(result),
      "hidden units count s = a + b + carry; the output is its parity",
      *meanings,
      "each bit, least significant first",
      *table,
      f"verified           all {result['pairs_verified']:,} pairs of "
      f"{result['bits']}-bit numbers, {result['random_pairs_verified']} random "
      f"pairs of {result['random_bits']}-bit numbers",
      f"time               {result['seconds']:.1f} s",
    ]
  )


if __name__ == "__main__":
  launch(Config, run, report)
