"""Inverses of JAX functions, found by propagation and verified."""

import inspect
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from revmom.jacobian.inverses.knowledge import NotInvertible
from revmom.jacobian.inverses.verification import (
  preimage,
  round_trip,
)
from revmom.jacobian.log_determinants.log_det import log_det


def inverse(f: Callable[..., Any], *like: Any) -> Callable[[Any], Any]:
  r"""A function g with g(f(x)) = x, or an error that says why there is none.

  The program of f is solved for its inputs by propagation: an equation whose
  result and all operands but one are known gives that operand, and one whose
  operands are known gives its result.  Elements of an array may become known
  separately, and loops are run backward.  That undoes whatever changes its
  arguments in turn: steps of momentum, couplings, products with matrices.

  Everything else is refused: primitives that are not one-to-one, such as sin,
  and unknown values that meet themselves, as in x + tanh(x).  If you know the
  inverse of that part of f, declare it with `custom_inverse`.

  Every time it is traced g is verified by a round trip of random numbers,
  g(f(x)) = x, so wrap g in `jax.jit`.  Arrays that f closes over and that are
  traced are replaced by random numbers for that, and where these are outside
  of f's domain no round trip is made.

  Args:
    f: a function of pytrees, with as many floats in as out.
    *like: example arguments of f, or their shapes and dtypes; values, if there
      are any, verify g in place of random numbers.  By default f takes what it
      gives: one pytree, or as many as it has parameters.

  Returns:
    A function of f's result.  It returns f's argument, or a tuple if f takes
    several; what is outside of f's range is NaN.  It works under jit, vmap,
    grad and scan.

  Raises:
    NotInvertible: a ValueError, from g, that names the primitive and the
      reason.
    ValueError: from g, for another structure, shape or dtype than f's result.

  >>> def momentum(w, v):
  ...   v = 0.9 * v - 0.1 * jax.grad(lambda w: jnp.sum(jnp.cos(w)))(w)
  ...   return w + v, v
  >>> w, v = inverse(momentum)(momentum(jnp.array([2.0]), jnp.array([1.0])))
  >>> print(w.round(4), v.round(4))
  [2.] [1.]
  >>> inverse(jnp.sin)(jnp.array([0.5]))
  Traceback (most recent call last):
  ...
  revmom.jacobian.inverses.knowledge.NotInvertible: ... `sin` has no rule...
  >>> from revmom.jacobian import custom_inverse
  >>> softplus = custom_inverse(
  ...   jax.nn.softplus, lambda y: jnp.log(jnp.expm1(y))
  ... )
  >>> print(inverse(lambda x: 2 * softplus(x))(jnp.array([1.0])).round(4))
  [-0.4328]
  """

  def inverted(y: Any) -> Any:
    arguments = _arguments(f, like, y)
    return arguments if len(arguments) > 1 else arguments[0]

  return inverted


def inverse_and_log_det(
  f: Callable[..., Any], *like: Any
) -> Callable[[Any], tuple[Any, jax.Array]]:
  r"""The inverse with its own log-determinant.

  .. math::
    x = f^{-1}(y), \quad \log\left|\det\tfrac{\partial x}{\partial y}\right|
      = -\log\left|\det\tfrac{\partial f}{\partial x}\right|

  Args:
    f: as for `inverse`.
    *like: as for `inverse`.

  Returns:
    A function of f's result that returns (x, log|det dx/dy|), the latter [].

  Raises:
    NotInvertible: as for `inverse`.
    ValueError: as for `inverse` and `log_det`.

  >>> x, value = inverse_and_log_det(jnp.exp)(jnp.array([1.0, 2.0]))
  >>> print(x.round(4), value.round(4))
  [0.     0.6931] -0.6931
  """

  def inverted(y: Any) -> tuple[Any, jax.Array]:
    arguments = _arguments(f, like, y)
    x = arguments if len(arguments) > 1 else arguments[0]
    return x, -log_det(f)(*arguments).value

  return inverted


def _arguments(
  f: Callable[..., Any], like: Sequence[Any], y: Any
) -> tuple[Any, ...]:
  """The arguments of f with the result y, after a trial on known numbers."""
  y = jax.tree.map(jnp.asarray, y)
  shapes = _shapes(tuple(like) if like else _arguments_like(f, y))
  closed, image = jax.make_jaxpr(f, return_shape=True)(*shapes)
  got, expected = _shapes(y), _shapes(image)
  if got != expected:
    hint = "" if like else "  Give examples of f's arguments: inverse(f, x)."
    raise ValueError(
      f"inverse: got y of {_show(got)}, expected what f gives: "
      f"{_show(expected)}.{hint}"
    )
  inputs, outputs = map(_floats, (shapes, image))
  if inputs != outputs:
    raise NotInvertible(
      f"inverse: f maps {inputs} floats to {outputs}; an inverse needs as many "
      "of one as of the other."
    )
  round_trip(closed, like)
  leaves = preimage(closed, jax.tree.leaves(y))
  return jax.tree.unflatten(jax.tree.structure(shapes), leaves)


def _arguments_like(f: Callable[..., Any], y: Any) -> tuple[Any, ...]:
  """Arguments like the result: one, or as many as f has parameters."""
  try:
    parameters = inspect.signature(f).parameters.values()
  except (TypeError, ValueError):  # no Python function
    return (y,)
  required = [
    p
    for p in parameters
    if p.default is p.empty
    and p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD)
  ]
  if len(required) > 1:
    if not isinstance(y, tuple) or len(y) != len(required):
      raise ValueError(
        f"inverse: f takes {len(required)} arguments and y is no tuple of as "
        "many.  Give examples of f's arguments: inverse(f, *examples)."
      )
    return y
  return (y,)


def _shapes(tree: Any) -> Any:
  return jax.tree.map(
    lambda leaf: jax.ShapeDtypeStruct(np.shape(leaf), jnp.result_type(leaf)),
    tree,
  )


def _show(tree: Any) -> str:
  return str(jax.tree.map(lambda a: f"{a.dtype}{list(a.shape)}", tree))


def _floats(tree: Any) -> int:
  """How many floats there are in a pytree of shapes."""
  leaves = jax.tree.leaves(tree)
  return sum(a.size for a in leaves if jnp.issubdtype(a.dtype, jnp.inexact))
