"""Determinants of linear equations on whole arrays, of any size."""

from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np

from revmom.jacobian.log_determinants.blocks import Part
from revmom.jacobian.log_determinants.cuts import permutation_sign
from revmom.jacobian.log_determinants.determinant import (
  Determinant,
  exact,
  of_matrices,
)
from revmom.jacobian.program.contractions import dot_order
from revmom.jacobian.program.equations import Environment, read


class MatrixProduct(NamedTuple):
  """An array times a square matrix that does not vary, or a batch of them."""

  part: Part
  matrix: int  # which operand
  copies: int  # how many vectors each matrix is multiplied with
  sign: int  # of the order of axes

  def summary(self) -> tuple[str, int, int]:
    *_, size = self._order().sizes
    return "dot_general", self.part.size // size, size

  def _order(self) -> Any:
    (equation,) = self.part.equations
    contracting, batch = equation.params["dimension_numbers"]
    shape = np.shape(equation.operands[self.matrix])
    return dot_order(shape, contracting[self.matrix], batch[self.matrix])

  def evaluate(self, environment: Environment) -> Determinant:
    (equation,) = self.part.equations
    matrix = read(environment, equation.operands[self.matrix])
    axes, sizes = self._order()
    batch = jnp.transpose(matrix, axes).reshape(sizes).astype(self.part.dtype)
    factor = of_matrices(batch)
    sign = factor.sign**self.copies * self.sign
    return factor._replace(
      value=factor.value * self.copies,
      sign=sign,
      bias_bound=factor.bias_bound * self.copies,
    )


def matrix_product(part: Part) -> MatrixProduct | None:
  """None where the matrix varies or is not square."""
  (equation,) = part.equations
  varies = [operand is part.columns[0] for operand in equation.operands]
  if all(varies):
    return None
  own = varies.index(True)
  contracting, batch = equation.params["dimension_numbers"]
  axes, (groups, copies, size) = dot_order(
    part.columns[0].shape, contracting[own], batch[own]
  )
  other = np.shape(equation.operands[1 - own])
  if dot_order(other, contracting[1 - own], batch[1 - own]).sizes[1] != size:
    return None
  # Rows and columns as [batch, copies, size].
  numbers = np.arange(part.size)
  columns = numbers.reshape(part.columns[0].shape).transpose(axes).ravel()
  if own == 0:
    rows = numbers
  else:
    rows = numbers.reshape(groups, size, copies).transpose(0, 2, 1).ravel()
  sign = permutation_sign(columns) * permutation_sign(rows)
  return MatrixProduct(part, 1 - own, copies, sign)


class TriangularSolve(NamedTuple):
  """Solutions of equations with a triangular matrix that does not vary."""

  part: Part

  def summary(self) -> tuple[str, int, int]:
    return "triangular_solve", self.part.size, 1

  def evaluate(self, environment: Environment) -> Determinant:
    (equation,) = self.part.equations
    matrix = read(environment, equation.operands[0])
    diagonal = jnp.diagonal(matrix, axis1=-2, axis2=-1).astype(self.part.dtype)
    if equation.params["unit_diagonal"]:
      diagonal = jnp.ones_like(diagonal)
    copies = self.part.size // diagonal.size
    value = -copies * jnp.sum(jnp.log(jnp.abs(diagonal)))
    return exact(value, jnp.prod(jnp.sign(diagonal)) ** copies, self.part.dtype)


def triangular_solve(part: Part) -> TriangularSolve | None:
  """None where the matrix varies."""
  (equation,) = part.equations
  varies = equation.operands[0] is part.columns[0]
  return None if varies else TriangularSolve(part)


class UnitTriangular(NamedTuple):
  """A map with a triangular Jacobian and ones on the diagonal."""

  part: Part

  def summary(self) -> tuple[str, int, int]:
    return self.part.equations[0].name, self.part.size, 1

  def evaluate(self, environment: Environment) -> Determinant:
    return exact(0.0, 1.0, self.part.dtype)
