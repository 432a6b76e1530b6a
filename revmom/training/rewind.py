"""A training backward to its start."""

import operator
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from revmom.exact import residue
from revmom.exact.refusal import refuse_derivative
from revmom.exact.tracing import concrete
from revmom.optimizers import hyperparameters
from revmom.optimizers.reversible import (
  NO_DERIVATIVE,
  ReversibleOptimizer,
  check_optimizer,
)
from revmom.steps.checksum import checksum
from revmom.training import receipt as receipts
from revmom.training import reverse
from revmom.training import run as runs
from revmom.training import run_state as run_states
from revmom.training.lengths import lengths
from revmom.training.model import Model
from revmom.training.plans import Plan
from revmom.training.problem import pose
from revmom.training.receipt import Receipt
from revmom.training.rounding import same_tables
from revmom.training.run_state import RunState


class Rewound(NamedTuple):
  """What `rewind` returns."""

  params: Any  # at the step that it went to, on the grid
  state: RunState  # there; `train` goes on from it
  receipt: Receipt
  model_state: Any = None  # there


def rewind(
  loss_fn: Callable[..., jax.Array],
  optimizer: ReversibleOptimizer,
  state: RunState,
  batches: Any,
  *args: Any,
  has_aux: bool = False,
  model_state: Any = None,
  to: int = 0,
) -> Rewound:
  """Runs a training backward to any step, bit for bit, with a receipt.

  The arguments are those of `train`, with the state it returned in the
  parameters' place; `model_state` is any of the same structure, such as
  `run.model_state`.  Reverse as the run went forward: jitted if it was, with
  the same batching, devices and threads.  With residues it may be reversed
  otherwise: `receipt.describe()` says how near that came to what they forgive.

  Args:
    loss_fn: as the run had it.
    optimizer: likewise; only its values at the steps that are undone matter.
    state: of what `train` or `rewind` returned.
    batches: of the whole run, or the last ones of it: those of the steps that
      are undone, and of at most `checksum_every` - 1 before them, down to a
      step with a checksum.
    *args: as the run had them.
    has_aux: likewise.
    model_state: likewise.
    to: the number of steps that stay.  What comes back is the state after so
      many; `train` goes on from it, with other batches if you like.  It is NaN
      where the reversal is not exact.

  Raises:
    ValueError: the state was made in another environment, without residues, or
      the batches don't reach to a checksum.
    RuntimeError: outside of `jit`, if the reversal is not exact, naming the
      steps where it diverged.  Under `jit` ask `receipt.ok`.

  >>> import revmom
  >>> loss_fn = lambda x, batch: jnp.sum(jnp.cos(x - batch))
  >>> batches, optimizer = jnp.ones([50, 2]), revmom.sgd(0.1, 0.9)
  >>> run = revmom.train(loss_fn, optimizer, jnp.zeros(2), batches)
  >>> rewound = revmom.rewind(loss_fn, optimizer, run.state, batches)
  >>> print(run.params, rewound.params, rewound.receipt.ok)
  [-2.2469645 -2.2469645] [0. 0.] True
  >>> bool((rewound.params == run.initial_params).all())
  True
  """
  check_optimizer("rewind", optimizer)
  if not isinstance(state, RunState):
    raise ValueError(
      f"rewind got a {type(state).__name__}; it needs the `state` of what "
      "revmom.train returned, which keeps checksums and the plan of the run.  "
      "Undo steps that optimizer.forward or a Stepper took with its inverse."
    )
  to = _static(to)
  if not 0 <= to <= state.steps:
    raise ValueError(
      f"to={to!r}, but the run has {state.steps} steps; give how many of them "
      "stay, 0 for none."
    )
  state = jax.tree.map(jnp.asarray, state)
  proven = to - to % state.checksum_every
  optimizer = hyperparameters.first(optimizer, state.steps)
  model = Model(loss_fn, has_aux, model_state)
  problem, data = pose(
    model,
    jax.eval_shape(optimizer.params, state),
    batches,
    args,
    state.checksum_every,
    "reverse_over_reverse",
    optimizer,
    state.packing,
  )
  problem = problem._replace(
    residue_bits=state.residue_bits, start=_first(batches, state, proven)
  )
  dynamics = optimizer.resolve_for(state)
  run_states.check(state, dynamics, model.state)
  spills = dynamics.spills()._replace(schedules=state.schedules)
  if state.residue_bits:
    dynamics = same_tables(dynamics.tabulated(), state.tables)
  message = NO_DERIVATIVE.format("revmom.rewind")
  state, values, data = refuse_derivative(
    (state, dynamics.hyperparameters, data), message
  )
  dynamics = dynamics.replace(hyperparameters=values)
  reference = runs.Reference(
    None,
    [None] * len(problem.outputs.aux),
    state.checksums,
    state.residues,
    state.model_states,
  )

  def undone(back: Any, plan: Plan, kept: list, to: int) -> tuple[Any, list]:
    inputs = runs.Inputs(dynamics, spills, data)
    first = runs.first_step(back.leaves)
    return reverse.backward(
      problem, inputs, back, plan, kept, first, reference, to
    )

  damaged = receipts.of_start(state.leaves, state.checksums, state.steps)
  margin = residue.margin() if state.residue_bits else None
  back = reverse.Backward(state.leaves, None, damaged, margin)
  back, kept = undone(back, state.plan, state.kept, to)
  last = back
  if proven < to:
    last, _ = undone(back, state.plan.first(to), kept, proven)
  if proven:
    there = reference.checksum(jnp.asarray(proven), state.checksum_every)
    restored = jnp.all(checksum(last.leaves) == there)
    receipt = receipts.of_part(restored, last, state.leaves)
  else:
    receipt = receipts.of_reversal(last, state.leaves, state.checksums)
  if concrete(receipt.ok) is not None:
    receipt.check(state.checksum_every, state.steps)
  leaves = back.leaves
  if to:  # one could go on from there
    leaves = dynamics.checked(leaves, receipt.ok)
  shorter = run_states.shortened(state, to, leaves, kept, spills)
  if to < state.steps:
    model_state = model.as_state([leaf[to] for leaf in state.model_states])
  params = refuse_derivative(
    shorter.shown(dynamics.views(shorter.leaves)), message, state.witness
  )
  return Rewound(params, shorter, receipt, model_state)


def _static(to: Any) -> int:
  try:
    return operator.index(to)
  except TypeError as error:
    raise ValueError(
      f"to={to!r} is no whole number that is known now; give a Python integer, "
      "which jit does not trace."
    ) from error


def _first(batches: Any, state: RunState, proven: int) -> int:
  """The step that the first of the batches is of.

  Raises:
    ValueError: they are not as many as are needed.
  """
  known = lengths(batches)
  if not known:
    return 0
  if len(set(known.values())) > 1:
    raise ValueError(
      "the lengths of the batches disagree: "
      + ", ".join(f"{name}: {length}" for name, length in known.items())
    )
  length = next(iter(known.values()))
  if not state.steps - proven <= length <= state.steps:
    raise ValueError(
      f"rewind got {length} batches of a run of {state.steps} steps; give all "
      f"of them, or at least the last {state.steps - proven}: there is a "
      f"checksum after {proven} steps, down to which the reversal is verified."
    )
  return state.steps - length
