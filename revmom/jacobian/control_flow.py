"""How JAX writes its loops and branches, in each version that is supported.

The parameters of an equation are JAX's own and change with it.  Only this
module reads those of a scan, a while loop and a cond.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple, Protocol

import jax
from jax.extend.core import ClosedJaxpr, Primitive


class Written(Protocol):
  """An equation, of a jaxpr or of a program."""

  @property
  def primitive(self) -> Primitive: ...

  @property
  def params(self) -> dict[str, Any]: ...


class ScanForm(NamedTuple):
  """A scan, whose operands are constants, then the carry, then the xs."""

  body: ClosedJaxpr
  constants: int
  carry: int
  length: int
  reverse: bool
  unroll: int


class WhileForm(NamedTuple):
  """A while loop: its condition's constants, its body's, then the carry."""

  condition: ClosedJaxpr
  condition_constants: int
  body: ClosedJaxpr
  body_constants: int


def scan_form(equation: Written) -> ScanForm:
  """What a scan repeats, how often, and which operands are what.

  Raises:
    ValueError: this JAX writes scans in a way that is not known.

  >>> closed = jax.make_jaxpr(
  ...   lambda x, ys: jax.lax.scan(lambda c, y: (c + y, None), x, ys)[0]
  ... )(1.0, jax.numpy.ones(3))
  >>> form = scan_form(closed.jaxpr.eqns[0])
  >>> form.constants, form.carry, form.length
  (0, 1, 3)
  """
  constants, carry = _scan_counts(equation)
  of = lambda name: _parameter(equation, name)
  return ScanForm(
    of("jaxpr"), constants, carry, of("length"), of("reverse"), of("unroll")
  )


def _scan_counts(equation: Written) -> tuple[int, int]:
  if "num_consts" in equation.params:  # jax 0.10
    return equation.params["num_consts"], _parameter(equation, "num_carry")
  # Since jax 0.12 a tree of the operands: (constants, carry, xs).
  tree = _parameter(equation, "ft_in")
  try:
    constants, carry, _ = map(len, tree.unpack())
  except (AttributeError, TypeError, ValueError) as error:
    raise _unknown(equation, f"ft_in={tree!r}") from error
  return constants, carry


def narrowed_scan(
  equation: Written,
  body: ClosedJaxpr,
  used: Sequence[bool],
  wanted: Sequence[bool],
) -> dict[str, Any]:
  """The parameters of a scan of a body with fewer operands and outputs."""
  form = scan_form(equation)
  if "num_consts" in equation.params:
    counts = {
      "num_consts": sum(used[: form.constants]),
      "num_carry": sum(wanted[: form.carry]),
    }
    return {**equation.params, "jaxpr": body, **counts}
  try:
    trees = {
      "ft_in": equation.params["ft_in"].filter_with_mask(list(used)),
      "ft_out": equation.params["ft_out"].filter_with_mask(list(wanted)),
    }
  except (AttributeError, KeyError, TypeError) as error:
    raise _unknown(equation, f"parameters {sorted(equation.params)}") from error
  return {**equation.params, "jaxpr": body, **trees}


def while_form(equation: Written) -> WhileForm:
  """What a while loop repeats, until when, and which operands are what.

  Raises:
    ValueError: this JAX writes while loops in a way that is not known.

  >>> closed = jax.make_jaxpr(
  ...   lambda x: jax.lax.while_loop(lambda c: c < x, lambda c: c * 2, 1.0)
  ... )(8.0)
  >>> form = while_form(closed.jaxpr.eqns[0])
  >>> form.condition_constants, form.body_constants
  (1, 0)
  """
  names = "cond_jaxpr", "cond_nconsts", "body_jaxpr", "body_nconsts"
  return WhileForm(*(_parameter(equation, name) for name in names))


def branches_of(equation: Written) -> tuple[ClosedJaxpr, ...]:
  """The branches of a cond, which its first operand numbers.

  Raises:
    ValueError: this JAX writes branches in a way that is not known.

  >>> closed = jax.make_jaxpr(
  ...   lambda k, x: jax.lax.switch(k, [jax.numpy.sin, jax.numpy.cos], x)
  ... )(0, 1.0)
  >>> len(branches_of(closed.jaxpr.eqns[-1]))
  2
  """
  return tuple(_parameter(equation, "branches"))


def _parameter(equation: Written, name: str) -> Any:
  if name not in equation.params:
    raise _unknown(equation, f"parameters {sorted(equation.params)}")
  return equation.params[name]


def _unknown(equation: Written, got: str) -> ValueError:
  return ValueError(
    f"jax {jax.__version__} writes `{equation.primitive.name}` with {got}, a "
    "form that revmom does not know; use a version of JAX that revmom "
    "supports, or report this one."
  )
