"""Training as one bijection, and the gradient through it."""

import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from revmom.exact import residue
from revmom.exact.pytree import Pytree
from revmom.exact.residue import Bits
from revmom.exact.tracing import concrete
from revmom.optimizers import hyperparameters
from revmom.optimizers.dynamics import Dynamics
from revmom.optimizers.reversible import (
  ReversibleOptimizer,
  check_optimizer,
)
from revmom.optimizers.spills import Spills
from revmom.training import beginning, plans, rounding
from revmom.training import run_state as run_states
from revmom.training.differentiable import differentiable
from revmom.training.environment import fingerprint
from revmom.training.lengths import run_length
from revmom.training.model import Model
from revmom.training.plans import Policy
from revmom.training.problem import pose
from revmom.training.run_state import RunState


class Run(Pytree):
  """What `train` returns."""

  params: Any  # like the initial parameters; NaN where a grid was left
  losses: jax.Array  # [steps], each before its step
  state: RunState  # the integers
  initial_params: Any  # as snapped to the grid: where a reversal ends
  average: Any = None  # of the parameters, see `revmom.averaged`
  aux: Any = None  # what the loss returned beside it, [steps, ...]
  model_state: Any = None  # after the run


def train(
  loss_fn: Callable[..., jax.Array],
  optimizer: ReversibleOptimizer,
  params: Any,
  batches: Any,
  *args: Any,
  num_steps: int | None = None,
  has_aux: bool = False,
  model_state: Any = None,
  plan: Policy | None = None,
  checksum_every: int | None = None,
  second_order_mode: str = "auto",
  residue_bits: Bits | None = None,
) -> Run:
  """Trains, reversibly; `jax.grad` through it runs the training backward.

  Gradients reach the optimizer's hyperparameters, the initial parameters, the
  batches, `args` and whatever differentiable arrays `loss_fn` and `batches`
  close over, in one reverse pass that recomputes each step instead of storing
  it (Maclaurin, Duvenaud & Adams 2015, Algorithm 2).  They are the exact
  derivatives of the run on its grid, rounding being differentiated as the
  identity; where the reversal is not exact they are NaN, and
  `revmom.explain(gradients)` names the step.

  Given the `state` of another run in the parameters' place, or that of
  `rewind`, it goes on from there, as if there had been one run of all steps:
  the integers are the same, and so is what `rewind` undoes.  The step counts
  all of them, and hyperparameters with a value for each step have those of all
  (more are left out).  The result has the losses of these steps; gradients are
  of these steps, too, since integers have none.

  Args:
    loss_fn: (params, batch, *args) -> scalar; see `has_aux` and `model_state`.
    optimizer: such as `revmom.adamw`.
    params: a pytree of floating-point arrays, or the state of a run.
    batches: a pytree of arrays with a leading step axis, or a function of the
      step (int32 []), which needs `num_steps`.  Draw random numbers from keys
      in the batch or from `jax.random.fold_in(key, step)`: they are replayed.
    *args: further arguments of the loss, the same at every step.
    num_steps: length of the run, if `batches` is a function.
    has_aux: whether `loss_fn` returns (loss, aux), aux being a pytree of
      arrays; they come back as `run.aux`, [steps, ...], and differentiate.
    model_state: a pytree of arrays that the loss changes beside the
      parameters, such as the statistics of batch normalisation: then it is
      called as
      loss_fn(params, model_state, batch, *args) and returns (loss,
      model_state), or (loss, (model_state, aux)).  `run.model_state` is the
      last one.  The state before each step is kept for the reverse pass;
      gradients go through it.
    plan: how the run is kept: `revmom.plans.keep()`, the default,
      `revmom.plans.recompute(budget)` or `revmom.plans.offload()`;
      `run.state.plan.describe()` says what was chosen.
    checksum_every: steps between the checksums that locate a divergence; 16,
      or those of the state, by default.
    second_order_mode: how Hessian-vector products are computed:
      "forward_over_reverse", which needs the gradient of a scalar,
      "reverse_over_reverse", or "auto": the first, except for losses with a
      `custom_vjp` or a `stop_gradient`.
    residue_bits: 1, 2, 4 or 8: gradients are rounded to a grid, and so many
      bits of each element are kept at each step, which forgive a reversal
      whose gradients are computed otherwise: in other microbatches, on other
      devices, by another program (see `revmom.exact.residue` for how much).
      "syndromes" keeps an eighth of a bit on a coarser grid, without a bound
      that is certain, and takes longer to reverse.  They stay on the device,
      and the plan counts them.  None by default, or those of the state.

  Returns:
    A `Run` of params, losses (NaN from where a value left its grid), state,
    and the initial parameters as snapped to the grid.

  Raises:
    ValueError: shapes that don't fit, a loss that is not a scalar, a factor
      without an inverse; a state that other settings, another optimizer or
      environment made; outside of `jit`, also a value that left its grid.

  >>> import revmom
  >>> loss_fn = lambda x, batch: jnp.sum((x - batch) ** 2)
  >>> batches = jnp.array([[1.0, 2.0]] * 50)
  >>> def objective(optimizer):
  ...   run = revmom.train(loss_fn, optimizer, jnp.zeros(2), batches)
  ...   return jnp.sum((run.params - 1.5) ** 2)
  >>> gradient = jax.grad(objective)(revmom.sgd(0.01, 0.9))
  >>> print(f"{gradient.learning_rate:.2f} {gradient.momentum:.2f}")
  1.63 -0.46
  """
  check_optimizer("train", optimizer)
  past = beginning.past_of(params, checksum_every, residue_bits)
  taken = 0
  if past is not None:
    taken, checksum_every, residue_bits = (
      past.steps,
      past.checksum_every,
      past.residue_bits,
    )
    params = past.like_params()
  checksum_every = 16 if checksum_every is None else checksum_every
  residue_bits = 0 if residue_bits is None else residue_bits
  beginning.check_numbers(checksum_every, residue_bits)
  policy = plans.keep() if plan is None else plan
  if not isinstance(policy, Policy):
    raise ValueError(
      f"plan={plan!r}; pass revmom.plans.recompute(bytes), "
      "revmom.plans.offload() or revmom.plans.keep()."
    )
  steps = run_length(optimizer, batches, num_steps, past)
  model = Model(loss_fn, has_aux, model_state)
  if past is None:
    begun = beginning.begin(optimizer, params, steps)
  else:
    optimizer = hyperparameters.first(optimizer, taken + steps)
    begun = beginning.go_on(optimizer, past, taken + steps, model.state)
  dynamics, spills = begun.dynamics, begun.spills
  problem, data = pose(
    model,
    params,
    batches,
    args,
    checksum_every,
    second_order_mode,
    optimizer,
    dynamics.packing,
  )
  problem = problem._replace(residue_bits=residue_bits, start=taken)
  loop = dynamics.tabulated() if residue_bits else dynamics
  made = policy.make(
    steps, _costs(dynamics, spills, steps, model.state, residue_bits)
  )
  results, extra = differentiable(problem, made, loop, spills)(
    loop.hyperparameters,
    (spills.schedules, spills.valid),
    begun.origin,
    model.state,
    data,
  )
  averages, losses = results["averages"], results["losses"]
  count = jnp.asarray(taken + steps, jnp.int32)
  state = RunState(
    count=count,
    schedules=spills.schedules,
    steps=taken + steps,
    structure=begun.structure,
    dtypes=begun.dtypes,
    packing=dynamics.packing,
    zero=jnp.sum(losses[:0]),
    plan=made,
    checksum_every=checksum_every,
    tables=loop.tables() if residue_bits else {},
    residue_bits=residue_bits,
    fingerprint=fingerprint(),
    **extra,
  )
  if past is not None:
    state = run_states.joined(past, state, spills)
  average = None
  if averages:
    weights = dynamics.average_weights(count)
    average = state.as_params(
      [a / w.astype(a.dtype) for a, w in zip(averages, weights, strict=True)]
    )
  run = Run(
    params=state.as_params(results["views"]),
    losses=losses,
    state=state,
    initial_params=begun.params,
    average=average,
    aux=model.as_aux(results["aux"]),
    model_state=model.as_state(results["state"]),
  )
  if concrete(run.losses) is not None:
    optimizer.check(state)
  return run


def _costs(
  dynamics: Dynamics,
  spills: Spills,
  steps: int,
  model_state: list,
  residue_bits: Bits,
) -> plans.Costs:
  sizes = [
    sum(math.prod(dynamics.packing.shapes[i]) for i in group.members)
    for group in dynamics.packing.groups
  ]
  kept = sum(leaf.size * leaf.dtype.itemsize for leaf in model_state)
  if residue_bits:
    consumed = rounding.sizes(dynamics, sizes)
    kept += sum(residue.bytes_of(size, residue_bits) for size in consumed)
  return plans.Costs(
    spills.state_bytes(sizes),
    spills.bytes_per_step(sizes),
    steps * kept,
  )
