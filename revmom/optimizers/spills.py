"""When the buffers of a run spill, and how large they get."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from revmom.exact import capacities
from revmom.exact.capacities import Schedule


class Spills(NamedTuple):
  """The schedules of a run's buffers.

  A list has an entry for each part of the optimizer.
  """

  schedules: list[dict[str, Schedule]]  # role -> [steps, groups]
  bounds: list[dict[str, np.ndarray]]  # role -> largest 1 - rho, alike
  valid: jax.Array  # bool []: no traced factor is beyond its bound
  groups: list[tuple[int, int]]  # leaf -> its part, its column there
  roles: list[int]  # leaf -> how many arrays of integers it has
  integer: Any

  def first(self, steps: int) -> "Spills":
    """Those of the first steps of the run."""
    cut = lambda tree: jax.tree.map(lambda array: array[:steps], tree)
    return self._replace(schedules=cut(self.schedules), bounds=cut(self.bounds))

  def rows(self, length: int) -> list[dict[str, int]]:
    """For each leaf, role -> words an element spills in so many steps."""
    known = {
      group: {
        role: capacities.rows_needed(bound[:, group[1]], self.integer, length)
        for role, bound in self.bounds[group[0]].items()
      }
      for group in set(self.groups)
    }
    return [known[group] for group in self.groups]

  def bytes_per_step(self, sizes: list[int]) -> float:
    """Bytes that arrays of these sizes spill in a step, on average."""
    total = 0.0
    for size, (part, column) in zip(sizes, self.groups, strict=True):
      for bound in self.bounds[part].values():
        bits = -np.log2(1 - bound[:, column])
        total += size * float(np.sum(bits)) / 8 / max(1, len(bits))
    return total

  def state_bytes(self, sizes: list[int]) -> int:
    """Bytes of integers and numbers."""
    arrays = [
      roles + len(self.bounds[part])
      for roles, (part, _) in zip(self.roles, self.groups, strict=True)
    ]
    return jnp.dtype(self.integer).itemsize * int(np.dot(sizes, arrays))
