"""One step of a `Stepper`, there and back: functions of its state."""

from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from revmom.exact.pytree import Pytree, static
from revmom.exact.residue import Margin
from revmom.optimizers.reversible import ReversibleOptimizer
from revmom.steps.checksum import checksum
from revmom.training import reverse
from revmom.training import run as runs
from revmom.training.model import Model, Outputs, is_float
from revmom.training.problem import Data, pose
from revmom.training.rounding import Keeping, Restoring, narrowest
from revmom.training.stepper_state import StepperState, is_proven


class Cotangents(Pytree):
  """The adjoint of what came after a step: see `Stepper.gradients`."""

  leaves: list[Any]
  model: list[Any]  # None for what is no float
  hyperparameters: tuple[dict[str, tuple], ...]
  args: list[Any]  # alike
  count: jax.Array  # int32 []: the step that they are of
  structure: Any = static()  # of args


def _consumed(
  optimizer: ReversibleOptimizer, state: StepperState, gradients: Any
) -> list[jax.Array]:
  dynamics = optimizer.resolve_for(state)
  return optimizer.gradients(dynamics, state, lambda _: gradients)


def forward(
  optimizer: ReversibleOptimizer,
  state: StepperState,
  gradients: Any,
  model: list,
) -> StepperState:
  """One step, with the gradients of the loss and the model's new state."""
  step, every = state.count, state.checksum_every
  consumed = _consumed(optimizer, state, gradients)
  rounding = Keeping(optimizer.resolve_for(state), *state.rounding)
  consumed = rounding.gradients(consumed)
  put = lambda all_, own: all_.at[step].set(own)
  after = optimizer.advance(state, consumed, rounding.increment)
  row = (step + 1) // every
  checked = lax.cond(
    (step + 1) % every == 0,
    lambda: checksum(after.leaves),
    lambda: state.checksums[row],
  )
  return state.replace(
    count=after.count,
    leaves=after.leaves,
    checksums=state.checksums.at[row].set(checked),
    residues=jax.tree.map(put, state.residues, rounding.kept),
    model=model,
    model_states=list(map(put, state.model_states, state.model)),
  )


def at(optimizer: ReversibleOptimizer, state: StepperState) -> tuple[Any, list]:
  """Where the loss of the next step is computed: parameters, model's state."""
  views = optimizer.resolve_for(state).views(state.leaves)
  return state.as_params(views), state.model


def undo_update(
  optimizer: ReversibleOptimizer, state: StepperState
) -> tuple[tuple[list, Margin | None], list, tuple[Any, list]]:
  """The first half of the way back.

  What it reads of the words is taken out, so that the program of the second
  half only writes them: one that did both would copy them first.

  Returns:
    The leaves half way, with one word for each element, and the margin of
    residues there; those words; and `at` before the last step.
  """
  rounding = _restoring(optimizer, state, state.count - 1)
  between = optimizer.undo_update(state, rounding.increment)
  words = optimizer.resolve_for(state).words_of(
    state.leaves, between.count, state.schedules
  )
  model = [leaf[between.count] for leaf in state.model_states]
  own = state.replace(leaves=between.leaves, model=model)
  leaves = runs.put_words(between.leaves, words)
  return (leaves, rounding.margin), words, at(optimizer, own)


def _restoring(
  optimizer: ReversibleOptimizer, state: StepperState, step: Any
) -> Restoring:
  dynamics = optimizer.resolve_for(state)
  return Restoring(dynamics, *state.rounding, state.residues, step)


def undo_increments(
  optimizer: ReversibleOptimizer,
  state: StepperState,
  between: tuple[list, Margin | None],
  model: list,
  gradients: Any,
) -> StepperState:
  """The rest of the way, and whether what was there is found.

  Args:
    state: after the step.
    between: what `undo_update` found.
    model: its state before the step.
    gradients: of the loss there.
  """
  step = state.count - 1
  leaves, margin = between
  margin = narrowest(state.margin, margin, state.diverged_at)
  own = state.replace(
    count=step,
    leaves=leaves,
    schedules=runs.rebased(state.schedules, step),
    model=model,
  )
  consumed = _consumed(optimizer, own, gradients)
  rounding = _restoring(optimizer, state, step)
  consumed = rounding.gradients(consumed)
  before = optimizer.undo_increments(own, consumed, rounding.increment)
  wrong = ~is_proven(before.leaves, step, state)
  own = own.replace(
    leaves=state.leaves,
    schedules=state.schedules,
    margin=narrowest(margin, rounding.margin, state.diverged_at),
  )
  return _verified(optimizer, own, before.leaves, wrong)


def _verified(
  optimizer: ReversibleOptimizer,
  state: StepperState,
  leaves: list,
  wrong: jax.Array,
) -> StepperState:
  """The state with other leaves, off their grid if they are wrong.

  It keeps its words, less those of the step that was undone.
  """
  dynamics = optimizer.resolve_for(state)
  leaves = runs.put_words(leaves, runs.words_of(state.leaves))
  leaves = dynamics.erase(leaves, state.count, state.schedules)
  first = wrong & (state.diverged_at < 0)
  return state.replace(
    leaves=dynamics.checked(leaves, ~wrong),
    diverged_at=jnp.where(first, state.count, state.diverged_at),
  )


def first_cotangents(
  optimizer: ReversibleOptimizer,
  state: StepperState,
  params_bar: Any,
  model_bar: list | None,
  args: tuple,
) -> Cotangents:
  """Those of a function of the parameters and the model's state."""
  dynamics = optimizer.resolve_for(state)
  structure: Any
  arrays, structure = jax.tree.flatten(args)
  zero = lambda a: jnp.zeros_like(a) if is_float(a) else None
  leaves = []
  for i, bar in enumerate(dynamics.pack(jax.tree.leaves(params_bar))):
    own = {
      name: jnp.zeros_like(integers, dynamics.dtypes[i])
      for name, integers in state.leaves[i].integers.items()
    }
    leaves.append(own | dynamics.bars_of(bar.astype(dynamics.dtypes[i])))
  model = [zero(leaf) for leaf in state.model]
  if model_bar is not None:
    model = [
      bar if is_float(leaf) else None
      for bar, leaf in zip(model_bar, state.model, strict=True)
    ]
  return Cotangents(
    leaves=leaves,
    model=model,
    hyperparameters=jax.tree.map(jnp.zeros_like, dynamics.hyperparameters),
    args=list(map(zero, arrays)),
    count=jnp.copy(state.count),
    structure=structure,
  )


def backward(
  optimizer: ReversibleOptimizer,
  model: Model,
  state: StepperState,
  bars: Cotangents,
  words: list,
  batch: Any,
  args: tuple,
  outputs: Outputs,
  gradients: Any,
  loss_bar: jax.Array | None,
  wants_batch: bool,
) -> tuple[StepperState, Cotangents, Any]:
  """The last step undone, and its adjoint; the step of `train`'s reverse pass.

  Args:
    words: of the step, see `undo_update`.
    outputs: of the loss before the step.
    gradients: likewise.
    loss_bar: the cotangent of that loss.
    wants_batch: whether the cotangents of the batch are wanted.

  Returns:
    State, cotangents and those of the batch, None where there are none.
  """
  step, every = state.count - 1, state.checksum_every
  one = lambda tree: jax.tree.map(lambda a: jnp.asarray(a)[None], tree)
  now = lambda tree: jax.tree.map(lambda a: a[step][None], tree)
  problem, data = pose(
    model,
    state.like_params(),
    one(batch),
    args,
    every,
    "auto",
    optimizer,
    state.packing,
  )
  dynamics = optimizer.resolve_for(state)
  packed = dynamics.pack(jax.tree.leaves(gradients))
  packed = [g.astype(d) for g, d in zip(packed, dynamics.dtypes, strict=True)]
  problem = problem._replace(
    gradient=lambda *_: (outputs, packed),
    residue_bits=state.residue_bits,
    start=step,
  )
  constants = [None] * (len(data.shared) - len(bars.args))
  stacked = [
    jnp.zeros_like(array) if wants_batch and is_float(array) else None
    for array in data.stacked
  ]
  adjoint = reverse.Adjoint(
    bars.leaves,
    bars.model,
    bars.hyperparameters,
    Data([*bars.args, *constants], stacked),
  )
  reference = runs.Reference(
    None if loss_bar is None else loss_bar[None],
    [None] * len(problem.outputs.aux),
    state.checksums[step // every][None],
    now(state.residues),
    now(state.model_states),
    step,
  )
  spills = dynamics.spills()._replace(schedules=state.schedules)
  back = reverse.undo(
    problem,
    runs.Inputs(dynamics, spills, data),
    reverse.Backward(
      runs.put_words(state.leaves, words),
      adjoint,
      state.diverged_at,
      state.margin,
    ),
    step,
    runs.rebased(state.schedules, step),
    reference,
  )
  assert back.adjoint is not None
  ok = (back.diverged_at < 0) & (step >= 0) & (bars.count == state.count)
  # A reversal that failed must not return a plausible number, nor cotangents of
  # another step.
  adjoint = jax.tree.map(lambda bar: jnp.where(ok, bar, jnp.nan), back.adjoint)
  before = state.replace(
    count=step,
    model=[leaf[0] for leaf in reference.states],
    margin=back.margin,
  )
  wrong = (back.diverged_at >= 0) & (state.diverged_at < 0)
  structure: Any = jax.tree.structure(batch)
  own = [None if bar is None else bar[0] for bar in adjoint.data.stacked]
  after = bars.replace(
    leaves=adjoint.leaves,
    model=adjoint.state,
    hyperparameters=adjoint.hyperparameters,
    args=adjoint.data.shared[: len(bars.args)],
    count=step,
  )
  return (
    _verified(optimizer, before, back.leaves, wrong),
    after,
    structure.unflatten(own),
  )
