"""Derivatives that would be zero or wrong in silence become errors.

Integers have no tangents, so that whatever passes through them differentiates
to zero.  A value that must not be differentiated passes an identity whose
derivative is an error.
"""

import functools
from typing import Any

import jax
import jax.numpy as jnp
from jax.custom_derivatives import SymbolicZero


def refuse_derivative(tree: Any, message: str, *witnesses: Any) -> Any:
  """The same pytree, but its derivative is a ValueError.

  What is known now has no derivative and stays as it is.

  Args:
    tree: of anything; only traced floats can be differentiated.
    message: of the error.
    *witnesses: pytrees that must not be differentiated either where a float
      of the tree is used.

  >>> try:
  ...   jax.grad(lambda x: refuse_derivative(x, "integers follow"))(1.0)
  ... except ValueError as error:
  ...   print(error)
  integers follow
  """
  traced = [w for w in jax.tree.leaves(witnesses) if _is_traced_float(w)]
  return jax.tree.map(
    lambda leaf: (
      _identity(message, leaf, *traced)
      if _is_traced_float(leaf) or (traced and _is_float(leaf))
      else leaf
    ),
    tree,
  )


def _is_float(leaf: Any) -> bool:
  return hasattr(leaf, "dtype") and jnp.issubdtype(leaf.dtype, jnp.inexact)


def _is_traced_float(leaf: Any) -> bool:
  return isinstance(leaf, jax.core.Tracer) and _is_float(leaf)


@functools.partial(jax.custom_jvp, nondiff_argnums=(0,))
def _identity(message, value, *witnesses):
  return value


def _raise(message, primals, tangents):
  if all(isinstance(tangent, SymbolicZero) for tangent in tangents):
    return primals[0], tangents[0]
  raise ValueError(message)


_identity.defjvp(_raise, symbolic_zeros=True)
