"""What users declare of functions of their own: inverses, log-determinants.

`custom_inverse` marks the calls of a function, wherever they are in a program;
`custom_log_det` speaks of a whole function.
"""

import functools
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np
from jax.extend.core import JaxprEqn

from revmom.jacobian.program.control_flow import policy_of
from revmom.jacobian.program.equations import Equation


class Mark:
  """What a marked call knows of itself.

  It travels through JAX as the policy of a checkpoint that saves everything,
  and so recomputes nothing.
  """

  def __init__(
    self,
    inverse: Callable[..., Any],
    log_det: Callable[..., tuple[Any, Any]] | None,
    x: Any,
    arguments: tuple[Any, ...],
    image: Any,
  ):
    self.inverse, self.log_det = inverse, log_det
    self.x, self.arguments, self.image = x, arguments, image  # shapes, dtypes

  def __call__(self, *args: Any, **params: Any) -> bool:
    """Saves every value."""
    return True


def custom_inverse(
  f: Callable[..., Any],
  f_inverse: Callable[..., Any],
  log_det: Callable[..., tuple[Any, Any]] | None = None,
) -> Callable[..., Any]:
  """Declares the inverse of a function, and its log-determinant if it is given.

  `inverse` and `log_det` use them wherever the function is called, also within
  other functions and under `vmap`.

  Args:
    f: y = f(x, *arguments), pytrees; x is what the inverse gives back.
    f_inverse: x = f_inverse(y, *arguments).  It must depend on nothing that is
      traced but its arguments.
    log_det: likewise; log|det dy/dx| and the sign of the determinant, two
      numbers, from (x, *arguments).

  Returns:
    A function that computes and differentiates as f does.

  Raises:
    NotInvertible: from `inverse`, where f_inverse(f(x)) is not x.
    ValueError: from `log_det`, where its rule gives, at random numbers, another
      result than the dense Jacobian of up to 64 numbers.

  >>> import jax.numpy as jnp
  >>> from revmom.jacobian import inverse, log_det
  >>> square = custom_inverse(lambda x: x * x, jnp.sqrt)
  >>> inverse(lambda x: square(jnp.exp(x)))(jnp.array(1.0))
  Array(0., dtype=float32)
  >>> rotate = custom_inverse(
  ...   lambda x: 2 * x[::-1],
  ...   lambda y: y[::-1] / 2,
  ...   lambda x: (x.size * jnp.log(2.0), (-1) ** (x.size // 2)),
  ... )
  >>> print(log_det(lambda x: rotate(jnp.exp(x)))(jnp.ones(2)).value)
  3.3862944
  """

  @functools.wraps(f)
  def marked(x: Any, *arguments: Any) -> Any:
    shapes = jax.eval_shape(lambda *a: a, x, arguments)
    image = jax.eval_shape(f, x, *arguments)
    mark = Mark(f_inverse, log_det, shapes[0], shapes[1], image)
    call = jax.checkpoint(f, policy=mark, prevent_cse=False)
    return call(x, *arguments)

  return marked


def mark_of(equation: JaxprEqn | Equation) -> Mark | None:
  """The mark of a call, unless JAX changed the call since.

  A derivative of the call keeps its policy, but not its meaning; `vmap` puts
  axes in front of its operands.
  """
  mark = policy_of(equation)
  if not isinstance(mark, Mark) or batch_of(mark, equation) is None:
    return None
  return mark


class Batch(NamedTuple):
  """The axes that `vmap` put in front of a marked call."""

  shape: tuple[int, ...]
  x: list[bool]  # which leaves have them
  arguments: list[bool]


def batch_of(mark: Mark, equation: JaxprEqn | Equation) -> Batch | None:
  """How a call is mapped, or None if it isn't the marked one."""
  operands: Sequence[Any]
  outputs: Sequence[Any]
  if isinstance(equation, Equation):
    operands, outputs = equation.operands, equation.outputs
  else:
    operands = [v.aval for v in equation.invars]
    outputs = [v.aval for v in equation.outvars]
  x, arguments, image = (
    jax.tree.leaves(tree) for tree in (mark.x, mark.arguments, mark.image)
  )
  # What the function closes over comes before its arguments.
  own = operands[len(operands) - len(x) - len(arguments) :]
  if len(own) != len(x) + len(arguments) or len(outputs) != len(image):
    return None
  shape = outputs[0].shape[: len(outputs[0].shape) - len(image[0].shape)]
  mapped = []
  for got, recorded in zip(
    (*outputs, *own), (*image, *x, *arguments), strict=True
  ):
    if np.shape(got) == (*shape, *recorded.shape):
      mapped.append(bool(shape))
    elif np.shape(got) == recorded.shape:
      mapped.append(False)
    else:
      return None
  mapped = mapped[len(outputs) :]
  return Batch(shape, mapped[: len(x)], mapped[len(x) :])


class DeclaredLogDet:
  """A function with a closed form; build it with `custom_log_det`."""

  def __init__(self, f: Callable[..., Any], rule: Callable[..., Any]):
    self._f = f
    self.declared_log_det = rule

  def __call__(self, *args: Any) -> Any:
    return self._f(*args)


def custom_log_det(
  f: Callable[..., Any], rule: Callable[..., tuple[Any, Any]]
) -> DeclaredLogDet:
  """Declares the log-determinant of a function.

  Args:
    f: a function of pytrees.
    rule: takes the same arguments; returns log|det J| and the sign of det J.

  Returns:
    A function with the values of `f` and an attribute `declared_log_det`,
    which is all that `log_det` looks for.

  >>> import jax.numpy as jnp
  >>> from revmom.jacobian import log_det
  >>> double = custom_log_det(
  ...   lambda x: 2 * x, lambda x: (x.size * jnp.log(2.0), 1)
  ... )
  >>> result = log_det(double)(jnp.zeros(3))
  >>> print(result.method, result.value)
  declared 2.0794415
  """
  return DeclaredLogDet(f, rule)
