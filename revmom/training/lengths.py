"""What batches are, and how many there are of them."""

from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from revmom.optimizers.reversible import ReversibleOptimizer
from revmom.optimizers.state import State

_STACK = (
  "A list of batches is stacked by jax.tree.map(lambda *a: jnp.stack(a), "
  "*batches); what yields one batch after the other, such as a generator or a "
  "data loader, is for a revmom.Stepper."
)


def check_arrays(name: str, tree: Any) -> None:
  """Raises ValueError for a leaf that is no array of numbers."""
  for path, leaf in jax.tree.leaves_with_path(
    tree, is_leaf=lambda node: isinstance(node, Iterator)
  ):
    place = f"{name}{jax.tree_util.keystr(path)}"
    if isinstance(leaf, str | bytes):
      kind = f"the string {leaf!r}"
    elif isinstance(leaf, np.ndarray) and leaf.dtype.kind in "OSU":
      kind = f"an array of {leaf.dtype}"
    else:
      continue
    raise ValueError(
      f"{place} is {kind}; a loss takes arrays of numbers.  Leave it out, "
      "give numbers in its place, or let the loss close over it."
    )


def lengths(batches: Any) -> dict[str, int]:
  """The leading axis of every array of batches; none of a function's."""
  if callable(batches):
    return {}
  check_arrays("batches", batches)
  known = {}
  for path, leaf in jax.tree.leaves_with_path(
    batches, is_leaf=lambda node: isinstance(node, Iterator)
  ):
    name = f"batches{jax.tree_util.keystr(path)}"
    if not hasattr(leaf, "dtype") and not np.isscalar(leaf):
      raise ValueError(f"{name} is a {type(leaf).__name__}.  {_STACK}")
    if jnp.ndim(leaf) == 0:
      raise ValueError(
        f"{name} is a scalar; every array of the batches needs a leading "
        f"step axis.  {_STACK}"
      )
    known[name] = jnp.shape(leaf)[0]
  return known


def run_length(
  optimizer: ReversibleOptimizer,
  batches: Any,
  num_steps: int | None,
  past: State | None = None,
) -> int:
  """The length of a run, on which all its inputs must agree.

  Args:
    past: where it goes on from: then hyperparameters may have values for more
      steps, which are left out.
  """
  known = lengths(batches)
  if num_steps is not None:
    if num_steps < 0:
      raise ValueError(f"num_steps={num_steps}; a run has zero steps or more.")
    known["num_steps"] = num_steps
  scheduled = optimizer.num_steps()
  if scheduled is not None:
    left = scheduled if past is None else scheduled - past.steps
    if past is None or not known or left < min(known.values()):
      known[
        "the optimizer's hyperparameters"
        if past is None
        else (f"the optimizer's hyperparameters after {past.steps} steps")
      ] = left
  if not known:
    raise ValueError(
      "batches is a function of the step, so pass num_steps, the length of "
      "the run."
    )
  if len(set(known.values())) > 1 or min(known.values()) < 0:
    raise ValueError(
      "the lengths of the run disagree: "
      + ", ".join(f"{name}: {length}" for name, length in known.items())
      + (f".  {_STACK}" if isinstance(batches, list) else "")
    )
  return next(iter(known.values()))
