"""The state of a run, and what can be seen of it."""

from typing import Any

import jax
import jax.numpy as jnp

from revmom.exact import fixed_point
from revmom.exact.capacities import Schedule
from revmom.exact.pytree import Pytree, static
from revmom.optimizers.dynamics import Dynamics
from revmom.optimizers.packing import Packing
from revmom.steps.leaf import Leaf


class State(Pytree):
  """Everything needed to go on with a run, or back to its start."""

  count: jax.Array  # int32 []: steps taken
  leaves: list[Leaf]  # of the parameter arrays, small ones packed
  schedules: list[dict[str, Schedule]]  # of each part; role -> [steps, groups]
  steps: int = static()  # that the buffers can hold
  structure: Any = static()  # of the parameters
  dtypes: tuple = static()
  packing: Packing = static()

  @property
  def witness(self) -> Any:
    """Floats that depend on what the integers depend on, if there are any."""
    return ()

  def like_params(self) -> Any:
    """Shapes and types of the parameters."""
    return self.structure.unflatten(
      [
        jax.ShapeDtypeStruct(shape, dtype)
        for shape, dtype in zip(self.packing.shapes, self.dtypes, strict=True)
      ]
    )

  def as_params(self, views: list[jax.Array]) -> Any:
    """Floats of the leaves as parameters of their own types."""
    return self.structure.unflatten(
      [
        view.astype(dtype)
        for view, dtype in zip(
          self.packing.unpack(views), self.dtypes, strict=True
        )
      ]
    )

  def shown(self, views: list[jax.Array]) -> Any:
    """The same, NaN where a grid was left."""
    return self.as_params(
      [
        jnp.where(leaf.overflowed, jnp.nan, view)
        for leaf, view in zip(self.leaves, views, strict=True)
      ]
    )


def check_in_range(state: State, dynamics: Dynamics) -> None:
  """Raises if any value of a known state has left its grid.

  Raises:
    ValueError: naming the parameter array, its shape and the remedy.
  """
  for leaf, group, part in zip(
    state.leaves, state.packing.groups, dynamics.part, strict=True
  ):
    # Sums are known to all processes, where integers may not be.
    if jnp.any(leaf.overflowed):
      _refuse(state, dynamics.equations[part], leaf, group)


def _refuse(state: State, equations: Any, leaf: Leaf, group: Any) -> None:
  split = lambda flags: state.packing.split(flags, group)
  outside = split(leaf.overflowed)
  flags = {
    name: split(fixed_point.has_overflowed(integers))
    for name, integers in leaf.integers.items()
  }
  names = [
    jax.tree_util.keystr(path) or "params"
    for path, _ in jax.tree.leaves_with_path(state.like_params())
  ]
  first = next(i for i in group.members if jnp.any(outside[i]))
  guilty = [
    f"{role.name} (fraction bits {role.bits}, so at most {role.largest:g})"
    for role in equations.roles
    if jnp.any(flags[role.name][first])
  ]
  raise ValueError(
    f"{jnp.sum(outside[first])} of {outside[first].size} elements of the "
    f"parameter array {names[first]}, shape {outside[first].shape}, left the "
    f"grid of {' and '.join(guilty)} within the run: a value or gradient was "
    f"NaN or too large, more than the {state.steps} steps of `init` were "
    "taken, more were undone than taken, or the factors were smaller than the "
    f"floors {equations.floors}.  Lower the learning rate, clip the gradients "
    "(revmom.clipped), give a role fewer fraction bits "
    "(grid=revmom.Grid({role: bits})), or set num_steps or the grid's floors."
  )
