"""What a step consumes, on grids from which others near it are restored.

That are the gradients, clipped or transformed, and those increments in which
elements of an array meet, such as Muon's update.  All other arithmetic of a
step is of integers, or of single elements behind fences.
"""

from typing import Any

import jax
import jax.numpy as jnp

from revmom.exact import residue
from revmom.exact.residue import Bits, Margin, Residues
from revmom.optimizers.dynamics import Dynamics
from revmom.training.problem import Problem

# Of increments, which round to the grids of roles anyway: an iteration such as
# Newton and Schulz's makes more of rounding than a sum does.
_DIGITS_LESS = 4


class Rounding:
  """Rounds what a step consumes; holds what is kept of it.

  An object serves one step, in the order in which the step asks; without
  residues it changes nothing.
  """

  kept: list[Residues]
  margin: Margin | None  # the narrowest so far; None forward
  increment: Any  # (leaf, role, increment) -> it, rounded; None: as it is

  def __init__(self, problem: Problem, dynamics: Dynamics):
    """Of the gradients that the problem has."""
    self._bits, self._types = problem.residue_bits, problem.gradient_types
    self._dynamics = dynamics
    self.kept, self.margin, self.increment = [], None, None
    if problem.residue_bits:
      self.increment = self._increment

  def gradients(self, gradients: list) -> list:
    """The gradients of all leaves as they are consumed."""
    if not self._bits:
      return gradients
    return [
      self._one(i, gradient, residue.digits_of(dtype, self._bits))
      for i, (gradient, dtype) in enumerate(
        zip(gradients, self._types, strict=True)
      )
    ]

  def _increment(self, leaf: int, role: str, values: jax.Array) -> jax.Array:
    dtype = self._dynamics.dtypes[leaf]
    most = residue.digits_of(dtype, 1) - _DIGITS_LESS
    digits = min(residue.digits_of(dtype, self._bits), most)
    number = len(self._types) + _mixing(self._dynamics).index((leaf, role))
    return self._one(number, values, digits)

  def _one(self, number: int, values: jax.Array, digits: int) -> jax.Array:
    raise NotImplementedError


class Keeping(Rounding):
  """Of a run: residues are kept in the order of `nothing`."""

  def _one(self, number, values, digits):
    rounded, kept = residue.keep(values, self._bits, digits)
    assert number == len(self.kept)
    self.kept.append(kept)
    return rounded


class Restoring(Rounding):
  """Of a way back, from the residues of a run [steps, ...]."""

  def __init__(
    self, problem: Problem, dynamics: Dynamics, residues: list, step: Any
  ):
    """Restores what the run consumed in a step."""
    super().__init__(problem, dynamics)
    self._residues, self._step = residues, step
    if self._bits:
      self.margin = residue.margin()

  def _one(self, number, values, digits):
    kept = jax.tree.map(lambda a: a[self._step], self._residues[number])
    restored, seen = residue.restore(values, kept, self._bits, digits)
    assert self.margin is not None
    seen = seen._replace(step=self._step)
    self.margin = self.margin.nearer(seen)
    return restored


def _mixing(dynamics: Dynamics) -> list[tuple[int, str]]:
  """Leaves and roles in whose increments elements meet."""
  return [
    (i, name)
    for i, part in enumerate(dynamics.part)
    for name in dynamics.equations[part].names
    if dynamics.equations[part].contracts(name)
  ]


def sizes(dynamics: Dynamics, leaves: list[int]) -> list[int]:
  """Of all arrays that residues are kept of, from those of the leaves."""
  return leaves + [leaves[i] for i, _ in _mixing(dynamics)]


def nothing(dynamics: Dynamics, leaves: list[int], bits: Bits) -> list:
  """Zeros in the shape of what a step keeps, by the sizes of the leaves."""
  if not bits:
    return []
  return [residue.nothing(size, bits) for size in sizes(dynamics, leaves)]


def same_tables(dynamics: Dynamics, tables: list[jax.Array]) -> Dynamics:
  """The dynamics of another program, with the numbers that the run had.

  What differs by more than rounding stays: it belongs to another run.
  """
  return dynamics.with_tables(
    [
      jnp.where(_close(own, kept), kept, own)
      for own, kept in zip(dynamics.tables(), tables, strict=True)
    ]
  )


def _close(a: jax.Array, b: jax.Array) -> jax.Array:
  apart = jnp.max(jnp.abs(a - b), initial=0)
  return apart <= 2.0**-18 * jnp.max(jnp.abs(b), initial=0)
