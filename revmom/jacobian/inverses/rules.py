"""Inverses of single primitives.

Where an output lies outside of the primitive's range the inverse is NaN, and
where a primitive takes a value twice there is no rule: a preimage that may be
another one than the program's input is never returned.
"""

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from revmom.jacobian.inverses.knowledge import NotInvertible
from revmom.jacobian.log_determinants.determinant import pivot_errors
from revmom.jacobian.program.contractions import dot_order
from revmom.jacobian.program.equations import Equation

Params = dict[str, Any]
Unary = Callable[[jax.Array, Params], jax.Array]
# (the place of the unknown operand, the output, the other operand) -> operand.
Binary = Callable[[int, jax.Array, jax.Array], jax.Array]


def _where(condition: jax.Array, value: jax.Array) -> jax.Array:
  """The value, or NaN outside of the range."""
  return jnp.where(condition, value, jnp.asarray(jnp.nan, value.dtype))


def _odd_root(y: jax.Array, power: int) -> jax.Array:
  """y^(1/power), also of negative numbers, with the power's own last digits."""
  if power == 3:
    return jnp.cbrt(y)
  safe = jnp.where(y == 0, jnp.ones_like(y), y)
  exponent = jnp.asarray(1 / power, y.dtype)
  root = jnp.sign(y) * jnp.abs(safe) ** exponent
  # A Newton step: the exponent was rounded.
  polished = root - (root - safe * root ** (1 - power)) / power
  return jnp.where(y == 0, y, polished)


def _integer_root(y: jax.Array, params: Params) -> jax.Array:
  power = params["y"]
  if power % 2 == 0:
    raise NotInvertible(
      f"`integer_pow` with the even exponent {power} takes x and -x to one "
      "value"
    )
  return _odd_root(y if power > 0 else 1 / y, abs(power))


def _cast(y: jax.Array, dtype: Any) -> jax.Array:
  """Undoes a conversion, unless that rounded to integers."""
  kept = jnp.issubdtype(y.dtype, jnp.inexact)
  if jnp.issubdtype(dtype, jnp.inexact) and not kept:
    raise NotInvertible(f"`convert_element_type` rounds {dtype} to {y.dtype}")
  counts = kept and jnp.issubdtype(dtype, jnp.integer)
  return (jnp.round(y) if counts else y).astype(dtype)


def _range(low: float, high: float, inverse: Unary) -> Unary:
  """A rule for outputs in [low, high]."""

  def rule(y: jax.Array, params: Params) -> jax.Array:
    # Elsewhere the rule sees a value at which its derivative is finite.
    inside = (y >= jnp.asarray(low, y.dtype)) & (
      y <= jnp.asarray(high, y.dtype)
    )
    safe = jnp.where(inside, y, jnp.asarray(0.5, y.dtype))
    return _where(inside, inverse(safe, params))

  return rule


def _tangent(y: jax.Array) -> jax.Array:
  """tan, which is infinite where rounding takes pi / 2 beyond itself."""
  x = jnp.tan(y)
  return jnp.where(x * y < 0, jnp.copysign(jnp.inf, y), x)


UNARY: dict[str, Unary] = {
  "acosh": _range(0, np.inf, lambda y, p: jnp.cosh(y)),
  "asin": _range(-np.pi / 2, np.pi / 2, lambda y, p: jnp.sin(y)),
  "acos": _range(0, np.pi, lambda y, p: jnp.cos(y)),
  "asinh": lambda y, p: jnp.sinh(y),
  "atan": _range(-np.pi / 2, np.pi / 2, lambda y, p: _tangent(y)),
  "atanh": lambda y, p: jnp.tanh(y),
  "cbrt": lambda y, p: y * y * y,
  "copy": lambda y, p: y,
  "copy_p": lambda y, p: y,
  "erf": lambda y, p: lax.erf_inv(y),
  "erfc": lambda y, p: lax.erf_inv(1 - y),
  "erf_inv": lambda y, p: lax.erf(y),
  "exp": lambda y, p: jnp.log(y),
  "exp2": lambda y, p: jnp.log2(y),
  "expm1": lambda y, p: jnp.log1p(y),
  "integer_pow": _integer_root,
  "log": lambda y, p: jnp.exp(y),
  "log1p": lambda y, p: jnp.expm1(y),
  "log2": lambda y, p: jnp.exp2(y),
  "logistic": lambda y, p: jnp.log(y) - jnp.log1p(-y),
  "neg": lambda y, p: -y,
  "rsqrt": _range(0, np.inf, lambda y, p: 1 / (y * y)),
  "sinh": lambda y, p: jnp.arcsinh(y),
  "sqrt": _range(0, np.inf, lambda y, p: y * y),
  "tanh": lambda y, p: jnp.arctanh(y),
}


def _minuend(k: int, y: jax.Array, other: jax.Array) -> jax.Array:
  return y + other if k == 0 else other - y


def _quotient(k: int, y: jax.Array, other: jax.Array) -> jax.Array:
  return y * other if k == 0 else _where(other != 0, other / y)


def _power(k: int, y: jax.Array, other: jax.Array) -> jax.Array:
  """Bases are positive, but for those of odd integer exponents."""
  if k == 1:
    return _where((other > 0) & (other != 1), jnp.log(y) / jnp.log(other))
  if not isinstance(other, jax.core.Tracer) and not np.all(
    np.asarray(other) % 2
  ):
    raise NotInvertible(
      "`pow` with an even exponent takes x and -x to one value"
    )
  other = other.astype(y.dtype)
  odd = (other % 2) == 1
  even = (other % 2) == 0
  safe = jnp.where(y == 0, jnp.ones_like(y), y)
  root = jnp.abs(safe) ** (1 / other)
  root = jnp.where(odd, jnp.sign(y) * root, root)
  at_zero = jnp.where(other > 0, 0, jnp.inf).astype(y.dtype)
  return _where(~even & (odd | (y >= 0)), jnp.where(y == 0, at_zero, root))


BINARY: dict[str, Binary] = {
  "add": lambda k, y, other: y - other,
  "add_any": lambda k, y, other: y - other,
  "div": _quotient,
  "mul": lambda k, y, other: _where(other != 0, y / other),
  "pow": _power,
  "sub": _minuend,
}


# Right for integers and complex numbers too.
EXACT = {"add", "add_any", "copy", "copy_p", "neg", "sub"}


def is_elementwise(name: str) -> bool:
  """Whether a primitive has a rule for single elements."""
  return name in UNARY or name in BINARY or name == "convert_element_type"


def elementwise_inverse(
  equation: Equation, k: int, y: jax.Array, others: Sequence[Any]
) -> jax.Array:
  """The k-th operand of an elementwise equation."""
  name = equation.name
  if name not in EXACT and not jnp.issubdtype(y.dtype, jnp.floating):
    raise NotInvertible(f"`{name}` has no rule for {y.dtype}")
  if name == "convert_element_type":
    return _cast(y, equation.operands[0].dtype)
  if name in UNARY:
    return UNARY[name](y, equation.params)
  return BINARY[name](k, y, others[1 - k])


def solve_product(
  equation: Equation, k: int, given: Sequence[Any], y: jax.Array
) -> jax.Array:
  """The k-th operand of a product with a known square matrix, or a batch.

  Of a singular matrix that is known only when it runs, x is NaN.
  """
  matrix = given[1 - k]
  if matrix is None:
    raise NotInvertible("`dot_general` multiplies two unknown values")
  if not jnp.issubdtype(y.dtype, jnp.inexact):
    raise NotInvertible(f"`dot_general` has no rule for {y.dtype}")
  contracted, batch = equation.params["dimension_numbers"]
  shape = equation.operands[k].shape
  axes, (groups, copies, size) = dot_order(shape, contracted[k], batch[k])
  own, sizes = dot_order(np.shape(matrix), contracted[1 - k], batch[1 - k])
  if sizes[1] != size:
    raise NotInvertible(
      f"`dot_general` multiplies by a matrix of shape {sizes[1:]}, which is "
      "not square"
    )
  matrix = jnp.transpose(jnp.asarray(matrix), own).reshape(groups, size, size)
  singular = ~jnp.all(pivot_errors(matrix) < 1)
  if not isinstance(singular, jax.core.Tracer) and singular:
    raise NotInvertible("`dot_general` multiplies by a singular matrix")
  # The output has the free axes of the left operand before the right one's.
  if k == 0:
    image = y.reshape(groups, copies, size).transpose(0, 2, 1)
  else:
    image = y.reshape(groups, size, copies)
  x = _where(~singular, jnp.linalg.solve(matrix, image)).transpose(0, 2, 1)
  x = x.reshape([shape[axis] for axis in axes])
  return jnp.transpose(x, np.argsort(axes).tolist())


def differences(
  equation: Equation, k: int, given: Sequence[Any], y: jax.Array
) -> jax.Array:
  """Undoes `cumsum`."""
  axis, reverse = equation.params["axis"], equation.params["reverse"]
  first, last = (1, y.shape[axis]) if reverse else (0, y.shape[axis] - 1)
  before = lax.slice_in_dim(y, first, last, axis=axis)
  zero = jnp.zeros_like(lax.slice_in_dim(y, 0, 1, axis=axis))
  return y - jnp.concatenate(
    [before, zero] if reverse else [zero, before], axis
  )


# The k-th operand from the operands, of which it is None, and the output.
LINEAR: dict[str, Callable[..., jax.Array]] = {
  "cumsum": differences,
  "dot_general": solve_product,
}
