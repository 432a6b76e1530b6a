"""A training backward to its start."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from revmom.exact import residue
from revmom.exact.refusal import refuse_derivative
from revmom.optimizers import hyperparameters
from revmom.optimizers.checks import check_factors, check_slots
from revmom.optimizers.reversible import (
  NO_DERIVATIVE,
  ReversibleOptimizer,
  check_optimizer,
)
from revmom.optimizers.state import State
from revmom.training import receipt as receipts
from revmom.training import reverse
from revmom.training import run as runs
from revmom.training.model import Model
from revmom.training.problem import pose, run_length
from revmom.training.receipt import Receipt
from revmom.training.rounding import same_tables
from revmom.training.train import RunState


class Rewound(NamedTuple):
  """What `rewind` returns."""

  params: Any  # the initial parameters, as snapped to the grid
  state: State  # the initial state
  receipt: Receipt
  model_state: Any = None  # the initial one


def rewind(
  loss_fn: Callable[..., jax.Array],
  optimizer: ReversibleOptimizer,
  state: RunState,
  batches: Any,
  *args: Any,
  has_aux: bool = False,
  model_state: Any = None,
) -> Rewound:
  """Runs a training backward to its start, bit for bit, with a receipt.

  The arguments are those of `train`, with the state it returned in the
  parameters' place; `model_state` is any of the same structure, such as
  `run.model_state`.  Reverse as the run went forward: jitted if it was, with
  the same batching, devices and threads.  With residues it may be reversed
  otherwise: `receipt.describe()` says how near that came to what they forgive.

  Raises:
    ValueError: the state was made in another environment, without residues.
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
  state = jax.tree.map(jnp.asarray, state)
  receipts.check_environment(state.fingerprint, bool(state.residue_bits))
  run_length(optimizer, batches, state.steps)
  model = Model(loss_fn, has_aux, model_state)
  _check_model_state(state, model)
  problem, data = pose(
    model,
    state.like_params(),
    batches,
    args,
    state.checksum_every,
    "reverse_over_reverse",
    optimizer,
    state.packing,
  )
  problem = problem._replace(residue_bits=state.residue_bits)
  dynamics = optimizer.resolve_for(state)
  check_slots(dynamics, state.leaves)
  check_factors(dynamics, state.schedules)
  spills = dynamics.spills()._replace(schedules=state.schedules)
  if state.residue_bits:
    dynamics = same_tables(dynamics.tabulated(), state.tables)
  message = NO_DERIVATIVE.format("revmom.rewind")
  state, values, data = refuse_derivative(
    (state, dynamics.hyperparameters, data), message
  )
  dynamics = dynamics.replace(hyperparameters=values)
  inputs = runs.Inputs(dynamics, spills, data)
  back = reverse.backward(
    problem,
    inputs,
    reverse.Backward(
      state.leaves,
      None,
      receipts.of_start(state.leaves, state.checksums, state.steps),
      residue.margin() if state.residue_bits else None,
    ),
    state.plan,
    state.kept,
    runs.first_step(state.leaves),
    runs.Reference(
      None,
      [None] * len(problem.outputs.aux),
      state.checksums,
      state.residues,
      state.model_states,
    ),
  )
  receipt = receipts.of_reversal(back, state.leaves, state.checksums)
  if hyperparameters.concrete(receipt.ok) is not None:
    receipt.check(state.checksum_every, state.steps)
  start = State(
    count=jnp.zeros((), jnp.int32),
    leaves=runs.with_rows(back.leaves, spills.rows(state.steps)),
    schedules=state.schedules,
    steps=state.steps,
    structure=state.structure,
    dtypes=state.dtypes,
    packing=state.packing,
  )
  first = model_state
  if state.steps:
    first = model.as_state([leaf[0] for leaf in state.model_states])
  return Rewound(optimizer.params(start), start, receipt, first)


def _check_model_state(state: RunState, model: Model) -> None:
  kept = [(leaf.shape[1:], leaf.dtype) for leaf in state.model_states]
  given = [(leaf.shape, leaf.dtype) for leaf in model.state]
  if kept != given:
    raise ValueError(
      f"the run kept a model_state of {_listed(kept)}, but rewind got "
      f"{_listed(given)}; pass model_state=run.model_state, as it came back "
      "from revmom.train."
    )


def _listed(kinds: list[tuple]) -> str:
  arrays = [f"{dtype}{list(shape)}" for shape, dtype in kinds]
  return ", ".join(arrays) or "no arrays"
