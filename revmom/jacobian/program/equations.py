"""JAX functions as flat lists of equations.

A traced function is a nest of calls.  Here it becomes one list: the calls that
mean nothing but "do this" are inlined, and every value gets a variable of its
own.  Loops and branches stay equations; `subprograms` opens them.
"""

import math
from collections.abc import Callable, Iterable, Sequence
from typing import Any, NamedTuple

import jax
from jax.extend.core import ClosedJaxpr, Jaxpr, JaxprEqn, Literal, Primitive

from revmom.jacobian.program.control_flow import (
  CALLS,
  Parameters,
  as_closed,
  called,
)


class Variable:
  """A value of a program; equal only to itself."""

  __slots__ = ("aval",)

  def __init__(self, aval: Any):
    self.aval = aval

  @property
  def shape(self) -> tuple[int, ...]:
    return self.aval.shape

  @property
  def dtype(self) -> Any:
    return self.aval.dtype

  @property
  def size(self) -> int:
    return math.prod(self.aval.shape)

  def __repr__(self) -> str:
    return f"Variable({self.aval.str_short()})"


# What an equation reads: a variable, or a constant (which may be a tracer).
Operand = Any


class Equation(NamedTuple):
  """outputs = primitive(*operands, **params)."""

  primitive: Primitive
  params: dict[str, Any]
  operands: tuple[Operand, ...]
  outputs: tuple[Variable, ...]
  source: Any = None  # where the user's function makes it

  @property
  def name(self) -> str:
    return self.primitive.name

  @property
  def variables(self) -> tuple[Variable, ...]:
    """The operands that are variables."""
    return tuple(v for v in self.operands if isinstance(v, Variable))

  def apply(self, values: Sequence[Any]) -> list[Any]:
    """The outputs for these values of the operands."""
    # As JAX's guide to interpreters has it; all primitives give a mapping.
    params = self.primitive.get_bind_params(self.params)
    results = self.primitive.bind(*values, **params)
    return list(results) if self.primitive.multiple_results else [results]


class Program(NamedTuple):
  """A function as equations, in an order in which they can be evaluated."""

  inputs: tuple[Variable, ...]
  equations: tuple[Equation, ...]
  outputs: tuple[Operand, ...]


Environment = dict[Variable, Any]
Keep = Callable[[JaxprEqn], bool]


def keep_none(equation: JaxprEqn) -> bool:
  """Inlines every call."""
  return False


def trace(
  function: Callable[..., Any], *args: Any, keep: Keep = keep_none
) -> tuple[Program, Any]:
  """The program of a function of pytrees.

  Calls are inlined: jit, checkpoint, and what brings rules of its own, such as
  custom derivatives, of which the function itself is taken.  Equations on which
  no output depends are left out.

  Args:
    function: any function of pytrees; what it closes over becomes constants.
    *args: pytrees of arrays or of their shapes and dtypes.
    keep: tells of a call's equation whether it is to stay an equation.

  Returns:
    The program, whose inputs and outputs are the leaves of the function's, and
    the tree structure of the function's result.

  >>> program, _ = trace(lambda x: jax.jit(jax.numpy.sin)(x) * 2, 1.0)
  >>> [equation.name for equation in program.equations]
  ['sin', 'mul']
  """
  closed, shape = jax.make_jaxpr(function, return_shape=True)(*args)
  return inline(closed, keep), jax.tree.structure(shape)


def inline(closed: ClosedJaxpr, keep: Keep = keep_none) -> Program:
  """The program of a jaxpr, such as the body of a loop."""
  inputs = tuple(Variable(v.aval) for v in closed.jaxpr.invars)
  equations: list[Equation] = []
  outputs = _append(closed.jaxpr, closed.consts, inputs, equations, keep, None)
  used = needed(equations, outputs)
  return Program(inputs, tuple(used), tuple(outputs))


def _append(
  jaxpr: Jaxpr,
  constants: Sequence[Any],
  inputs: Sequence[Operand],
  equations: list[Equation],
  keep: Keep,
  source: Any,
) -> list[Operand]:
  """Appends the equations of a jaxpr; returns its outputs.

  Their source is that of the outermost call: JAX keeps the programs of calls,
  with the line that was the first to make them.
  """
  values = dict(zip(jaxpr.constvars, constants, strict=True))
  values.update(zip(jaxpr.invars, inputs, strict=True))
  read = lambda v: v.val if isinstance(v, Literal) else values[v]
  for equation in jaxpr.eqns:
    operands = tuple(read(v) for v in equation.invars)
    line = equation.source_info if source is None else source
    if equation.primitive.name in CALLS and not keep(equation):
      inner = called(equation)
      outputs = _append(
        inner.jaxpr, inner.consts, operands, equations, keep, line
      )
    else:
      outputs = [Variable(v.aval) for v in equation.outvars]
      primitive = equation.primitive
      params = Parameters(primitive.name, equation.params)
      equations.append(
        Equation(primitive, params, operands, tuple(outputs), line)
      )
    values.update(zip(equation.outvars, outputs, strict=True))
  return [read(v) for v in jaxpr.outvars]


def subprograms(equation: Equation) -> list[ClosedJaxpr]:
  """The jaxprs in the parameters of an equation.

  Of a scan its body, of a while its condition and its body, of a cond its
  branches; `inline` makes programs of them.

  >>> program, _ = trace(
  ...   lambda x: jax.lax.cond(x > 0, lambda x: x, lambda x: -x, x), 1.0
  ... )
  >>> [len(subprograms(equation)) for equation in program.equations]
  [0, 0, 2]
  """
  found: list[ClosedJaxpr] = []
  for value in equation.params.values():
    for item in value if isinstance(value, tuple | list) else (value,):
      if isinstance(item, Jaxpr | ClosedJaxpr):
        found.append(as_closed(item))
  return found


def evaluate(equations: Iterable[Equation], environment: Environment) -> None:
  """Adds the outputs of equations to an environment; values may be tracers."""
  for equation in equations:
    values = [read(environment, operand) for operand in equation.operands]
    environment.update(
      zip(equation.outputs, equation.apply(values), strict=True)
    )


def read(environment: Environment, operand: Operand) -> Any:
  """The value of a variable, or the constant itself."""
  return environment[operand] if isinstance(operand, Variable) else operand


def run(program: Program, inputs: Sequence[Any]) -> list[Any]:
  """The outputs of a program."""
  environment = dict(zip(program.inputs, inputs, strict=True))
  evaluate(program.equations, environment)
  return [read(environment, operand) for operand in program.outputs]


def needed(
  equations: Sequence[Equation], outputs: Iterable[Operand]
) -> list[Equation]:
  """The equations that the outputs depend on, in their order."""
  wanted = {v for v in outputs if isinstance(v, Variable)}
  kept = []
  for equation in reversed(equations):
    if wanted.intersection(equation.outputs):
      wanted.update(equation.variables)
      kept.append(equation)
  return kept[::-1]
