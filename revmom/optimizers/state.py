"""The state of a run, and what can be seen of it."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

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
  names = [
    jax.tree_util.keystr(path) or "params"
    for path, _ in jax.tree.leaves_with_path(state.like_params())
  ]
  for leaf, group, part in zip(
    state.leaves, state.packing.groups, dynamics.part, strict=True
  ):
    equations = dynamics.equations[part]
    flags = {
      name: state.packing.split(fixed_point.has_overflowed(integers), group)
      for name, integers in leaf.integers.items()
    }
    for i in group.members:
      own = {role: np.asarray(flag[i]) for role, flag in flags.items()}
      if any(flag.any() for flag in own.values()):
        raise ValueError(_overflow_message(equations, names[i], own, state))


def _overflow_message(equations, name, flags, state) -> str:
  outside = np.any(list(flags.values()), axis=0)
  guilty = [
    f"{role.name} (fraction bits {role.bits}, so at most {role.largest:g})"
    for role in equations.roles
    if flags[role.name].any()
  ]
  return (
    f"{outside.sum()} of {outside.size} elements of the parameter array "
    f"{name}, shape {outside.shape}, left the grid of {' and '.join(guilty)} "
    "within the run: a value or gradient was NaN or too large, more than "
    f"the {state.steps} steps of `init` were taken, more were undone than "
    "taken, or the factors were smaller than the floors "
    f"{equations.floors}.  Lower the learning rate, clip the gradients "
    "(revmom.clipped), give a role fewer fraction bits "
    "(grid=revmom.Grid({role: bits})), or set num_steps or the grid's floors."
  )
