"""Calls that bring their own log-determinant: see `custom_inverse`."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.extend.core import jaxpr_as_fun
from jax.flatten_util import ravel_pytree

from revmom.jacobian.log_determinants.blocks import Part
from revmom.jacobian.log_determinants.determinant import Determinant, exact
from revmom.jacobian.log_determinants.loops import find_places, interleaving
from revmom.jacobian.program.control_flow import called
from revmom.jacobian.program.declarations import Batch, Mark, batch_of, mark_of
from revmom.jacobian.program.equations import (
  Environment,
  Equation,
  Variable,
  read,
)
from revmom.jacobian.program.probes import probes

# Larger ones are not verified by a dense Jacobian.
LARGEST_DENSE = 64


class Declared(NamedTuple):
  """A marked call, whose log-determinant its author gives."""

  part: Part
  mark: Mark
  batch: Batch
  sign: int

  def summary(self) -> tuple[str, int, int]:
    count = int(np.prod(self.batch.shape))
    return "declared", count, self.part.size // max(1, count)

  def evaluate(self, environment: Environment) -> Determinant:
    (equation,) = self.part.equations
    values = [read(environment, operand) for operand in equation.operands]
    rule = lambda own: _rule(self.mark, own)
    axes = [0 if m else None for m in (*self.batch.x, *self.batch.arguments)]
    for _ in self.batch.shape:
      rule = jax.vmap(rule, in_axes=(axes,))
    value, sign = rule(values[-len(axes) :])
    return exact(jnp.sum(value), jnp.prod(sign) * self.sign, self.part.dtype)


def declared_block(part: Part) -> Declared | None:
  """The block of a marked call of all its first argument, to all its result.

  Raises:
    ValueError: the log-determinant is wrong at random numbers.
  """
  (equation,) = part.equations
  mark = mark_of(equation)
  if mark is None or mark.log_det is None:
    return None
  batch = batch_of(mark, equation)
  assert batch is not None  # or `mark_of` would have given none
  places = find_places(part)
  start = len(equation.operands) - len(batch.x) - len(batch.arguments)
  leaves = jax.tree.leaves(mark.x)
  columns = [k for k, leaf in enumerate(leaves) if _is_float(leaf)]
  rows = [k for k, v in enumerate(equation.outputs) if _is_float(v)]
  if places is None or places.rows != rows:
    return None
  if places.columns != [start + k for k in columns]:
    return None
  if batch.shape and not all(batch.x[k] for k in columns):
    return None
  _verify(equation, mark, batch)
  count = int(np.prod(batch.shape))
  images = jax.tree.leaves(mark.image)
  sign = interleaving([leaves[k].size for k in columns], count)
  sign *= interleaving([images[k].size for k in rows], count)
  return Declared(part, mark, batch, places.sign * sign)


def _is_float(leaf: Any) -> bool:
  return jnp.issubdtype(leaf.dtype, jnp.inexact)


def _rule(mark: Mark, values: Sequence[Any]) -> tuple[jax.Array, jax.Array]:
  """log|det| and sign for the leaves of the arguments."""
  structure = jax.tree.structure((mark.x, mark.arguments))
  x, arguments = jax.tree.unflatten(structure, values)
  assert mark.log_det is not None
  value, sign = mark.log_det(x, *arguments)
  return jnp.asarray(value), jnp.asarray(sign)


def _verify(equation: Equation, mark: Mark, batch: Batch) -> None:
  """Raises ValueError unless the log-determinant is that of a dense Jacobian.

  At random numbers, and for the first of a mapped call's examples.
  """
  leaves = jax.tree.leaves(mark.x)
  real = [k for k, leaf in enumerate(leaves) if _is_float(leaf)]
  if sum(leaves[k].size for k in real) > LARGEST_DENSE:
    return
  function = jaxpr_as_fun(called(equation))
  start = len(equation.operands) - len(batch.x) - len(batch.arguments)
  first = (0,) * len(batch.shape)
  mapped = [*batch.x, *batch.arguments]

  def image(flat: jax.Array, unravel: Any, values: list[Any]) -> jax.Array:
    values = list(values)
    for k, leaf in zip(real, unravel(flat), strict=True):
      values[start + k] = values[start + k].at[first].set(leaf)
    outputs = [y[first] for y in function(*values) if _is_float(y)]
    return ravel_pytree(outputs)[0]

  operands = [
    jax.ShapeDtypeStruct(v.shape, v.dtype) if isinstance(v, Variable) else v
    for v in equation.operands
  ]
  with jax.ensure_compile_time_eval():
    for _, values in probes((), operands, ()):
      values = [jnp.asarray(value) for value in values]
      own = [
        value[first] if m else value
        for value, m in zip(values[start:], mapped, strict=True)
      ]
      flat, unravel = ravel_pytree([own[k] for k in real])
      jacobian = jax.jacfwd(image)(flat, unravel, values)
      found = image(flat, unravel, values)
      if np.isfinite(found).all() and np.isfinite(jacobian).all():
        _compare(np.linalg.slogdet(jacobian), _rule(mark, own), flat.dtype)
        return
  raise ValueError(
    "log_det: a function given to custom_inverse was finite for none of the "
    "numbers that were tried, so that its log_det can't be verified; leave "
    "log_det= out, and it is computed."
  )


def _compare(expected: Any, got: tuple[jax.Array, jax.Array], dtype) -> None:
  (sign, value), (own, own_sign) = expected, got
  tolerance = 100 * float(jnp.finfo(dtype).eps) ** 0.5 * (1 + abs(value))
  if np.shape(own) or np.shape(own_sign):
    raise ValueError(
      f"the log_det of custom_inverse gave arrays of shapes {own.shape} and "
      f"{own_sign.shape}; it must give log|det| and the sign, two numbers."
    )
  if not abs(float(own) - value) <= tolerance or float(own_sign) != sign:
    raise ValueError(
      f"the log_det of custom_inverse gives {float(own):.6g} with sign "
      f"{float(own_sign):+g} at random numbers, and a dense Jacobian "
      f"{value:.6g} with sign {sign:+g}."
    )
