"""A run with its derivative: the reverse pass as a custom one."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax.custom_derivatives import SymbolicZero

from revmom.exact import residue
from revmom.exact.pytree import Pytree, static
from revmom.exact.refusal import refuse_derivative
from revmom.optimizers.dynamics import Dynamics
from revmom.optimizers.slot import AVERAGE
from revmom.optimizers.spills import Spills
from revmom.steps.checksum import checksum
from revmom.steps.leaf import Leaf
from revmom.training import receipt as receipts
from revmom.training import reverse
from revmom.training import run as runs
from revmom.training.model import is_float
from revmom.training.plans import Plan
from revmom.training.problem import Data, Problem


class Residuals(Pytree):
  """What the reverse pass starts from."""

  hyperparameters: Any
  timing: tuple
  origin: list[jax.Array] | list[Leaf]
  state: list[jax.Array]
  data: Data
  extra: dict[str, Any]
  wanted: tuple = static()  # whether each array of the data is differentiated


def differentiable(
  problem: Problem, plan: Plan, dynamics: Dynamics, spills: Spills
) -> Callable:
  """(hyperparameters, timing, origin, model's state, data) -> results.

  `timing` is the traced part of the spills: a custom derivative must not
  close over it.  The origin is packed parameters, or the leaves of a run that
  goes on, which have no derivative.  The results are a dict of what is
  differentiated, see `_forward`, and one of leaves, checksums and what the
  plan keeps.
  """

  def inputs_of(hypers, timing, data):
    schedules, valid = timing
    return runs.Inputs(
      dynamics.replace(hyperparameters=hypers),
      spills._replace(schedules=schedules, valid=valid),
      data,
    )

  @jax.custom_vjp
  def run(hypers, timing, origin, state, data):
    inputs = inputs_of(hypers, timing, data)
    return _forward(problem, plan, inputs, origin, state)

  def forward(hypers, timing, origin, state, data):
    wanted = tuple(
      leaf.perturbed and jnp.issubdtype(leaf.value.dtype, jnp.inexact)
      for leaf in [*data.shared, *data.stacked]
    )
    timing, *inputs = jax.tree.map(
      lambda leaf: leaf.value, (timing, hypers, origin, state, data)
    )
    hypers, origin, state, data = refuse_derivative(inputs, _TWICE)
    out = run(hypers, timing, origin, state, data)
    return out, Residuals(hypers, timing, origin, state, data, out[1], wanted)

  def backward(residuals, bars):
    inputs = inputs_of(
      residuals.hyperparameters, residuals.timing, residuals.data
    )
    final = _backward(problem, plan, inputs, residuals, bars[0])
    origin_bar = None
    if not _is_known(residuals.origin):
      origin_bar = [dynamics.view_bar(own) for own in final.leaves]
    return final.hyperparameters, None, origin_bar, final.state, final.data

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


def _is_known(origin: list) -> bool:
  """Whether a run goes on from leaves."""
  return all(isinstance(leaf, Leaf) for leaf in origin)


def _begin(inputs, origin):
  """The leaves before the first step, without words."""
  dynamics, spills, _ = inputs
  if _is_known(origin):
    return dynamics.checked(origin, spills.valid)
  return dynamics.begin(origin, spills, 0)


def _forward(problem, plan, inputs, origin, state):
  """What is differentiated of a run, and what its reversal needs."""
  leaves = _begin(inputs, origin)
  first = checksum(leaves)
  (leaves, state), logs, kept = runs.forward(
    problem,
    inputs,
    runs.Moving(leaves, state),
    plan,
    runs.first_step(leaves) + problem.start,
  )
  log = jax.tree.map(lambda *parts: jnp.concatenate(parts), *logs)
  checksums = log.checksums
  every = problem.checksum_every
  due = every - 1 - problem.start % every
  checksums = jnp.concatenate([first[None], checksums[due::every]])
  # That of the last step is kept in any case.
  if plan.steps and (problem.start + plan.steps) % every:
    last = checksum(leaves)
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
    "residues": log.residues,
    "model_states": log.states,
  }
  results = {
    "views": views,
    "averages": averages,
    "losses": log.losses,
    "aux": log.aux,
    "state": state,
  }
  return results, extra


def _backward(problem, plan, inputs, residuals, bars):
  """The final adjoint; NaN unless the reversal was exact."""
  extra = residuals.extra
  known = lambda bar: None if isinstance(bar, SymbolicZero) else bar
  views = inputs.dynamics.views(extra["leaves"])
  adjoint = _first_adjoint(
    inputs,
    extra["leaves"],
    list(map(_instantiate, bars["views"], views)),
    list(map(_instantiate, bars["averages"], views)),  # there may be none
    [
      _instantiate(bar, leaf) if is_float(leaf) else None
      for bar, leaf in zip(bars["state"], residuals.state, strict=True)
    ],
    residuals.wanted,
  )
  steps = problem.start + plan.steps
  back, _ = reverse.backward(
    problem,
    inputs,
    reverse.Backward(
      extra["leaves"],
      adjoint,
      receipts.of_start(extra["leaves"], extra["checksums"], steps),
      residue.margin() if problem.residue_bits else None,
    ),
    plan,
    extra["kept"],
    runs.first_step(extra["leaves"]) + problem.start,
    runs.Reference(
      known(bars["losses"]),
      [
        known(bar) if is_float(leaf) else None
        for bar, leaf in zip(bars["aux"], problem.outputs.aux, strict=True)
      ],
      extra["checksums"],
      extra["residues"],
      extra["model_states"],
      problem.start,
    ),
  )
  initial = _begin(inputs, residuals.origin)
  receipt = receipts.of_reversal(
    back, extra["leaves"], extra["checksums"], initial
  )
  receipts.report(receipt, problem.checksum_every, steps)
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
  state_bar: list,
  wanted: tuple,
) -> reverse.Adjoint:
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
  return reverse.Adjoint(
    leaves=bars,
    state=state_bar,
    hyperparameters=jax.tree.map(jnp.zeros_like, dynamics.hyperparameters),
    data=Data(zeros[:count], zeros[count:]),
  )


def _instantiate(bar: Any, like: jax.Array) -> jax.Array:
  """A cotangent as an array, spread over devices as another one is."""
  if isinstance(bar, SymbolicZero):
    return jnp.zeros_like(like, bar.dtype)
  return bar
