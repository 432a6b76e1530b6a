"""Where a run begins: at parameters, or at the state of another run."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from revmom.exact import residue
from revmom.exact.refusal import refuse_derivative
from revmom.exact.residue import Bits
from revmom.optimizers.checks import check_params
from revmom.optimizers.dynamics import Dynamics
from revmom.optimizers.reversible import NO_DERIVATIVE, ReversibleOptimizer
from revmom.optimizers.slot import PARAMS
from revmom.optimizers.spills import Spills
from revmom.optimizers.state import State
from revmom.training import run as runs
from revmom.training import run_state as run_states
from revmom.training.run_state import RunState


class Begun(NamedTuple):
  """A run before its first step."""

  dynamics: Dynamics
  spills: Spills
  origin: list  # packed parameters, or the leaves of another run
  params: Any  # on the grid
  structure: Any
  dtypes: tuple


def begin(optimizer: ReversibleOptimizer, params: Any, steps: int) -> Begun:
  """A run from parameters."""
  check_params(optimizer.role(PARAMS), params)
  dynamics = optimizer.resolve(params, steps)
  structure: Any
  arrays, structure = jax.tree.flatten(params)
  dtypes = tuple(jnp.asarray(array).dtype for array in arrays)
  snapped = [
    array.astype(dtype)
    for array, dtype in zip(dynamics.snapped(arrays), dtypes, strict=True)
  ]
  return Begun(
    dynamics,
    dynamics.spills(),
    dynamics.pack(arrays),
    structure.unflatten(snapped),
    structure,
    dtypes,
  )


def go_on(
  optimizer: ReversibleOptimizer, past: RunState, steps: int, model_state: list
) -> Begun:
  """A run from the state of another, which is not differentiated."""
  dynamics = optimizer.resolve(past.like_params(), steps, past.packing)
  run_states.check(past, dynamics, model_state)
  message = NO_DERIVATIVE.format("the state of a revmom.train")
  past = refuse_derivative(past, message)
  leaves = runs.bare(past.leaves)
  return Begun(
    dynamics,
    dynamics.spills(past.schedules),
    leaves,
    past.shown(dynamics.views(leaves)),
    past.structure,
    past.dtypes,
  )


def past_of(
  params: Any, checksum_every: int | None, residue_bits: Bits | None
) -> RunState | None:
  """The state that a run goes on from, if it does.

  Raises:
    ValueError: it can't go on from that state, or not with these settings.
  """
  if hasattr(params, "state") and isinstance(params.state, State):
    raise ValueError(
      f"train got a {type(params).__name__} as its parameters; pass its "
      "`state` to go on from there, or its `params` to begin a new run."
    )
  if not isinstance(params, State):
    return None
  if not isinstance(params, RunState):
    raise ValueError(
      "train goes on from the `state` of what revmom.train or revmom.rewind "
      f"returned, not from a {type(params).__name__} of optimizer.init or "
      "as_optax: take its steps by what made it, or pass "
      "optimizer.params(state) to begin a new run."
    )
  for name, given, own in (
    ("checksum_every", checksum_every, params.checksum_every),
    ("residue_bits", residue_bits, params.residue_bits),
  ):
    if given is not None and given != own:
      raise ValueError(
        f"{name}={given}, but the state that the run goes on from has "
        f"{name}={own}; leave it out, or pass that."
      )
  past: RunState = jax.tree.map(jnp.asarray, params)
  return past


def check_numbers(checksum_every: int, residue_bits: Any) -> None:
  """Raises ValueError for what can't be."""
  if checksum_every < 1:
    raise ValueError(
      f"checksum_every={checksum_every}; there must be one step or more "
      "between checksums."
    )
  if type(residue_bits) not in (int, str) or residue_bits not in residue.BITS:
    raise ValueError(
      f"residue_bits={residue_bits!r}; choose one of {residue.BITS}."
    )
