"""Small parameter arrays travel as one.

A step is a few small programs for each array of integers, and starting them
takes longer than running them on a bias of ten numbers.  Arrays that obey the
same equations element by element are therefore laid end to end: integers,
numbers and spilled words of all of them are one array each.  Large ones are
given a single axis, too, where that makes their programs faster.
"""

import math
from collections.abc import Hashable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

# Elements.  Packed arrays are copied twice a step, as parameters and as
# gradients; compiling and starting programs for each takes longer than that.
LARGEST = 2**20


class Group(NamedTuple):
  """Arrays that travel as one."""

  members: tuple[int, ...]  # numbers of the arrays
  flat: bool  # laid end to end on one axis; else one array in its own shape


class Packing(NamedTuple):
  """Which arrays travel together, and in what shape."""

  groups: tuple[Group, ...]
  shapes: tuple[tuple[int, ...], ...]  # of the arrays

  def pack(self, arrays: Sequence[jax.Array]) -> list[jax.Array]:
    """The packed arrays, one for each group."""
    return [
      jnp.concatenate([arrays[i].reshape(-1) for i in group.members])
      if group.flat
      else arrays[group.members[0]]
      for group in self.groups
    ]

  def unpack(
    self, packed: Sequence[jax.Array], offsets: Sequence[Any] | None = None
  ) -> list[jax.Array]:
    """Undoes `pack`; further axes may stand before those of the arrays.

    Args:
      packed: one array for each group.
      offsets: of the arrays, see `offsets`, where the compiler can't know them:
        as operands of a branch.  What is cut out at places that it knows is a
        program of its own for each array; else those of one shape share one,
        and a hundred arrays compile several times faster.
    """
    arrays: dict[int, jax.Array] = {}
    for values, group in zip(packed, self.groups, strict=True):
      if offsets is None or not group.flat:
        arrays |= self.split(values, group)
        continue
      for i in group.members:
        shape = self.shapes[i]
        piece = lax.dynamic_slice_in_dim(
          values, offsets[i], math.prod(shape), values.ndim - 1
        )
        arrays[i] = piece.reshape(*values.shape[:-1], *shape)
    return [arrays[i] for i in range(len(self.shapes))]

  @property
  def offsets(self) -> list[np.ndarray]:
    """Where each array starts in the packed one, int32 []."""
    found: dict[int, np.ndarray] = {}
    for group in self.groups:
      start = 0
      for i in group.members:
        found[i] = np.asarray(start, np.int32)
        start += math.prod(self.shapes[i])
    return [found[i] for i in range(len(self.shapes))]

  def split(self, values: jax.Array, group: Group) -> dict[int, jax.Array]:
    """Number of an array -> its part of a packed one."""
    if not group.flat:
      return {group.members[0]: values}
    sizes = [math.prod(self.shapes[i]) for i in group.members]
    pieces = lax.split(values, sizes, axis=values.ndim - 1)
    return {
      i: piece.reshape(*values.shape[:-1], *self.shapes[i])
      for i, piece in zip(group.members, pieces, strict=True)
    }

  def each(self, values: Sequence[Any]) -> list[Any]:
    """One value for each array, from those of the packed arrays."""
    found = {
      i: value
      for value, group in zip(values, self.groups, strict=True)
      for i in group.members
    }
    return [found[i] for i in range(len(self.shapes))]

  def first(self, values: Sequence[Any]) -> list[Any]:
    """One value for each packed array: that of the first array in it."""
    return [values[group.members[0]] for group in self.groups]


def make(arrays: Sequence[Any], kinds: Sequence[Hashable]) -> Packing:
  """Packs the small ones among arrays of one kind.

  Args:
    arrays: or their shapes.
    kinds: what arrays that are packed together agree in; None keeps its shape.

  >>> shapes = [(3, 2), (), (2000, 1000), (5,)]
  >>> packing = make([np.zeros(shape) for shape in shapes], ["any"] * 4)
  >>> [group.members for group in packing.groups]
  [(0, 1, 3), (2,)]
  """
  groups: dict[Hashable, Group] = {}
  # A program for a CPU works through the last axis by vectors, and what is left
  # at the end of each row one by one; so let there be one row.
  on_cpu = jax.default_backend() == "cpu"
  for i, (array, kind) in enumerate(zip(arrays, kinds, strict=True)):
    rigid = kind is None or _may_be_split(array)
    alone = rigid or np.size(array) > LARGEST
    key = (i,) if alone else ("packed", kind)
    group = groups.get(key, Group((), not rigid and (on_cpu or not alone)))
    groups[key] = group._replace(members=(*group.members, i))
  shapes = tuple(np.shape(array) for array in arrays)
  return Packing(tuple(groups.values()), shapes)


def _may_be_split(array: Any) -> bool:
  """Whether an array may be spread over devices.

  Packed with others it would be spread in another way, forward and back maybe
  not alike, and gradients would not be computed from the same parts again.
  Inside `jit` nothing tells how an array is spread.
  """
  if isinstance(array, jax.core.Tracer):
    return jax.device_count() > 1
  sharding = getattr(array, "sharding", None)
  return sharding is not None and len(sharding.device_set) > 1
