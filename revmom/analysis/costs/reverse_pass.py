"""What differentiation keeps, and the programs that it runs."""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from revmom.jacobian.program.equations import Operand, Program, Variable, trace


class Derivative(NamedTuple):
  """A function's reverse pass.

  Attributes:
    forward: the program that computes the outputs and what is kept.
    backward: the program from adjoints of the outputs to those of parameters.
    kept_bytes: the size of what is kept, without arguments and constants.
  """

  forward: Program
  backward: Program
  kept_bytes: int


def derivative(
  function: Callable[..., Any], args: Sequence[Any], argnums: Sequence[int]
) -> Derivative | None:
  """The reverse pass of a function with respect to some arguments.

  Leaves that aren't floats are constants.  None if no output can be
  differentiated with respect to them.
  """
  leaves: list[Any]
  tree: Any
  leaves, tree = jax.tree.flatten([args[k] for k in argnums])
  moving = [k for k, leaf in enumerate(leaves) if _is_floating(leaf)]

  def pull(args: Sequence[Any]) -> tuple[list[Any], Callable[..., Any]]:
    args = list(args)
    leaves = jax.tree.leaves([args[k] for k in argnums])

    def outputs(floats: list[Any]) -> list[Any]:
      own = list(leaves)
      for k, value in zip(moving, floats, strict=True):
        own[k] = value
      changed = list(args)
      for k, value in zip(argnums, tree.unflatten(own), strict=True):
        changed[k] = value
      results = jax.tree.leaves(function(*changed))
      return [out for out in results if _is_floating(out)]

    return jax.vjp(outputs, [leaves[k] for k in moving])

  if not moving:
    return None
  forward, structure = trace(pull, list(args))
  outputs, pullback = structure.unflatten(map(_shape, forward.outputs))
  if not outputs:
    return None
  backward, _ = trace(lambda back, bars: back(bars), pullback, outputs)
  kept = {
    v
    for v in forward.outputs[len(outputs) :]
    if isinstance(v, Variable) and v not in forward.inputs
  }
  size = sum(v.size * np.dtype(v.dtype).itemsize for v in kept)
  return Derivative(forward, backward, size)


def _shape(value: Operand) -> jax.ShapeDtypeStruct:
  aval = value.aval if isinstance(value, Variable) else jax.typeof(value)
  weak = getattr(aval, "weak_type", False)
  return jax.ShapeDtypeStruct(aval.shape, aval.dtype, weak_type=weak)


def _is_floating(leaf: Any) -> bool:
  return jnp.issubdtype(jnp.result_type(leaf), jnp.floating)
