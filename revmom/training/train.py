"""Training as one bijection, and the gradient through it."""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from absl import logging
from flax import struct
from jax import lax
from jax.custom_derivatives import SymbolicZero

from revmom.optimizers import hyperparameters
from revmom.optimizers.dynamics import Leaf, with_words
from revmom.optimizers.reversible import (
  ReversibleOptimizer,
  State,
  overflowed,
)
from revmom.training import plan as plans
from revmom.training import receipt as receipts
from revmom.training import run as runs
from revmom.training.plan import Plan
from revmom.training.problem import merger, pose, run_length, selector
from revmom.training.receipt import Fingerprint, Receipt


class RunState(State):
  """The state at the end of a run, with all that its reversal needs."""

  checksums: jax.Array  # uint32 [1 + steps // checksum_every]
  kept: list[Any]  # checkpoints or words of the plan's leading segments
  plan: Plan = struct.field(pytree_node=False)
  checksum_every: int = struct.field(pytree_node=False)
  fingerprint: Fingerprint = struct.field(pytree_node=False)


class Run(struct.PyTreeNode):
  """What `train` returns."""

  params: Any  # like the initial parameters; NaN where a grid was left
  losses: jax.Array  # [steps], each before its step
  state: RunState  # the integers


class Rewound(NamedTuple):
  """What `rewind` returns."""

  params: Any  # the initial parameters, as snapped to the grid
  state: State  # the initial state
  receipt: Receipt


def train(
  loss_fn: Callable[..., jax.Array],
  optimizer: ReversibleOptimizer,
  params: Any,
  batches: Any,
  *args: Any,
  num_steps: int | None = None,
  memory_budget: int | None = None,
  words: str | None = None,
  checksum_every: int = 16,
  second_order_mode: str = "auto",
) -> Run:
  """Trains, reversibly; `jax.grad` through it runs the training backward.

  Gradients reach the optimizer's hyperparameters, the initial parameters, the
  batches, `args` and whatever differentiable arrays `loss_fn` and `batches`
  close over, in one reverse pass that recomputes each step instead of storing
  it (Maclaurin, Duvenaud & Adams 2015, Algorithm 2).  They are the exact
  derivatives of the run on its grid, rounding being differentiated as the
  identity; where the reversal is not exact they are NaN and an error is
  logged that names the step.

  Args:
    loss_fn: (params, batch, *args) -> scalar.
    optimizer: from `revmom.sgd`.
    params: a pytree of floating-point arrays.
    batches: a pytree of arrays with a leading step axis, or a function of the
      step (int32 []), which needs `num_steps`.  Draw random numbers from keys
      in the batch or from `jax.random.fold_in(key, step)`: they are replayed.
    *args: further arguments of the loss, the same at every step.
    num_steps: length of the run, if `batches` is a function.
    memory_budget: bytes on the device for integers and buffers; see
      `revmom.training.plan`.  `run.state.plan.describe()` says what was
      chosen.
    words: "device", "host" or "recompute": where buffers may go.
    checksum_every: steps between the checksums that locate a divergence.
    second_order_mode: "forward_over_reverse", "reverse_over_reverse" or
      "auto": how Hessian-vector products are computed.

  Returns:
    A `Run` of params, losses and state.

  Raises:
    ValueError: shapes that don't fit, a loss that is not a scalar, a factor
      without an inverse; outside of `jit`, also a value that left its grid.

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
  optimizer.check_params(params)
  steps = run_length(optimizer, batches, num_steps)
  problem, pieces = pose(
    loss_fn,
    params,
    batches,
    args,
    checksum_every,
    second_order_mode,
    optimizer,
  )
  dynamics = optimizer.resolve(params, steps)
  spills = dynamics.spills()
  structure: Any
  arrays, structure = jax.tree.flatten(params)
  plan = plans.make(steps, _costs(arrays, spills), memory_budget, words)
  views, losses, extra = _differentiable(problem, plan, dynamics, spills)(
    dynamics.hyperparameters,
    (spills.schedules, spills.valid),
    [
      jnp.asarray(a).astype(d)
      for a, d in zip(arrays, problem.dtypes, strict=True)
    ],
    pieces.shared,
    pieces.stacked,
  )
  dtypes = tuple(jnp.asarray(array).dtype for array in arrays)
  state = RunState(
    count=jnp.asarray(steps, jnp.int32),
    schedules=spills.schedules,
    steps=steps,
    structure=structure,
    dtypes=dtypes,
    plan=plan,
    checksum_every=checksum_every,
    fingerprint=receipts.fingerprint(),
    **extra,
  )
  casts = [view.astype(d) for view, d in zip(views, dtypes, strict=True)]
  run = Run(structure.unflatten(casts), losses, state)
  if hyperparameters.concrete(run.losses) is not None:
    optimizer.check(state)
  return run


def rewind(
  loss_fn: Callable[..., jax.Array],
  optimizer: ReversibleOptimizer,
  state: RunState,
  batches: Any,
  *args: Any,
) -> Rewound:
  """Runs a training backward to its start, bit for bit, with a receipt.

  The arguments are those of `train`, with the state it returned in the
  parameters' place.  Reverse as the run went forward: jitted if it was, with
  the same batching, devices and threads.

  Raises:
    ValueError: the state was made in another environment.
    RuntimeError: outside of `jit`, if the reversal is not exact, naming the
      steps where it diverged.  Under `jit` ask `receipt.ok`.

  >>> import revmom
  >>> loss_fn = lambda x, batch: jnp.sum(jnp.cos(x - batch))
  >>> batches, optimizer = jnp.ones([50, 2]), revmom.sgd(0.1, 0.9)
  >>> run = revmom.train(loss_fn, optimizer, jnp.zeros(2), batches)
  >>> rewound = revmom.rewind(loss_fn, optimizer, run.state, batches)
  >>> print(run.params, rewound.params, rewound.receipt.ok)
  [-2.2469645 -2.2469645] [0. 0.] True
  """
  changed = receipts.differences(state.fingerprint, receipts.fingerprint())
  if changed:
    raise ValueError(
      "the run was made in another environment, whose gradients may differ in "
      "their last bits: " + "; ".join(changed)
    )
  params = state.structure.unflatten(
    [
      jax.ShapeDtypeStruct(leaf.params.shape, dtype)
      for leaf, dtype in zip(state.leaves, state.dtypes, strict=True)
    ]
  )
  run_length(optimizer, batches, state.steps)
  problem, pieces = pose(
    loss_fn,
    params,
    batches,
    args,
    state.checksum_every,
    "reverse_over_reverse",
    optimizer,
  )
  dynamics = optimizer.resolve(params, state.steps)
  spills = dynamics.spills()._replace(schedules=state.schedules)
  inputs = runs.Inputs(dynamics, spills, pieces.shared, pieces.stacked)
  back = runs.backward(
    problem,
    inputs,
    runs.Backward(state.leaves, None, jnp.full((), -1, jnp.int32)),
    state.plan,
    state.kept,
    0,
    (None, state.checksums),
  )
  receipt = _receipt(back, state.checksums, _in_range(state.leaves))
  if hyperparameters.concrete(receipt.ok) is not None:
    receipt.check(state.checksum_every)
  start = State(
    count=jnp.zeros((), jnp.int32),
    leaves=with_words(back.leaves, spills.rows(state.steps)),
    schedules=state.schedules,
    steps=state.steps,
    structure=state.structure,
    dtypes=state.dtypes,
  )
  return Rewound(optimizer.params(start), start, receipt)


class _Residuals(struct.PyTreeNode):
  """What the reverse pass starts from."""

  hyperparameters: Any
  timing: tuple
  params: list[jax.Array]
  shared: list[jax.Array]
  stacked: list[jax.Array]
  extra: dict[str, Any]
  shared_mask: tuple = struct.field(pytree_node=False)
  stacked_mask: tuple = struct.field(pytree_node=False)


def _differentiable(problem, plan, dynamics, spills) -> Callable:
  """(hyperparameters, timing, params, shared, stacked) -> results.

  `timing` is the traced part of the spills: a custom derivative must not
  close over it.
  """

  def inputs_of(hypers, timing, shared, stacked):
    schedules, valid = timing
    return runs.Inputs(
      dynamics.replace(hyperparameters=hypers),
      spills._replace(schedules=schedules, valid=valid),
      shared,
      stacked,
    )

  @jax.custom_vjp
  def run(hypers, timing, params, shared, stacked):
    inputs = inputs_of(hypers, timing, shared, stacked)
    leaves = inputs.dynamics.begin(params, inputs.spills, 0)
    first = receipts.checksum(leaves)
    leaves, logs, kept = runs.forward(problem, inputs, leaves, plan, 0)
    losses, checksums = (
      jnp.concatenate(log) for log in zip(*logs, strict=True)
    )
    every = problem.checksum_every
    checksums = jnp.append(first, checksums[every - 1 :: every])
    views = [
      jnp.where(overflowed(leaf), jnp.nan, inputs.dynamics.view(leaf, dtype))
      for leaf, dtype in zip(leaves, problem.dtypes, strict=True)
    ]
    extra = {"leaves": leaves, "checksums": checksums, "kept": kept}
    return views, losses, extra

  def forward(hypers, timing, params, shared, stacked):
    value = lambda tree: jax.tree.map(lambda leaf: leaf.value, tree)
    mask = lambda leaves: tuple(
      leaf.perturbed and jnp.issubdtype(leaf.value.dtype, jnp.inexact)
      for leaf in leaves
    )
    arrays = [value(tree) for tree in (hypers, timing, params, shared, stacked)]
    out = run(*arrays)
    residuals = _Residuals(
      hyperparameters=arrays[0],
      timing=arrays[1],
      params=arrays[2],
      shared=arrays[3],
      stacked=arrays[4],
      extra=out[2],
      shared_mask=mask(shared),
      stacked_mask=mask(stacked),
    )
    return out, residuals

  def backward(residuals, bars):
    hypers, params = residuals.hyperparameters, residuals.params
    views_bar, losses_bar, _ = bars
    masks = residuals.shared_mask, residuals.stacked_mask
    views_bar = [_instantiate(bar) for bar in views_bar]
    if isinstance(losses_bar, SymbolicZero):
      losses_bar = None
    inputs = inputs_of(
      hypers, residuals.timing, residuals.shared, residuals.stacked
    )
    extra = residuals.extra
    adjoint = _zero_adjoint(inputs, problem, extra["leaves"], views_bar, masks)
    back = runs.backward(
      problem._replace(select=selector(masks), merge=merger(masks)),
      inputs,
      runs.Backward(extra["leaves"], adjoint, jnp.full((), -1, jnp.int32)),
      plan,
      extra["kept"],
      0,
      (losses_bar, extra["checksums"]),
    )
    receipt = _receipt(
      back,
      extra["checksums"],
      _in_range(extra["leaves"]),
      inputs.dynamics.begin(params, inputs.spills, 0),
    )
    _report(receipt, problem.checksum_every)
    # A reversal that failed must not return a plausible number.
    final: Any = jax.tree.map(
      lambda bar: jnp.where(receipt.ok, bar, jnp.nan), back.adjoint
    )
    return (
      final.hyperparameters,
      None,
      final.params,
      _scatter(final.shared, masks[0]),
      _scatter(final.stacked, masks[1]),
    )

  run.defvjp(forward, backward, symbolic_zeros=True)
  return run


def _zero_adjoint(inputs, problem, leaves, views_bar, masks) -> runs.Adjoint:
  shared, stacked = selector(masks)((inputs.shared, inputs.stacked))
  return runs.Adjoint(
    params=views_bar,
    slots=[
      {role: jnp.zeros(leaf.params.shape, dtype) for role in leaf.slots}
      for leaf, dtype in zip(leaves, problem.dtypes, strict=True)
    ],
    hyperparameters=jax.tree.map(
      jnp.zeros_like, inputs.dynamics.hyperparameters
    ),
    shared=jax.tree.map(jnp.zeros_like, shared),
    stacked=jax.tree.map(jnp.zeros_like, stacked),
  )


def _scatter(bars: list[jax.Array], mask: Sequence[bool]) -> list:
  """Cotangents of all arrays from those of the chosen; None is zero."""
  remaining = iter(bars)
  return [next(remaining) if chosen else None for chosen in mask]


def _instantiate(bar: Any) -> jax.Array:
  if isinstance(bar, SymbolicZero):
    return jnp.zeros(bar.shape, bar.dtype)
  return bar


def _costs(arrays, spills) -> plans.Costs:
  sizes = [jnp.size(array) for array in arrays]
  width = jnp.dtype(spills.integer).itemsize
  roles = spills.slots + 1 + len(spills.bounds)
  return plans.Costs(sum(sizes) * width * roles, spills.words_per_step(sizes))


def _in_range(leaves: list[Leaf]) -> jax.Array:
  flags = [jnp.any(overflowed(leaf)) for leaf in leaves]
  return ~jnp.any(jnp.stack([jnp.zeros((), bool), *flags]))


def _receipt(back, checksums, in_range, initial=None) -> Receipt:
  leaves = back.leaves
  every = lambda flags: jnp.all(jnp.stack([jnp.ones((), bool), *flags]))
  restored = [receipts.checksum(leaves) == c for c in checksums[:1]]
  if initial is not None:
    restored += [
      jnp.all(leaf.params == first.params)
      for leaf, first in zip(leaves, initial, strict=True)
    ]
  return Receipt(
    params_restored=every(restored),
    slots_restored=every(
      [jnp.all(z == 0) for leaf in leaves for z in leaf.slots.values()]
    ),
    buffers_empty=every(
      [
        jnp.all(buffer.remainder == 0)
        for leaf in leaves
        for buffer in leaf.buffers.values()
      ]
    ),
    in_range=in_range,
    diverged_at=back.diverged_at,
  )


def _report(receipt: Receipt, checksum_every: int) -> None:
  """Logs an error, from inside a compiled program, if a reversal failed."""

  def log(receipt: Receipt) -> None:
    if not receipt.ok:
      logging.error("revmom: %s", receipts.message(receipt, checksum_every))

  lax.cond(receipt.ok, lambda: None, lambda: jax.debug.callback(log, receipt))
