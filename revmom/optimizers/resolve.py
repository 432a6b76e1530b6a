"""From what a user chose to the dynamics of one run."""

from typing import Any

import jax
import jax.numpy as jnp

from revmom.optimizers import hyperparameters
from revmom.optimizers import packing as packings
from revmom.optimizers.dynamics import Dynamics
from revmom.optimizers.gradients import compute_dtype
from revmom.optimizers.packing import Packing


def resolve(
  optimizer: Any, params: Any, steps: int, packing: Packing | None
) -> Dynamics:
  """The dynamics of a run; hyperparameters differentiate through it."""
  parts, shared = optimizer.parts(params)
  hypers = [part.hyperparameters() for part, _ in parts]
  equations = [
    part.replace(**dict.fromkeys(own))
    for (part, _), own in zip(parts, hypers, strict=True)
  ]
  with jax.ensure_compile_time_eval():  # what is known stays known
    values = tuple(
      {
        name: hyperparameters.per_leaf(name, value, params, steps)
        for name, value in own.items()
      }
      for own in [*hypers, shared]
    )
  part_of = [0] * len(jax.tree.leaves(params))
  for number, (_, leaves) in enumerate(parts):
    for leaf in leaves:
      part_of[leaf] = number
  if packing is None:
    packing = _packing(params, equations, values, part_of)
  dtypes = [compute_dtype(jnp.result_type(a)) for a in jax.tree.leaves(params)]
  return Dynamics(
    values,
    tuple(equations),
    tuple(packing.first(part_of)),
    tuple(packing.first(dtypes)),
    steps,
    packing,
  )


def _packing(
  params: Any, equations: list, values: tuple, part: list
) -> Packing:
  """Of arrays whose elements all obey the same equations."""
  uniform = all(
    hyperparameters.is_uniform(value)
    for own in values
    for value in own.values()
  )
  arrays = jax.tree.leaves(params)
  kinds = [
    (number, compute_dtype(jnp.result_type(array)))
    if uniform and equations[number].elementwise
    else None
    for array, number in zip(arrays, part, strict=True)
  ]
  return packings.make(arrays, kinds)
