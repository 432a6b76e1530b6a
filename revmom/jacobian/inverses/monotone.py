"""Strictly monotone scalar functions: a proof, and roots by bisection."""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from revmom.jacobian.program.equations import Equation, Program, Variable

# Stands for "positive", where an infimum of 0 is not attained.
TINY = float(np.finfo(np.float64).tiny)


class Interval(NamedTuple):
  """All numbers from low to high; its arithmetic contains every result."""

  low: float
  high: float

  def __add__(self, other: "Interval") -> "Interval":  # type: ignore[override]
    low, high = self.low + other.low, self.high + other.high
    return Interval(
      -np.inf if np.isnan(low) else low, np.inf if np.isnan(high) else high
    )

  def __neg__(self) -> "Interval":
    return Interval(-self.high, -self.low)

  def __mul__(self, other: "Interval") -> "Interval":  # type: ignore[override]
    ends = [_times(a, b) for a in self for b in other]
    return Interval(min(ends), max(ends))

  def join(self, other: "Interval") -> "Interval":
    return Interval(min(self.low, other.low), max(self.high, other.high))

  @property
  def sign(self) -> int:
    """Of all of its numbers, or 0."""
    return int(self.low > 0) - int(self.high < 0)


def _times(a: float, b: float) -> float:
  """The product; 0 times infinity is 0, and no product underflows."""
  if a == 0 or b == 0:
    return 0.0
  product = a * b
  return product if product else float(np.copysign(TINY, a) * np.sign(b))


LINE = Interval(-np.inf, np.inf)
UNIT = Interval(-1.0, 1.0)
ONE = Interval(1.0, 1.0)
ZERO = Interval(0.0, 0.0)


class Curve(NamedTuple):
  """Bounds of a function of one variable and of its derivative."""

  value: Interval
  slope: Interval


# Of each function: its domain, its values and its slopes there.
Shape = tuple[
  Interval, Callable[[Interval], Interval], Callable[[Interval], Interval]
]


def _rising(
  value: Callable[[float], float], positive: bool = False
) -> Callable[[Interval], Interval]:
  """The values of an increasing function."""

  def image(x: Interval) -> Interval:
    with np.errstate(all="ignore"):
      low, high = float(value(x.low)), float(value(x.high))
    return Interval(max(low, TINY) if positive else low, high)

  return image


def _always(low: float, high: float) -> Callable[[Interval], Interval]:
  return lambda x: Interval(low, high)


def _magnitude(x: Interval) -> Interval:
  """The values of |x|."""
  if x.low >= 0:
    return x
  return -x if x.high <= 0 else Interval(0.0, max(-x.low, x.high))


def _direction(x: Interval) -> Interval:
  """The slopes of |x|."""
  if x.low >= 0:
    return ONE
  return -ONE if x.high <= 0 else UNIT


def _reciprocal(x: Interval) -> Interval:
  """1/x of x > 0."""
  with np.errstate(all="ignore"):
    low, high = np.float64(1) / np.array([x.high, x.low])
  return Interval(max(float(low), TINY), float(high))


_root = _rising(np.sqrt, positive=True)
_exp = _rising(np.exp, positive=True)
POSITIVE = Interval(0.0, np.inf)
SHAPES: dict[str, Shape] = {
  "abs": (LINE, _magnitude, _direction),
  "asinh": (LINE, _rising(np.arcsinh), _always(TINY, 1)),
  "atan": (LINE, _rising(np.arctan), _always(TINY, 1)),
  "cbrt": (LINE, _rising(np.cbrt), _always(TINY, np.inf)),
  "cos": (LINE, _always(-1, 1), _always(-1, 1)),
  "cosh": (LINE, _always(1, np.inf), _rising(np.sinh)),
  "erf": (LINE, _always(-1, 1), _always(TINY, 2 / np.sqrt(np.pi))),
  "exp": (LINE, _exp, _exp),
  "expm1": (LINE, _rising(np.expm1), _exp),
  "log": (POSITIVE, _rising(np.log), _reciprocal),
  "log1p": (
    Interval(-1.0, np.inf),
    _rising(np.log1p),
    lambda x: _reciprocal(x + ONE),
  ),
  "log2": (
    POSITIVE,
    _rising(np.log2),
    lambda x: _reciprocal(x) * Interval(1 / np.log(2), 1 / np.log(2)),
  ),
  "logistic": (LINE, _always(TINY, 1), _always(TINY, 0.25)),
  "neg": (LINE, lambda x: -x, _always(-1, -1)),
  "sin": (LINE, _always(-1, 1), _always(-1, 1)),
  "sinh": (LINE, _rising(np.sinh), _always(1, np.inf)),
  "sqrt": (
    POSITIVE,
    _rising(np.sqrt),
    lambda x: _reciprocal(_root(x)) * Interval(0.5, 0.5),
  ),
  "square": (
    LINE,
    lambda x: _magnitude(x) * _magnitude(x),
    lambda x: Interval(2.0, 2.0) * x,
  ),
  "tanh": (LINE, _rising(np.tanh), _always(TINY, 1)),
}


def direction(program: Program, known: Sequence[Any]) -> int:
  """Whether a program of its first input strictly rises (1) or falls (-1).

  The derivative is bounded by interval arithmetic; 0 if that doesn't tell.

  Args:
    program: elementwise equations; one output.
    known: the values of the other inputs; None for those that are traced.
  """
  curves: dict[Variable, Curve] = {program.inputs[0]: Curve(LINE, ONE)}
  for variable, value in zip(program.inputs[1:], known, strict=True):
    curves[variable] = _constant(value)
  get = lambda v: curves[v] if isinstance(v, Variable) else _constant(v)
  for equation in program.equations:
    curve = _through(equation, [get(v) for v in equation.operands])
    if curve is None:
      return 0
    curves[equation.outputs[0]] = curve
  return get(program.outputs[0]).slope.sign


def _constant(value: Any) -> Curve:
  if value is None or isinstance(value, jax.core.Tracer):
    return Curve(LINE, ZERO)
  values = np.asarray(value, np.float64)
  if not values.size or np.isnan(values).any():
    return Curve(LINE, ZERO)
  return Curve(Interval(float(values.min()), float(values.max())), ZERO)


def _through(equation: Equation, curves: list[Curve]) -> Curve | None:
  """The chain rule."""
  name, params = equation.name, equation.params
  if name == "convert_element_type":
    # Between floats: whatever else it does is a step.
    kinds = [v.dtype for v in (*equation.variables, *equation.outputs)]
    real = all(jnp.issubdtype(dtype, jnp.floating) for dtype in kinds)
    return curves[0] if real or curves[0].slope == ZERO else None
  if name == "select_n" and curves[0].slope == ZERO:
    # Each element rises if each of the cases does.
    value, slope = curves[1]
    for case in curves[2:]:
      value, slope = value.join(case.value), slope.join(case.slope)
    return Curve(value, slope)
  if name == "integer_pow" and params["y"] > 0:
    result = curves[0]
    for _ in range(params["y"] - 1):
      result = _product(result, curves[0])
    if params["y"] % 2 and result.slope.low < 0:
      # An odd power rises, which the bare product doesn't know.
      even = Interval(0.0, np.inf)
      result = Curve(LINE, even * curves[0].slope)
    return result
  if name in SHAPES:
    domain, values, slopes = SHAPES[name]
    x, slope = curves[0]
    if x.low < domain.low or x.high > domain.high:
      # Where its argument is monotone too, the function's domain is connected.
      if not slope.sign:
        return None
      x = Interval(max(x.low, domain.low), min(x.high, domain.high))
    return Curve(values(x), slopes(x) * slope)
  if len(curves) != 2:
    return None
  left, right = curves
  if name in ("add", "add_any"):
    return Curve(left.value + right.value, left.slope + right.slope)
  if name == "sub":
    return Curve(left.value + -right.value, left.slope + -right.slope)
  if name == "mul":
    return _product(left, right)
  if name == "div" and right.value.sign:
    return _product(left, _inverted(right))
  if name in ("max", "min"):
    return Curve(left.value.join(right.value), left.slope.join(right.slope))
  if name == "logaddexp":  # a weighted mean of the slopes
    slope = left.slope.join(right.slope)
    if slope.low == 0 and slope.high > 0:
      slope = Interval(TINY, slope.high)
    return Curve(LINE, slope)
  return None


def _product(left: Curve, right: Curve) -> Curve:
  return Curve(
    left.value * right.value,
    left.slope * right.value + right.slope * left.value,
  )


def _inverted(curve: Curve) -> Curve:
  """1 / x; x has one sign."""
  sign = Interval(float(curve.value.sign), float(curve.value.sign))
  value = _reciprocal(sign * curve.value)
  return Curve(sign * value, -(value * value) * curve.slope)


def root(
  function: Callable[[jax.Array], jax.Array], y: jax.Array, rises: bool
) -> jax.Array:
  """x with function(x) = y, to the last bit; NaN where there is none.

  Bisects the floats themselves, in the order of their bits, so that no
  bracket is needed.  Derivatives of all orders are those of the equation.
  """

  @jax.jit  # else custom_root would see a vmap around a trial on known numbers
  def solve(y: jax.Array) -> jax.Array:
    sign = jnp.asarray(1 if rises else -1, y.dtype)
    return lax.custom_root(
      lambda x: sign * (function(x) - y),
      jnp.zeros_like(y),
      _bisect,
      lambda slope, change: change / slope(jnp.ones_like(change)),
    )

  return solve(y)


def _bisect(
  function: Callable[[jax.Array], jax.Array], start: jax.Array
) -> jax.Array:
  """The zero of an increasing function."""
  bits = jnp.finfo(start.dtype).bits
  integer = jnp.dtype(f"int{bits}")
  largest = _order(jnp.asarray(jnp.finfo(start.dtype).max), integer)
  high = jnp.full(start.shape, largest)

  def halve(_: int, ends: tuple[jax.Array, jax.Array]) -> Any:
    low, high = ends
    middle = (low >> 1) + (high >> 1) + (low & high & 1)
    x = _float(middle, start.dtype)
    value = function(x)
    # Beyond where it can be computed a function goes on as it did.
    above = jnp.where(jnp.isnan(value), x > 0, value > 0)
    return jnp.where(above, low, middle), jnp.where(above, middle, high)

  low, high = lax.fori_loop(0, bits, halve, (~high, high))
  left, right = _float(low, start.dtype), _float(high, start.dtype)
  below, above = function(left), function(right)
  nearer = jnp.where(jnp.abs(below) < jnp.abs(above), left, right)
  # An end that never moved met no value on its side of 0.
  found = (low != ~largest) & (high != largest) & ~jnp.isnan(below)
  return jnp.where(found, nearer, jnp.asarray(jnp.nan, start.dtype))


def _order(x: jax.Array, integer: Any) -> jax.Array:
  """Integers in the order of the floats."""
  bits = lax.bitcast_convert_type(x, integer)
  return jnp.where(bits < 0, bits ^ jnp.iinfo(integer).max, bits)


def _float(order: jax.Array, dtype: Any) -> jax.Array:
  integer = order.dtype
  bits = jnp.where(order < 0, order ^ jnp.iinfo(integer).max, order)
  return lax.bitcast_convert_type(bits, dtype)
