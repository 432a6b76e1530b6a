"""A run with its derivative: the reverse pass as a custom one."""

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax.custom_derivatives import SymbolicZero

from revmom.exact.pytree import Pytree, static
from revmom.exact.refusal import refuse_derivative
from revmom.optimizers.dynamics import Dynamics, Spills
from revmom.optimizers.leaf import AVERAGE
from revmom.optimizers.state import overflowed
from revmom.training import receipt as receipts
from revmom.training import run as runs
from revmom.training.adjoint import Adjoint
from revmom.training.plan import Plan
from revmom.training.problem import merger, selector


class Residuals(Pytree):
  """What the reverse pass starts from."""

  hyperparameters: Any
  timing: tuple
  params: list[jax.Array]
  shared: list[jax.Array]
  stacked: list[jax.Array]
  extra: dict[str, Any]
  masks: tuple = static()  # of shared and stacked


def differentiable(
  problem: runs.Problem, plan: Plan, dynamics: Dynamics, spills: Spills
) -> Callable:
  """(hyperparameters, timing, params, shared, stacked) -> results.

  `timing` is the traced part of the spills: a custom derivative must not
  close over it.  The results are floats of the final parameters, raw averages
  of the parameters (none if the optimizer keeps none), losses, and a dict of
  leaves, checksums and what the plan keeps.
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
    return _forward(problem, plan, inputs, params)

  def forward(hypers, timing, params, shared, stacked):
    masks = _perturbed(shared), _perturbed(stacked)
    timing, *inputs = jax.tree.map(
      lambda leaf: leaf.value, (timing, hypers, params, shared, stacked)
    )
    hypers, params, shared, stacked = refuse_derivative(inputs, _TWICE)
    out = run(hypers, timing, params, shared, stacked)
    return out, Residuals(
      hypers, timing, params, shared, stacked, out[3], masks
    )

  def backward(residuals, bars):
    inputs = inputs_of(
      residuals.hyperparameters,
      residuals.timing,
      residuals.shared,
      residuals.stacked,
    )
    final = _backward(problem, plan, inputs, residuals, bars)
    masks = residuals.masks
    return (
      final.hyperparameters,
      None,
      final.params,
      _scatter(final.shared, masks[0]),
      _scatter(final.stacked, masks[1]),
    )

  run.defvjp(forward, backward, symbolic_zeros=True)
  return run


_TWICE = (
  "a hypergradient can't be differentiated again: the reverse pass of "
  "revmom.train restores integers, and a derivative through them would be "
  "wrong.  This happens with jax.grad of jax.grad, jax.hessian, a penalty on "
  "a hypergradient, or revmom.train inside of a loss that revmom.train "
  "differentiates.  revmom.train_jvp gives derivatives along a direction that "
  "jax.grad goes through, or give the inner one jax.lax.stop_gradient of its "
  "arguments."
)


def _forward(problem, plan, inputs, params):
  leaves = inputs.dynamics.begin(params, inputs.spills, 0)
  first = receipts.checksum(leaves)
  leaves, logs, kept = runs.forward(
    problem, inputs, leaves, plan, runs.first_step(leaves)
  )
  losses, checksums, residues = jax.tree.map(
    lambda *parts: jnp.concatenate(parts), *logs
  )
  every = problem.checksum_every
  checksums = jnp.concatenate([first[None], checksums[every - 1 :: every]])
  if plan.steps % every:  # that of the last step is kept in any case
    last = receipts.checksum(leaves)
    checksums = jnp.concatenate([checksums, last[None]])
  dynamics = inputs.dynamics
  finish = lambda views: [
    jnp.where(overflowed(leaf), jnp.nan, view)
    for leaf, view in zip(leaves, views, strict=True)
  ]
  views = finish(dynamics.views(leaves, problem.dtypes))
  averages = []
  if dynamics.keeps_average and dynamics.steps:
    averages = finish(
      dynamics.averages(
        leaves,
        problem.dtypes,
        inputs.spills.schedules,
        jnp.asarray(dynamics.steps),
      )
    )
  extra = {
    "leaves": leaves,
    "checksums": checksums,
    "kept": kept,
    "residues": residues,
  }
  return views, averages, losses, extra


def _backward(problem, plan, inputs, residuals, bars):
  """The final adjoint; NaN unless the reversal was exact."""
  masks, extra = residuals.masks, residuals.extra
  views_bar, averages_bar, losses_bar, _ = bars
  if isinstance(losses_bar, SymbolicZero):
    losses_bar = None
  adjoint = _first_adjoint(
    inputs,
    problem,
    extra["leaves"],
    [_instantiate(bar) for bar in views_bar],
    [_instantiate(bar) for bar in averages_bar],
    masks,
  )
  back = runs.backward(
    problem._replace(select=selector(masks), merge=merger(masks)),
    inputs,
    runs.Backward(
      extra["leaves"],
      adjoint,
      receipts.of_start(extra["leaves"], extra["checksums"], plan.steps),
    ),
    plan,
    extra["kept"],
    runs.first_step(extra["leaves"]),
    (losses_bar, extra["checksums"], extra["residues"]),
  )
  initial = inputs.dynamics.begin(residuals.params, inputs.spills, 0)
  receipt = receipts.of_reversal(
    back, extra["leaves"], extra["checksums"], initial
  )
  receipts.report(receipt, problem.checksum_every, plan.steps)
  # A reversal that failed must not return a plausible number.
  nan = receipts.not_a_number(receipt)
  return jax.tree.map(
    lambda bar: jnp.where(receipt.ok, bar, nan.astype(bar.dtype)), back.adjoint
  )


def _perturbed(leaves: list) -> tuple[bool, ...]:
  return tuple(
    leaf.perturbed and jnp.issubdtype(leaf.value.dtype, jnp.inexact)
    for leaf in leaves
  )


def _first_adjoint(
  inputs, problem, leaves, views_bar, averages_bar, masks
) -> Adjoint:
  shared, stacked = selector(masks)((inputs.shared, inputs.stacked))
  params_bar, slots_bar = [], []
  zeros = lambda leaf, dtype: {
    role: jnp.zeros_like(leaf.params, dtype) for role in leaf.slots
  }
  for i, (leaf, dtype) in enumerate(zip(leaves, problem.dtypes, strict=True)):
    bars = {
      **zeros(leaf, dtype),
      **inputs.dynamics.bars_of_roles(views_bar[i], {}),
    }
    if averages_bar:
      bars[AVERAGE] = averages_bar[i]
    own, rest = inputs.dynamics.bars_of_leaf(bars)
    params_bar.append(own)
    slots_bar.append(rest)
  return Adjoint(
    params=params_bar,
    slots=slots_bar,
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
