"""Functions without hidden inputs.

A user's loss may close over arrays that are traced: data under `vmap`, a
regulariser under `grad`.  A custom derivative can't see those, so they are
made arguments.
"""

from collections.abc import Callable
from typing import Any

import jax


def hoist(
  function: Callable[..., Any], *examples: Any
) -> tuple[Callable[..., Any], list[jax.Array], Any]:
  """Splits a function into a pure one and the arrays that it closes over.

  Args:
    function: any function of pytrees.
    *examples: arguments, or their shapes and dtypes.

  Returns:
    `pure` and `constants`, with pure(constants, *args) == function(*args), and
    the shapes and dtypes of what it gives.  The function is called once.
  """
  from jax.extend.core import ClosedJaxpr, jaxpr_as_fun  # slow to import

  closed, out_shape = jax.make_jaxpr(function, return_shape=True)(*examples)
  structure: Any = jax.tree.structure(out_shape)

  def pure(constants: list[jax.Array], *args: Any) -> Any:
    program = jaxpr_as_fun(ClosedJaxpr(closed.jaxpr, constants))
    return structure.unflatten(program(*jax.tree.leaves(args)))

  return pure, list(closed.consts), out_shape
