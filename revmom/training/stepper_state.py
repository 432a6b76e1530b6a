"""The state of a `Stepper`, and what proves that it is what it was."""

from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from revmom.exact import residue
from revmom.exact.pytree import static
from revmom.exact.residue import Bits, Margin
from revmom.optimizers.dynamics import Dynamics
from revmom.optimizers.slot import PARAMS
from revmom.optimizers.state import State
from revmom.steps.checksum import checksum
from revmom.training import receipt as receipts
from revmom.training import reverse
from revmom.training.model import Model
from revmom.training.receipt import Receipt
from revmom.training.rounding import gradient_types, nothing


class StepperState(State):
  """The state of a `Stepper`, with all that going back needs."""

  checksums: jax.Array  # uint32 [1 + steps // checksum_every, 2]
  diverged_at: jax.Array  # int32 []: where going back went wrong, else -1
  residues: list[Any]  # of what each step consumed, if they were asked for
  margin: Margin | None  # the narrowest so far of what was undone with them
  model: list[jax.Array]  # the model's state
  model_states: list[jax.Array]  # the same before each step
  checksum_every: int = static()
  residue_bits: Bits = static()

  @property
  def rounding(self) -> tuple[Bits, tuple]:
    """Bits that are kept and types of gradients."""
    return self.residue_bits, gradient_types(self.packing, self.dtypes)


def begin(
  state: State,
  dynamics: Dynamics,
  model: Model,
  checksum_every: int,
  residue_bits: Bits,
) -> StepperState:
  """The state before the first step."""
  rows = lambda a: jnp.zeros((state.steps, *a.shape), a.dtype)
  sizes = [leaf.integers[PARAMS].size for leaf in state.leaves]
  residues = nothing(dynamics, sizes, residue_bits)
  first = checksum(state.leaves)
  checksums = jnp.zeros((1 + state.steps // checksum_every, 2), first.dtype)
  return StepperState(
    count=state.count,
    leaves=state.leaves,
    schedules=state.schedules,
    steps=state.steps,
    structure=state.structure,
    dtypes=state.dtypes,
    packing=state.packing,
    checksums=checksums.at[0].set(first),
    diverged_at=jnp.full((), -1, jnp.int32),
    residues=jax.tree.map(rows, residues),
    margin=residue.margin() if residue_bits else None,
    # A step may donate them, and they are the user's, too.
    model=jax.tree.map(jnp.array, model.state),
    model_states=[rows(leaf) for leaf in model.state],
    checksum_every=checksum_every,
    residue_bits=residue_bits,
  )


def is_proven(leaves: list, step: Any, state: StepperState) -> jax.Array:
  """Whether integers are those of a step, if they can be compared, bool []."""
  every = state.checksum_every
  return lax.cond(
    step % every == 0,
    lambda: jnp.all(checksum(leaves) == state.checksums[step // every]),
    lambda: jnp.ones((), bool),
  )


def receipt_of(state: StepperState) -> Receipt:
  """Whether all that was undone was undone exactly."""
  ok = is_proven(state.leaves, state.count, state) & (state.diverged_at < 0)
  back = reverse.Backward(state.leaves, None, state.diverged_at, state.margin)
  receipt = receipts.of_part(ok, back, state.leaves)
  # What has diverged was put off its grid for it.
  inside = receipt.in_range | (state.diverged_at >= 0)
  return receipt._replace(in_range=inside)
