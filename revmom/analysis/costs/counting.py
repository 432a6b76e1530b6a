r"""Arithmetic of programs: multiply-adds, FLOPs and transcendentals.

Conventions, which are those of XLA's `cost_analysis` where it counts:

- A multiply-add of a product or of a convolution is two FLOPs.  Of a
  convolution those with the padding around an image, or with the zeros that
  dilate it, are none.
- Additions, multiplications, divisions, comparisons, minima, roundings and the
  like are one FLOP for each element of the result; a sum of n elements has
  n - 1, an integer power as many as repeated squaring takes.
- exp, tanh, sqrt and other functions count apart, as transcendentals.
- Selections, conversions and moves are free, as is arithmetic of integers: of
  indices and of random bits.
- The body of a loop counts as often as it runs, which is where XLA counts it
  once.  Of branches the dearest counts.
"""

import math
from collections import Counter
from collections.abc import Mapping
from functools import reduce
from typing import NamedTuple

import jax.numpy as jnp
import numpy as np

from revmom.analysis.costs.trip_counts import NESTED, TripCounts, parts
from revmom.jacobian.program.constants import Constants
from revmom.jacobian.program.contractions import meetings
from revmom.jacobian.program.equations import Equation, Program
from revmom.jacobian.program.primitives import CUMULATIVE, IDENTITIES, INDEXING

TRANSCENDENTAL = frozenset(
  "acos acosh asin asinh atan atan2 atanh bessel_i0e bessel_i1e cbrt cos cosh "
  "digamma erf erf_inv erfc exp exp2 expm1 igamma igamma_grad_a igammac lgamma "
  "log log1p log2 logistic polygamma pow random_gamma_grad "
  "regularized_incomplete_beta rsqrt sin sinh sqrt tan tanh zeta".split()
)
ARITHMETIC = frozenset(
  "abs add add_any ceil clamp div eq eq_to floor ge gt is_finite le le_to lt "
  "lt_to max min mul ne neg nextafter rem round sign square sub".split()
)
REDUCTIONS = frozenset(
  "argmax argmin reduce_max reduce_min reduce_prod reduce_sum".split()
)
FREE = (
  frozenset(INDEXING)
  | IDENTITIES
  | frozenset(
    "and bitcast_convert_type clz complex conj convert_element_type copy "
    "copy_p create_token empty expand_dims imag iota name not or "
    "population_count pvary random_bits random_clone random_fold_in "
    "random_seed random_split random_unwrap random_wrap real reduce_and "
    "reduce_or reduce_precision reduce_xor reshape sharding_constraint "
    "shift_left shift_right_arithmetic shift_right_logical squeeze "
    "stop_gradient threefry2x32 xor".split()
  )
)


class Count(NamedTuple):
  """Arithmetic operations.

  Attributes:
    multiply_adds: of products and convolutions.
    flops: two for each of them, and all others.
    transcendentals: evaluations of exp, tanh and so on.
    uncounted: the names of primitives of unknown cost, and how often they run.
  """

  multiply_adds: int = 0
  flops: int = 0
  transcendentals: int = 0
  uncounted: Mapping[str, int] = {}

  def plus(self, other: "Count", times: int = 1) -> "Count":
    """This, and the other so many times."""
    uncounted = Counter(self.uncounted)
    for name, number in other.uncounted.items():
      uncounted[name] += times * number
    return Count(
      self.multiply_adds + times * other.multiply_adds,
      self.flops + times * other.flops,
      self.transcendentals + times * other.transcendentals,
      {name: number for name, number in uncounted.items() if number > 0},
    )


def count(
  program: Program, trip_counts: TripCounts, constants: Constants | None = None
) -> Count:
  """The arithmetic of a program.

  Args:
    program: of `revmom.jacobian.program`.
    trip_counts: how often while loops run.
    constants: what is known of its values, if it is a part of another.

  Raises:
    ValueError: nothing tells how often a while loop runs.
  """
  constants = constants or Constants(program.equations)
  total = Count()
  for equation in program.equations:
    total = total.plus(_count(equation, trip_counts, constants))
  return total


def _count(
  equation: Equation, trip_counts: TripCounts, constants: Constants
) -> Count:
  if equation.name not in NESTED:
    return _of_primitive(equation)
  counts = [
    Count().plus(count(part.program, trip_counts, part.constants), part.times)
    for part in parts(equation, trip_counts, constants)
  ]
  if equation.name == "cond":
    return max(counts, key=lambda branch: branch[1:3])
  return reduce(Count.plus, counts)


def _of_primitive(equation: Equation) -> Count:
  name = equation.name
  if name in FREE:
    return Count()
  if name in ("dot_general", "conv_general_dilated"):
    of = dot if name == "dot_general" else convolution
    return Count(of(equation), 2 * of(equation))
  if not _is_floating(equation):
    known = name in ARITHMETIC | REDUCTIONS | CUMULATIVE | _OTHERS.keys()
    return Count() if known else Count(uncounted={name: 1})
  outputs = equation.outputs[0].size
  if name in TRANSCENDENTAL:
    return Count(transcendentals=outputs)
  if name in ARITHMETIC:
    return Count(flops=outputs)
  if name in REDUCTIONS:
    return Count(flops=equation.operands[0].size - outputs)
  if name == "cumlogsumexp":
    # Each step is max(a, b) + log1p(exp(-|a - b|)).
    steps = _steps_of_cumulative(equation)
    return Count(flops=4 * steps, transcendentals=2 * steps)
  if name in CUMULATIVE:
    return Count(flops=_steps_of_cumulative(equation))
  if name in _OTHERS:
    return Count(flops=_OTHERS[name](equation))
  return Count(uncounted={name: 1})


def _is_floating(equation: Equation) -> bool:
  of = equation.operands or equation.outputs
  return any(jnp.issubdtype(jnp.result_type(v), jnp.inexact) for v in of)


def dot(equation: Equation) -> int:
  """Multiply-adds: one for each output and contracted element."""
  (contracting, _), _ = equation.params["dimension_numbers"]
  shape = np.shape(equation.operands[0])
  return equation.outputs[0].size * math.prod(shape[k] for k in contracting)


def convolution(equation: Equation) -> int:
  """Multiply-adds with elements of the image, not of what is around them."""
  params = equation.params
  lhs, rhs, out = params["dimension_numbers"]
  image, kernel = (np.shape(operand) for operand in equation.operands)
  result = equation.outputs[0].shape
  places = math.prod(
    len(
      meetings(
        params, d, image[lhs[2 + d]], kernel[rhs[2 + d]], result[out[2 + d]]
      ).inputs
    )
    for d in range(len(out) - 2)
  )
  batch = image[lhs[0]] // params["batch_group_count"]
  return batch * kernel[rhs[1]] * kernel[rhs[0]] * places


def _steps_of_cumulative(equation: Equation) -> int:
  length = equation.operands[0].shape[equation.params["axis"]]
  return equation.outputs[0].size * max(0, length - 1) // max(1, length)


def _integer_power(equation: Equation) -> int:
  """Multiplications of repeated squaring, and the division below zero."""
  power = equation.params["y"]
  number = max(0, abs(power).bit_length() - 1)
  number += max(0, abs(power).bit_count() - 1) + (power < 0)
  return number * equation.outputs[0].size


def _polynomial(equation: Equation) -> int:
  """Horner's rule, of x and the coefficients."""
  return 2 * (len(equation.operands) - 2) * equation.outputs[0].size


def _comparisons(equation: Equation) -> int:
  length = equation.operands[0].shape[equation.params["dimension"]]
  return equation.outputs[0].size * math.ceil(math.log2(max(1, length)))


def _window(equation: Equation) -> int:
  window = math.prod(equation.params["window_dimensions"])
  return equation.outputs[0].size * (window - 1)


def _select_and_scatter(equation: Equation) -> int:
  """Finding the largest of each window, and adding to it."""
  window = math.prod(equation.params["window_dimensions"])
  return equation.operands[0].size * window


def _updates(equation: Equation) -> int:
  return equation.operands[2].size


def _one_minus_square(equation: Equation) -> int:
  return 2 * equation.outputs[0].size


_OTHERS = {
  "integer_pow": _integer_power,
  "one_minus_square": _one_minus_square,
  "polynomial": _polynomial,
  "reduce_window_max": _window,
  "reduce_window_min": _window,
  "reduce_window_sum": _window,
  "scatter-add": _updates,
  "scatter-max": _updates,
  "scatter-min": _updates,
  "scatter-mul": _updates,
  "scatter-sub": _updates,
  "select_and_scatter_add": _select_and_scatter,
  "sort": _comparisons,
}
