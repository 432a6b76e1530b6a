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
from revmom.optimizers.packing import Packing

# Of increments, which round to the grids of roles anyway: an iteration such as
# Newton and Schulz's makes more of rounding than a sum does.
_DIGITS_LESS = 4


def gradient_types(packing: Packing, dtypes: tuple) -> tuple:
  """Those of the gradients of leaves: of the parameters, the narrowest."""
  return tuple(
    min((dtypes[i] for i in group.members), key=lambda d: jnp.finfo(d).nmant)
    for group in packing.groups
  )


class Rounding:
  """Rounds what a step consumes; holds what is kept of it.

  An object serves one step, in the order in which the step asks; without
  residues it changes nothing.
  """

  kept: list[Residues]
  margin: Margin | None  # the narrowest so far; None forward
  increment: Any  # (leaf, role, increment) -> it, rounded; None: as it is

  def __init__(self, dynamics: Dynamics, bits: Bits, types: tuple):
    """Keeps so many bits, of gradients of these types."""
    self._dynamics, self._bits, self._types = dynamics, bits, types
    self.kept, self.margin, self.increment = [], None, None
    if bits:
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
    self,
    dynamics: Dynamics,
    bits: Bits,
    types: tuple,
    residues: list,
    step: Any,
    start: Any = 0,
  ):
    """Restores what was consumed in a step, of residues from `start` on."""
    super().__init__(dynamics, bits, types)
    self._residues, self._step, self._row = residues, step, step - start
    if bits:
      self.margin = residue.margin()

  def _one(self, number, values, digits):
    kept = jax.tree.map(lambda a: a[self._row], self._residues[number])
    restored, seen = residue.restore(values, kept, self._bits, digits)
    assert self.margin is not None
    seen = seen._replace(step=self._step)
    self.margin = self.margin.nearer(seen)
    return restored


def narrowest(
  so_far: Margin | None, seen: Margin | None, diverged_at: jax.Array
) -> Margin | None:
  """The margin of a way back, until that is lost: then nothing is near."""
  if so_far is None or seen is None:
    return so_far
  return jax.tree.map(
    lambda a, b: jnp.where(diverged_at < 0, a, b), so_far.nearer(seen), so_far
  )


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


def same_tables(dynamics: Dynamics, tables: dict[str, jax.Array]) -> Dynamics:
  """The dynamics of another program, with the numbers that the run had.

  What differs by more than rounding stays: it belongs to another run, or to
  steps that are not undone.
  """
  return dynamics.with_tables(
    {
      name: jnp.where(_close(own, tables[name]), tables[name], own)
      for name, own in dynamics.tables().items()
      if name in tables
    }
  )


def _close(a: jax.Array, b: jax.Array) -> jax.Array:
  return jnp.abs(a - b) <= 2.0**-18 * jnp.max(jnp.abs(a), initial=0)


def joined_tables(
  past: dict[str, jax.Array], own: dict[str, jax.Array], taken: int, steps: int
) -> dict[str, jax.Array]:
  """Of a run that went on.

  Args:
    past: of the first steps.
    own: of all steps, from then on.
    taken: how many the first ones were.
    steps: how many there are.

  Returns:
    Those of all steps; NaN where a number was the same for all in a part.
  """
  joined = {}
  for name, like in (own | past).items():
    nothing = jnp.full(steps, jnp.nan, like.dtype)
    parts = past.get(name, nothing)[:taken], own.get(name, nothing)[taken:]
    joined[name] = jnp.concatenate(parts)
  return joined
