"""The derivative of a run along a direction, which differentiates again."""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from revmom.optimizers.checks import check_params
from revmom.optimizers.dynamics import Dynamics
from revmom.optimizers.reversible import ReversibleOptimizer, check_optimizer
from revmom.optimizers.slot import AVERAGE, PARAMS
from revmom.optimizers.tangent import tangent
from revmom.training import plans
from revmom.training.differentiable import differentiable
from revmom.training.lengths import run_length
from revmom.training.model import Model
from revmom.training.plans import Policy
from revmom.training.problem import (
  Data,
  Problem,
  merged,
  pose,
  selected,
)
from revmom.training.tangent_scales import rows, scales, stack


class Outcome(NamedTuple):
  """What a run ends in, or the tangent of that."""

  params: Any
  losses: jax.Array  # [steps]


def train_jvp(
  loss_fn: Callable[..., jax.Array],
  primals: Sequence[Any],
  tangents: Sequence[Any],
  *,
  num_steps: int | None = None,
  plan: Policy | None = None,
  checksum_every: int = 16,
) -> tuple[Outcome, Outcome]:
  """A run and its derivative along a direction, as `jax.jvp` has them.

  The derivative is a run of the same form, so that it can be reversed, too:
  `jax.grad` goes through both and gives Hessian-vector products: with f(x) an
  objective of a run, H v = grad(x -> df(x) v).  On the way back the run is
  restored bit for bit, and its derivative to 2^-18 of its largest element.

  Args:
    loss_fn: see `revmom.train`.
    primals: (optimizer, params, batches, *args), as `revmom.train` takes them.
    tangents: one for each of the primals, of the same structure; None is zero,
      and so is that of an integer or of a function of the step.
    num_steps, plan, checksum_every: see `revmom.train`.

  Returns:
    The `Outcome` (params, losses) of the run, and its tangent.  The run agrees
    with that of `revmom.train` up to rounding, being part of another program.

  Raises:
    ValueError: as `revmom.train`; tangents that don't fit; an optimizer that
      keeps an average.

  >>> import revmom
  >>> loss_fn = lambda x, batch: 0.5 * jnp.sum((x - batch) ** 2)
  >>> optimizer, start = revmom.sgd(0.5, 0.5), jnp.zeros(1)
  >>> run = lambda x: (optimizer, x, jnp.ones([5, 1]))
  >>> def slope(x):
  ...   out, tangent = revmom.train_jvp(loss_fn, run(x), (None, x + 1, None))
  ...   return jnp.sum(out.params * tangent.params)
  >>> print(slope(start), jax.grad(slope)(start))
  -0.140625 [-0.125]
  """
  _check(primals, tangents)
  optimizer, params, batches, *args = primals
  optimizer_dot, params_dot, batches_dot, *args_dot = tangents
  check_params(optimizer.role(PARAMS), params)
  steps = run_length(optimizer, batches, num_steps)
  dynamics, along = _resolve(optimizer, optimizer_dot, params, steps)
  problem, own = pose(
    Model(loss_fn, False, None),
    params,
    batches,
    tuple(args),
    checksum_every,
    "reverse_over_reverse",
    optimizer,
    dynamics.packing,
  )
  pairs = zip(args, args_dot, strict=True)
  shared_dot = [dot for pair in pairs for dot in _dots("args", *pair)]
  shared_dot += [None] * (len(own.shared) - len(shared_dot))
  stacked_dot: list = [None] * len(own.stacked)
  if own.stacked:
    stacked_dot = _dots("batches", batches, batches_dot)
  problem = _beside(problem, shared_dot, stacked_dot)
  data = Data(
    own.shared + [dot for dot in shared_dot if dot is not None],
    own.stacked + [dot for dot in stacked_dot if dot is not None],
  )
  structure: Any
  arrays, structure = jax.tree.flatten(params)
  params_dot = [
    jnp.zeros_like(array) if dot is None else dot
    for array, dot in zip(
      arrays, _dots("params", params, params_dot), strict=True
    )
  ]
  packed = stack(dynamics.pack(arrays), dynamics.pack(params_dot))
  held_in = scales(*lax.stop_gradient((dynamics, along, data, packed)), problem)
  dynamics = tangent(dynamics, along, held_in)
  spills = dynamics.spills()
  sizes = [both[0].size for both in packed]
  cost = plans.Costs(spills.state_bytes(sizes), spills.bytes_per_step(sizes))
  made = (plan or plans.keep()).make(steps, cost)
  results, _ = differentiable(problem, made, dynamics, spills)(
    dynamics.hyperparameters,
    (spills.schedules, spills.valid),
    packed,
    [],
    data,
  )
  views, losses = results["views"], results["losses"]

  def outcome(row: int) -> Outcome:
    unpacked = dynamics.packing.unpack([view[row] for view in views])
    casts = [
      view.astype(jnp.result_type(array))
      for view, array in zip(unpacked, arrays, strict=True)
    ]
    return Outcome(structure.unflatten(casts), losses[:, row])

  return outcome(0), outcome(1)


def _check(primals: Sequence[Any], tangents: Sequence[Any]) -> None:
  if len(primals) < 3 or len(primals) != len(tangents):
    raise ValueError(
      f"train_jvp got {len(primals)} primals and {len(tangents)} tangents; "
      "the primals are (optimizer, params, batches, *args), and each has a "
      "tangent, which may be None."
    )
  check_optimizer("train_jvp", primals[0])


def _resolve(
  optimizer: ReversibleOptimizer, along: Any, params: Any, steps: int
) -> tuple[Dynamics, tuple]:
  """The dynamics of a run, and the tangents of its hyperparameters."""
  optimizer = jax.tree.map(
    lambda x: jnp.asarray(x, jnp.result_type(x, float)), optimizer
  )
  dynamics = optimizer.resolve(params, steps)
  if any(AVERAGE in equations.names for equations in dynamics.equations):
    raise ValueError(
      "train_jvp does not carry averages of the parameters; pass the optimizer "
      "as it was before revmom.averaged."
    )
  dots = _dots("optimizer", optimizer, along)
  structure: Any
  leaves, structure = jax.tree.flatten(optimizer)
  filled = [
    jnp.zeros_like(leaf) if dot is None else dot
    for leaf, dot in zip(leaves, dots, strict=True)
  ]
  values = lambda optimizer: optimizer.resolve(params, steps).hyperparameters
  return dynamics, jax.jvp(
    values, (optimizer,), (structure.unflatten(filled),)
  )[1]


def _dots(name: str, primal: Any, along: Any) -> list:
  """The tangent of each array; None is zero."""
  arrays = jax.tree.leaves_with_path(primal)
  if along is None:
    return [None] * len(arrays)
  expected: Any = jax.tree.structure(primal)
  got: Any = jax.tree.structure(along)
  if got != expected:
    raise ValueError(
      f"the tangent of the {name} is {got}, but the {name} are {expected}; "
      "start from jax.tree.map(jnp.zeros_like, primal), or pass None for zero."
    )
  found: list = []
  for (path, array), dot in zip(arrays, jax.tree.leaves(along), strict=True):
    dtype = jnp.result_type(array)
    if not jnp.issubdtype(dtype, jnp.inexact):
      found.append(None)
      continue
    if jnp.shape(dot) != jnp.shape(array):
      raise ValueError(
        f"the tangent of {name}{jax.tree_util.keystr(path)} has shape "
        f"{jnp.shape(dot)}, but it is of shape {jnp.shape(array)}."
      )
    found.append(jnp.asarray(dot, dtype))
  return found


def _beside(problem: Problem, shared_dot: list, stacked_dot: list) -> Problem:
  """The problem of a run and its tangent, of stacked arrays [2, ...].

  The tangents of other arrays than parameters follow those arrays.
  """

  def split(arrays: list, dots: list) -> tuple[list, list]:
    own, rest = arrays[: len(dots)], iter(arrays[len(dots) :])
    return own, [
      _zero(array) if dot is None else next(rest)
      for array, dot in zip(own, dots, strict=True)
    ]

  def gradient(views, state, data, t):
    pairs = split(data.shared, shared_dot), split(data.stacked, stacked_dot)
    inputs, inputs_dot = (Data(*both) for both in zip(*pairs, strict=True))
    own, along = rows(views)
    of = lambda views, data: problem.gradient(views, state, data, t)
    # The run itself is computed as it is without a tangent: rounding it
    # otherwise would make it another one.
    out, grads = of(own, inputs)
    _, (out_dot, grads_dot) = jax.jvp(of, (own, inputs), (along, inputs_dot))
    values = jnp.stack([out.value, out_dot.value])
    return out._replace(value=values), stack(grads, grads_dot)

  def consume(gradients, views, thresholds, t):
    own, along = zip(*map(rows, (gradients, views, thresholds)), strict=True)
    of = lambda gradients, views, thresholds: problem.consume(
      gradients, views, thresholds, t
    )
    return stack(of(*own), jax.jvp(of, own, along)[1])

  def pull_back(views, state, data, t, gradient_bar, bars, wanted):
    chosen = selected(data, wanted)

    def own(views, chosen):
      out, grads = gradient(views, state, merged(data, wanted, chosen), t)
      return out.value, grads

    (value, _), vjp = jax.vjp(own, views, chosen)
    value_bar = bars.value
    if value_bar is None:
      value_bar = jnp.zeros_like(value)
    views_bar, chosen_bar = vjp((value_bar.astype(value.dtype), gradient_bar))
    return views_bar, [], merged(wanted, wanted, chosen_bar)

  value = problem.outputs.value
  both = jax.ShapeDtypeStruct((2, *value.shape), value.dtype)
  return problem._replace(
    gradient=gradient,
    consume=consume,
    pull_back=pull_back,
    outputs=problem.outputs._replace(value=both),
  )


def _zero(array: jax.Array) -> Any:
  if jnp.issubdtype(array.dtype, jnp.inexact):
    return jnp.zeros_like(array)
  return np.zeros(jnp.shape(array), jax.dtypes.float0)
