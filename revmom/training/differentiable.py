"""A run with its derivative: the reverse pass as a custom one."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax.custom_derivatives import SymbolicZero

from revmom.exact.pytree import Pytree, static
from revmom.exact.refusal import refuse_derivative
from revmom.optimizers.dynamics import Dynamics
from revmom.optimizers.slot import AVERAGE
from revmom.optimizers.spills import Spills
from revmom.training import receipt as receipts
from revmom.training import run as runs
from revmom.training.plans import Plan
from revmom.training.problem import Data, Problem


class Residuals(Pytree):
  """What the reverse pass starts from."""

  hyperparameters: Any
  timing: tuple
  params: list[jax.Array]
  data: Data
  extra: dict[str, Any]
  wanted: tuple = static()  # whether each array of the data is differentiated


def differentiable(
  problem: Problem, plan: Plan, dynamics: Dynamics, spills: Spills
) -> Callable:
  """(hyperparameters, timing, params, data) -> results.

  `timing` is the traced part of the spills: a custom derivative must not
  close over it.  The results are floats of the final parameters, raw averages
  of the parameters (none if the optimizer keeps none), losses, and a dict of
  leaves, checksums and what the plan keeps.
  """

  def inputs_of(hypers, timing, data):
    schedules, valid = timing
    return runs.Inputs(
      dynamics.replace(hyperparameters=hypers),
      spills._replace(schedules=schedules, valid=valid),
      data,
    )

  @jax.custom_vjp
  def run(hypers, timing, params, data):
    return _forward(problem, plan, inputs_of(hypers, timing, data), params)

  def forward(hypers, timing, params, data):
    wanted = tuple(
      leaf.perturbed and jnp.issubdtype(leaf.value.dtype, jnp.inexact)
      for leaf in [*data.shared, *data.stacked]
    )
    timing, *inputs = jax.tree.map(
      lambda leaf: leaf.value, (timing, hypers, params, data)
    )
    hypers, params, data = refuse_derivative(inputs, _TWICE)
    out = run(hypers, timing, params, data)
    return out, Residuals(hypers, timing, params, data, out[3], wanted)

  def backward(residuals, bars):
    inputs = inputs_of(
      residuals.hyperparameters, residuals.timing, residuals.data
    )
    final = _backward(problem, plan, inputs, residuals, bars)
    params_bar = [dynamics.view_bar(own) for own in final.leaves]
    return final.hyperparameters, None, params_bar, final.data

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
    jnp.where(leaf.overflowed, jnp.nan, view)
    for leaf, view in zip(leaves, views, strict=True)
  ]
  views = finish(dynamics.views(leaves))
  averages = []
  if dynamics.keeps_average and dynamics.steps:
    averages = finish(
      dynamics.averages(
        leaves, inputs.spills.schedules, jnp.asarray(dynamics.steps)
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
  extra = residuals.extra
  views_bar, averages_bar, losses_bar, _ = bars
  if isinstance(losses_bar, SymbolicZero):
    losses_bar = None
  adjoint = _first_adjoint(
    inputs,
    extra["leaves"],
    [_instantiate(bar) for bar in views_bar],
    [_instantiate(bar) for bar in averages_bar],
    residuals.wanted,
  )
  back = runs.backward(
    problem,
    inputs,
    runs.Backward(
      extra["leaves"],
      adjoint,
      receipts.of_start(extra["leaves"], extra["checksums"], plan.steps),
    ),
    plan,
    extra["kept"],
    runs.first_step(extra["leaves"]),
    runs.Reference(losses_bar, extra["checksums"], extra["residues"]),
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


def _first_adjoint(
  inputs: runs.Inputs,
  leaves: list,
  views_bar: list,
  averages_bar: list,
  wanted: tuple,
) -> runs.Adjoint:
  dynamics, _, data = inputs
  bars = []
  for i, leaf in enumerate(leaves):
    own = {
      name: jnp.zeros_like(integers, dynamics.dtypes[i])
      for name, integers in leaf.integers.items()
    }
    own |= dynamics.bars_of(views_bar[i])
    if averages_bar:
      own[AVERAGE] = averages_bar[i]
    bars.append(own)
  zeros = [
    jnp.zeros_like(array) if want else None
    for array, want in zip([*data.shared, *data.stacked], wanted, strict=True)
  ]
  count = len(data.shared)
  return runs.Adjoint(
    leaves=bars,
    hyperparameters=jax.tree.map(jnp.zeros_like, dynamics.hyperparameters),
    data=Data(zeros[:count], zeros[count:]),
  )


def _instantiate(bar: Any) -> jax.Array:
  if isinstance(bar, SymbolicZero):
    return jnp.zeros(bar.shape, bar.dtype)
  return bar
