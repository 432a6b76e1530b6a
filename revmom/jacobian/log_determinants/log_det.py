"""log|det J| of JAX functions, exact wherever their structure allows."""

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from revmom.exact.pytree import Pytree, static
from revmom.jacobian.log_determinants.blocks import (
  Block,
  BlockReport,
  Estimated,
  Part,
  Plan,
  Sparse,
)
from revmom.jacobian.log_determinants.components import whole
from revmom.jacobian.log_determinants.cuts import between
from revmom.jacobian.log_determinants.determinant import exact, wide
from revmom.jacobian.log_determinants.plan import Limits, plan
from revmom.jacobian.program.constants import Constants
from revmom.jacobian.program.dead_code import live
from revmom.jacobian.program.equations import (
  Environment,
  Operand,
  Program,
  Variable,
  evaluate,
  needed,
  trace,
)
from revmom.jacobian.program.primitives import keep

METHODS = ("auto", "structure", "dense", "stochastic")


class LogDet(Pytree):
  """The determinant of a Jacobian: sign * exp(value).

  Attributes:
    value: log|det J| []; -inf where det J = 0.
    sign: of det J []: -1, 0 or 1; NaN where log|det J| was estimated, or may
      be nothing but rounding, as that of a singular matrix.
    stderr: standard error of the value []: 0 where it is exact.
    bias_bound: of what the estimate would be off with infinitely many samples
      []: 0 where it is exact but for rounding, infinite where the value may be
      nothing else.
    method: "declared", "structure", "dense" or "stochastic".
    report: the blocks that were found.
  """

  value: jax.Array
  sign: jax.Array
  stderr: jax.Array
  bias_bound: jax.Array
  method: str = static()
  report: tuple[BlockReport, ...] = static()


def log_det(
  f: Callable[..., Any],
  method: str = "auto",
  *,
  dense_limit: int = 2000,
  key: jax.Array | None = None,
  num_samples: int = 32,
) -> Callable[..., LogDet]:
  r"""log|det J| of a function of pytrees, and the sign of det J.

  The program of `f` is cut wherever no more than D floats carry what comes
  later, so that :math:`\log|\det J| = \sum_k \log|\det J_k|` over its segments;
  each :math:`J_k` is taken apart into the diagonal blocks of its block
  triangular form (Dulmage & Mendelsohn 1958), which are found from the program
  and extracted by JVPs.  Loops and branches are those of their bodies.

  D counts the floats of all arguments.  Integers and Booleans are parameters:
  they are passed on, and not differentiated.  Custom forward derivatives are
  used; of functions with custom reverse ones, the function's own.

  Args:
    f: maps pytrees to pytrees of as many floats.
    method: "auto" takes a closed form that `f` declares (`custom_log_det`),
      structure, dense blocks of up to `dense_limit` and, given a key,
      estimates of larger ones; "structure" refuses blocks through equations
      of which nothing is known; "dense" is slogdet of the whole Jacobian;
      "stochastic" is `stochastic_log_det` of the whole.
    dense_limit: the size of the largest matrix to compute.
    key: a random key for estimates, without which none is made.
    num_samples: random directions for each estimate.

  Returns:
    A function of the arguments of `f` with a `LogDet`.  It works under jit,
    vmap and grad; `value` differentiates.

  Raises:
    ValueError: another method, arguments without floats or with complex
      numbers, results of another size, or a block that is too large.

  >>> def momentum(w, v):
  ...   v = 0.9 * v - 0.1 * jax.grad(lambda w: jnp.sum(jnp.cos(w)))(w)
  ...   return w + v, v
  >>> result = log_det(momentum)(jnp.ones(1000), jnp.zeros(1000))
  >>> print(f"{result.value:.3f} {result.sign} {result.method}")
  -105.361 1.0 structure
  """
  if not isinstance(method, str):
    raise ValueError(
      f"log_det got a {type(method).__name__} beside the function; call its "
      "result with the arguments, as in log_det(f)(x)."
    )
  if method not in METHODS:
    raise ValueError(f"method={method!r}; choose one of {METHODS}.")
  if method == "stochastic" and key is None:
    raise ValueError("method='stochastic' needs key=, a random key.")

  def evaluated(*args: Any) -> LogDet:
    rule = getattr(f, "declared_log_det", None)
    if rule is not None and method == "auto":
      return _declared(rule, args)
    program = live(trace(f, *args, keep=keep)[0], keep)
    columns, rows = _floats(program)
    chosen = _plan(program, columns, rows, method, limits)
    values = dict(zip(program.inputs, jax.tree.leaves(args), strict=True))
    values.update((v, jnp.asarray(values[v], v.dtype)) for v in columns)
    evaluate(needed(program.equations, chosen.reads), values)
    return _result(chosen, values)

  def estimate(part: Part) -> Block:
    assert key is not None
    return Estimated(part, key, num_samples)

  limits = Limits(
    dense=dense_limit,
    opaque=method == "auto",
    estimate=None if key is None else estimate,
  )
  return evaluated


def _declared(rule: Callable[..., tuple[Any, Any]], args: tuple) -> LogDet:
  value, sign = rule(*args)
  dtype = wide([jnp.result_type(value)])
  return LogDet(*exact(value, sign, dtype), method="declared", report=())


def _floats(program: Program) -> tuple[list[Variable], list[Operand]]:
  """The inputs and outputs that the Jacobian is of."""
  columns = [v for v in program.inputs if _is_inexact(v)]
  rows = [v for v in program.outputs if _is_inexact(v)]
  for v in (*columns, *rows):
    if jnp.issubdtype(_dtype(v), jnp.complexfloating):
      raise ValueError(
        f"log_det: got {_dtype(v)}; a determinant needs real numbers: give "
        "the real and imaginary parts to a function that joins them."
      )
  inputs, outputs = (sum(map(np.size, vs)) for vs in (columns, rows))
  if not inputs:
    raise ValueError("log_det: the arguments have no floating-point numbers.")
  if inputs != outputs:
    raise ValueError(
      f"log_det: f maps {inputs} floats to {outputs}; a determinant needs as "
      "many of one as of the other."
    )
  return columns, rows


def _dtype(operand: Operand) -> Any:
  known = isinstance(operand, Variable)
  return operand.dtype if known else jnp.result_type(operand)


def _is_inexact(operand: Operand) -> bool:
  return jnp.issubdtype(_dtype(operand), jnp.inexact)


def _plan(
  program: Program,
  columns: Sequence[Variable],
  rows: Sequence[Operand],
  method: str,
  limits: Limits,
) -> Plan:
  """The plan that a method makes."""
  if method in ("auto", "structure"):
    constants = Constants(program.equations)
    return plan(program.equations, columns, rows, constants, limits)
  part = Part(between(program.equations, columns, rows), columns, rows)
  if method == "stochastic" and limits.estimate is not None:
    block = limits.estimate(part)
  else:
    block = Sparse(part, whole(part.size), "dense")
  return Plan(((0, block),), 1, part.dtype)


def _result(chosen: Plan, values: Environment) -> LogDet:
  report = chosen.report()
  kinds = {block.kind for block in report}
  if "estimate" in kinds:
    method = "stochastic"
  else:
    method = "dense" if "dense" in kinds else "structure"
  return LogDet(*chosen.evaluate(values), method=method, report=report)
