"""Quadratic forms of log|A|, differentiable to any order.

Their derivatives are not those of the approximation but of what it
approximates: in the trace, d log|A| is A^-1 dA, and a form x^T A^-1 dA x is
the dual vector A^-T x, which the approximation knows anyway, times one
derivative of the product A x.  So nothing is stored of the Krylov iteration,
and derivatives are as good as values.
"""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from revmom.jacobian.estimates.estimate import Operator
from revmom.jacobian.estimates.log_action import LogAction


class Method(NamedTuple):
  """How forms are computed; the same object means the same program."""

  action: LogAction
  leave_one_out: bool  # all pairs of probes and a basis of their images
  batch_size: int | None  # probes at once


class Forms(NamedTuple):
  """Quadratic forms x^T log|A| x."""

  values: jax.Array  # [levels, S], or [levels, 2S, 2S]: y^T log|A| x
  vectors: jax.Array  # [S, D], or [2S, D]: probes, then their images' basis
  duals: jax.Array  # like vectors: A^-T x
  diagnostics: Any  # a row for each vector


def log_forms(
  method: Method, operator: Operator, probes: jax.Array, key: jax.Array
) -> Forms:
  """Forms of log|A| for probes [S, D]; see `Forms`."""
  matvec, constants = jax.closure_convert(operator.matvec, _row(probes))
  return _forms(method, matvec, constants, lax.stop_gradient(probes), key)


@functools.partial(jax.custom_jvp, nondiff_argnums=(0, 1))
def _forms(
  method: Method, matvec: Callable, constants: list, probes: Any, key: Any
) -> Forms:
  transpose = transposed(matvec, _row(probes))
  key = jax.random.fold_in(key, 0)

  def run(vectors: jax.Array, key: jax.Array) -> Any:
    act = lambda x, k: method.action(
      lambda v: matvec(v, *constants),
      lambda v: transpose(v, *constants),
      x,
      k,
    )
    keys = jax.random.split(key, len(vectors))
    return _each(method, act, vectors, keys)

  actions = run(probes, key)
  if not method.leave_one_out:
    values = jnp.einsum("slx,sx->ls", actions.images, probes)
    return Forms(values, probes, actions.dual, actions.diagnostics)
  basis = jnp.linalg.qr(actions.images[:, -1].T)[0].T
  more = run(basis, key)
  join = lambda a, b: jnp.concatenate([a, b])
  vectors = join(probes, basis)
  actions = jax.tree.map(join, actions, more)
  values = jnp.einsum("yd,xld->lyx", vectors, actions.images)
  return Forms(values, vectors, actions.dual, actions.diagnostics)


@_forms.defjvp
def _forms_jvp(method, matvec, primals, tangents):
  constants, probes, key = primals
  forms = _forms(method, matvec, constants, probes, key)
  products = lambda *c: _each(method, lambda x: matvec(x, *c), forms.vectors)
  images_dot = jax.jvp(products, tuple(constants), tuple(tangents[0]))[1]
  pairing = "yd,xd->yx" if method.leave_one_out else "xd,xd->x"
  values_dot = jnp.einsum(pairing, forms.duals, images_dot)
  duals_dot = _duals_dot(method, matvec, forms, constants, tangents[0], key)
  return forms, Forms(
    values=jnp.broadcast_to(values_dot, forms.values.shape),
    vectors=jnp.zeros_like(forms.vectors),
    duals=duals_dot,
    diagnostics=jax.tree.map(_zero_tangent, forms.diagnostics),
  )


def _duals_dot(method, matvec, forms, constants, constants_dot, key):
  """d A^-T x = -A^-T dA^T A^-T x, for derivatives beyond the first."""
  transpose = transposed(matvec, _row(forms.vectors))
  forward = lambda v: matvec(v, *constants)
  backward = lambda v: transpose(v, *constants)
  # Not the randomness of the duals themselves: products must be unbiased.
  keys = jax.random.split(jax.random.fold_in(key, 1), len(forms.duals))

  def dual_dot(dual, key):
    turned = lambda *c: transpose(dual, *c)
    change = jax.jvp(turned, tuple(constants), tuple(constants_dot))[1]
    return -lax.custom_linear_solve(
      backward,
      change,
      solve=lambda _, b: method.action(forward, backward, b, key).dual,
      transpose_solve=lambda _, b: (
        method.action(backward, forward, b, key).dual
      ),
    )

  return _each(method, dual_dot, forms.duals, keys)


def _each(method: Method, function: Callable, *rows: Any) -> Any:
  """The function of each row, `batch_size` of them at a time."""
  if method.batch_size is None:
    return jax.vmap(function)(*rows)
  return lax.map(lambda row: function(*row), rows, batch_size=method.batch_size)


def transposed(matvec: Callable, example: jax.ShapeDtypeStruct) -> Callable:
  """v, *constants -> A^T v, from v, *constants -> A v."""

  def transpose(vector: jax.Array, *constants: Any) -> jax.Array:
    turned = jax.linear_transpose(lambda v: matvec(v, *constants), example)
    return turned(vector)[0]

  return transpose


def _row(vectors: jax.Array) -> jax.ShapeDtypeStruct:
  return jax.ShapeDtypeStruct(vectors.shape[1:], vectors.dtype)


def _zero_tangent(value: jax.Array) -> Any:
  if jnp.issubdtype(value.dtype, jnp.floating):
    return jnp.zeros_like(value)
  return jnp.zeros(value.shape, jax.dtypes.float0)
