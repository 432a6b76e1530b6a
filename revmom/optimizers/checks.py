"""What users may get wrong about optimizers, and what to do then."""

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from revmom.exact.tracing import concrete
from revmom.optimizers.dynamics import Dynamics
from revmom.optimizers.processes import check_copies
from revmom.optimizers.slot import PARAMS
from revmom.steps.leaf import Leaf, Role

_OTHER = "the state was made by another optimizer"


def check_slots(dynamics: Dynamics, leaves: Sequence[Leaf]) -> None:
  """Raises ValueError unless leaves are those of such an optimizer.

  What an optimizer keeps can always be compared; see also `check_factors`.
  """
  if len(leaves) != len(dynamics.part):
    raise ValueError(
      f"{_OTHER}: it has {len(leaves)} arrays of parameters, but "
      f"the optimizer has {len(dynamics.part)}."
    )
  for leaf, part in zip(leaves, dynamics.part, strict=True):
    kept = sorted(set(leaf.integers) - {PARAMS})
    keeps = sorted(set(dynamics.equations[part].names) - {PARAMS})
    if kept != keeps:
      raise ValueError(
        f"{_OTHER}: it keeps {kept}, but the optimizer keeps {keeps}."
      )
    decays = "weight_decay" in dynamics.hyperparameters[part]
    if decays != (PARAMS in leaf.buffers):
      raise ValueError(
        f"{_OTHER}: its weight_decay was "
        + (
          "None, but the optimizer has one."
          if decays
          else "a number, but the optimizer's is None."
        )
      )
    integer = leaf.integers[PARAMS].dtype
    if integer != dynamics.integer:
      raise ValueError(
        f"{_OTHER}: its integers are {integer}, but those of the optimizer are "
        f"{dynamics.integer}."
      )


def check_factors(
  dynamics: Dynamics, schedules: list, step: Any = None
) -> None:
  """Raises ValueError if what is known of the factors says another optimizer.

  Args:
    schedules: of a state.
    step: the one to look at; by default all.
  """
  for part, own in enumerate(schedules):
    for role, forgetting in dynamics.factors(part).items():
      then = own[role]
      arrays = map(concrete, (then.before, then.after, forgetting))
      known = [a.astype(np.float64) for a in arrays if a is not None]
      at = 0 if step is None else concrete(step)
      if at is None or len(known) < 3:
        continue
      before, after, now = known
      if before.ndim != now.ndim:  # a batch of runs
        continue
      now = now[: len(before)]  # the run may go on
      if step is not None:
        before, after, now = (a[at : at + 1] for a in (before, after, now))
      if before.shape != now.shape:
        raise ValueError(
          f"{_OTHER}: it has {before.shape[1]} factors of {role!r} for each "
          f"step, but the optimizer has {now.shape[1]}."
        )
      different = np.abs(before / after - (1 - now)) > 2.0**-20
      if np.any(different):
        row = tuple(np.argwhere(different)[0])
        hint = " (1 - learning_rate * weight_decay)" if role == PARAMS else ""
        raise ValueError(
          f"{_OTHER}: it multiplied {role!r}{hint} by "
          f"{before[row] / after[row]:.7g} in step {row[0] + at}, but the "
          f"optimizer by {1 - now[row]:.7g}."
        )


def check_params(role: Role, params: Any) -> None:
  """Raises ValueError for parameters that can't live on the grid of a role."""
  for path, leaf in jax.tree.leaves_with_path(params):
    name = jax.tree_util.keystr(path) or "params"
    if not isinstance(leaf, float | int) and not hasattr(leaf, "dtype"):
      raise ValueError(
        f"the parameter {name} is a {type(leaf).__name__}, which is no array;"
        " train the arrays of a model alone, such as Equinox's partition "
        "gives them, and let the loss put them together with the rest."
      )
    if not jnp.issubdtype(jnp.result_type(leaf), jnp.floating):
      raise ValueError(
        f"the parameter array {name} is {jnp.result_type(leaf)}; parameters "
        "must be floating point (pass anything else as an argument of the "
        "loss)."
      )
    magnitude = _largest(leaf)
    if magnitude is not None and not magnitude <= role.largest:
      raise ValueError(
        f"the parameter array {name} holds a magnitude of {magnitude}, but "
        f"{role.bits} fraction bits reach only {role.largest:g}; pass "
        f'grid=revmom.Grid({{"{PARAMS}": bits}}) with fewer.'
      )
  check_copies(params)


def _largest(array: Any) -> float | None:
  """The largest magnitude, known to all processes; None while it is traced."""
  known = concrete(array)
  if known is not None:
    return float(np.max(np.abs(known.astype(np.float64)), initial=0))
  if isinstance(array, jax.core.Tracer):
    return None
  return float(jnp.max(jnp.abs(array)))


def check_like(name: str, tree: Any, params: Any) -> None:
  """Raises ValueError unless a tree is shaped like the parameters."""
  expected: Any = jax.tree.structure(params)
  got: Any = jax.tree.structure(tree)
  if expected != got:
    raise ValueError(
      f"the {name} are {got}, but the parameters are {expected}; return one "
      "array for every parameter array."
    )
  for (path, leaf), other in zip(
    jax.tree.leaves_with_path(params), jax.tree.leaves(tree), strict=True
  ):
    if jnp.shape(leaf) != jnp.shape(other):
      raise ValueError(
        f"the {name} of {jax.tree_util.keystr(path)} have shape "
        f"{jnp.shape(other)}, but the parameters have {jnp.shape(leaf)}."
      )
