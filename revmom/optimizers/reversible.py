"""One step of an optimizer as a bijection: what its equations give for free."""

import math
from collections.abc import Callable
from typing import Any, NoReturn

import jax
import jax.numpy as jnp
import optax
from jax import lax

from revmom.exact import compensated
from revmom.exact.refusal import refuse_derivative
from revmom.optimizers.checks import (
  check_factors,
  check_like,
  check_params,
  check_slots,
)
from revmom.optimizers.declared import Declared
from revmom.optimizers.dynamics import Dynamics
from revmom.optimizers.gradients import consumed
from revmom.optimizers.packing import Packing
from revmom.optimizers.resolve import resolve
from revmom.optimizers.slot import PARAMS
from revmom.optimizers.state import State, check_in_range

DEFAULT_STEPS = 1000
NO_DERIVATIVE = (
  "{} computes on integers, through which every derivative would be zero.  "
  "Differentiate revmom.train instead: the params, average and losses of its "
  "result have exact derivatives with respect to the optimizer, the "
  "parameters, the batches and args.  Where no derivative is meant, pass "
  "jax.lax.stop_gradient of the arguments."
)


class ReversibleOptimizer(Declared, kw_only=True):
  """A reversible optimizer, as a pytree of its hyperparameters.

  Its equations are those of `revmom.optimizers.declared.Declared`; all else is
  derived here.
  """

  def init(self, params: Any, num_steps: int | None = None) -> State:
    """Snaps the parameters to the grid and makes empty buffers.

    Args:
      params: a pytree of floating-point arrays.
      num_steps: how many steps the buffers must hold; by default the length
        of the hyperparameters' step axis, else 1000.

    Raises:
      ValueError: a parameter is not floating point or exceeds its grid, or a
        factor has no inverse.
    """
    check_params(self.role(PARAMS), params)
    params = refuse_derivative(params, NO_DERIVATIVE.format("optimizer.init"))
    steps = self.num_steps() or DEFAULT_STEPS
    steps = steps if num_steps is None else num_steps
    if steps < 0:
      raise ValueError(f"num_steps={steps}; a run has zero steps or more.")
    dynamics = self.resolve(params, steps)
    spills = dynamics.spills()
    arrays, structure = jax.tree.flatten(params)
    dtypes = tuple(jnp.asarray(array).dtype for array in arrays)
    return State(
      count=jnp.zeros((), jnp.int32),
      leaves=dynamics.begin(dynamics.pack(arrays), spills, steps),
      schedules=spills.schedules,
      steps=steps,
      structure=structure,
      dtypes=dtypes,
      packing=dynamics.packing,
    )

  def forward(self, state: State, grad_fn: Callable[[Any], Any]) -> State:
    """One step.

    Args:
      state: of `init`, or of a step before.
      grad_fn: parameters -> gradients of the same structure.

    Raises:
      ValueError: the gradients are not like the parameters.
    """
    dynamics, state = self._constant(state, "optimizer.forward")
    return self.advance(state, self.gradients(dynamics, state, grad_fn))

  def advance(self, state: State, gradients: list, settle: Any = None) -> State:
    """One step, with the gradients that it consumes.

    Args:
      state: before it.
      gradients: packed.
      settle: see `Dynamics.forward`.
    """
    dynamics, state = self._constant(state, "optimizer.forward")
    gradients = refuse_derivative(
      gradients, NO_DERIVATIVE.format("optimizer.forward")
    )
    # A step that the buffers have no room for must not look like one.
    gradients = [
      jnp.where(state.count < state.steps, g, jnp.nan) for g in gradients
    ]
    leaves = dynamics.forward(
      state.leaves, gradients, state.count, state.schedules, settle
    )
    return state.replace(count=state.count + 1, leaves=leaves)

  def inverse(self, state: State, grad_fn: Callable[[Any], Any]) -> State:
    """The state before a step, bit for bit.

    `grad_fn` must compute the bits that it computed in `forward`: compile the
    two alike, and give both the same batch, devices and threads.
    """
    before = self.undo_update(state)
    dynamics, before = self._constant(before, "optimizer.inverse")
    return self.undo_increments(
      before, self.gradients(dynamics, before, grad_fn)
    )

  def undo_update(self, state: State, settle: Any = None) -> State:
    """The first half of `inverse`: equation (2) undone, parameters restored."""
    dynamics, state = self._constant(state, "optimizer.inverse")
    step = state.count - 1
    check_factors(dynamics, state.schedules, step)
    leaves = dynamics.undo_update(state.leaves, step, state.schedules, settle)
    return state.replace(count=step, leaves=leaves)

  def undo_increments(
    self, state: State, gradients: list, settle: Any = None
  ) -> State:
    """The second half: equation (1) undone, with the gradients consumed."""
    dynamics, state = self._constant(state, "optimizer.inverse")
    gradients = refuse_derivative(
      gradients, NO_DERIVATIVE.format("optimizer.inverse")
    )
    # There is nothing before the first step.
    gradients = [jnp.where(state.count >= 0, g, jnp.nan) for g in gradients]
    leaves = dynamics.undo_increments(
      state.leaves, gradients, state.count, state.schedules, settle
    )
    leaves = dynamics.erase(leaves, state.count, state.schedules)
    return state.replace(leaves=leaves)

  def params(self, state: State) -> Any:
    """The parameters as floats of their own types.

    NaN where a value or a gradient left its grid at any time: `check` tells
    which and what to do.
    """
    dynamics = self.resolve_for(state)
    views = dynamics.views(state.leaves)
    return refuse_derivative(
      state.shown(views),
      NO_DERIVATIVE.format("optimizer.params"),
      dynamics.hyperparameters,
      state.witness,
    )

  def average_params(self, state: State) -> Any:
    """The average of the parameters after each step, see `averaged`.

    Divided by the sum of its weights (Kingma & Ba 2015, Section 7.2), so that
    it is an average from the first step on; NaN before it, and where the
    parameters are.

    Raises:
      ValueError: the optimizer keeps no average.
    """
    dynamics, state = self._constant(state, "optimizer.average_params")
    if not dynamics.keeps_average:
      raise ValueError(
        "this optimizer keeps no average; use revmom.averaged(optimizer, rho)."
      )
    raw = dynamics.averages(state.leaves, state.schedules, state.count)
    weights = dynamics.average_weights(state.count)
    return state.shown(
      [a / w.astype(a.dtype) for a, w in zip(raw, weights, strict=True)]
    )

  def log_det(self, state: State) -> jax.Array:
    """log|det ds_k/ds_0| of the k steps taken: the sum of all log factors.

    For heavy-ball momentum without decay this is k D log(beta), D being the
    number of parameters: the update is a shear and contributes nothing.
    """
    dtype = jnp.result_type(float)
    total = compensated.zero(dtype)
    for shape, factor in zip(
      state.packing.shapes, self.log_factors(state), strict=True
    ):
      total = total.plus(factor.astype(dtype).times(math.prod(shape)))
    return total.total

  def log_factors(self, state: State) -> list[compensated.Sum]:
    """log|det| of each parameter array, for one of its elements.

    `log_det` is the sum of these times the sizes of the arrays; the sums are
    in twice the precision of the integers' floats.
    """
    factors = self.resolve_for(state).log_factors(state.count)
    return state.packing.each(factors)

  def check(self, state: State) -> None:
    """Raises if any value left its grid in any step up to this state.

    Raises:
      ValueError: naming the parameter array, its shape and the remedy.
    """
    check_in_range(state, self.resolve_for(state))

  def resolve(
    self, params: Any, steps: int, packing: Packing | None = None
  ) -> Dynamics:
    """The dynamics of a run; hyperparameters differentiate through it."""
    return resolve(self, params, steps, packing)

  def resolve_for(self, state: State) -> Dynamics:
    """The dynamics of the run that a state belongs to."""
    return self.resolve(state.like_params(), state.steps, state.packing)

  def _constant(self, state: State, what: str) -> tuple[Dynamics, State]:
    """The dynamics of a state, neither of which may be differentiated."""
    dynamics = self.resolve_for(state)
    check_slots(dynamics, state.leaves)
    message = NO_DERIVATIVE.format(what)
    values = refuse_derivative(dynamics.hyperparameters, message)
    return dynamics.replace(hyperparameters=values), refuse_derivative(
      state, message
    )

  def gradients(
    self, dynamics: Dynamics, state: State, grad_fn: Callable[[Any], Any]
  ) -> list[jax.Array]:
    """The gradients that a step consumes, packed."""
    views = dynamics.views(state.leaves)
    params = lax.optimization_barrier(state.as_params(views))
    gradients = lax.optimization_barrier(grad_fn(params))
    check_like("gradients", gradients, params)
    packed = dynamics.pack(jax.tree.leaves(gradients))
    packed = [g.astype(d) for g, d in zip(packed, dynamics.dtypes, strict=True)]
    thresholds = dynamics.thresholds(state.count)
    return consumed(
      self.preprocess,
      state.structure,
      state.packing,
      packed,
      views,
      thresholds,
      state.count,
    )

  def update(self, *args: Any, **kwargs: Any) -> NoReturn:
    """Not what it is in optax.

    Raises:
      ValueError: always, with the right call.
    """
    raise ValueError(
      "a reversible optimizer has no `update`: its steps change integers.  "
      "Take one by state = optimizer.forward(state, grad_fn), or use "
      "revmom.as_optax(optimizer), which has optax's init and update."
    )


def check_optimizer(where: str, optimizer: Any) -> None:
  """Raises ValueError for what is no reversible optimizer.

  Args:
    where: it was given, for the message.
    optimizer: anything.
  """
  if isinstance(optimizer, ReversibleOptimizer):
    return
  own = getattr(optimizer, "optimizer", None)
  if isinstance(own, ReversibleOptimizer):
    raise ValueError(
      f"{where} got as_optax(optimizer); pass the optimizer itself, here a "
      f"revmom {type(own).__name__}."
    )
  if isinstance(optimizer, optax.GradientTransformation):
    raise ValueError(
      f"{where} got an optax transformation, whose steps can't be undone.  Use "
      "the revmom optimizer of the same name and arguments: revmom.adamw for "
      "optax.adamw, and likewise sgd (with a momentum), adam, adagrad, rmsprop "
      "and muon; revmom.partition for optax.partition.  Transformations of "
      "gradients without a state are given to revmom.preprocessed."
    )
  raise ValueError(
    f"{where} got {optimizer!r} as its optimizer; build one with revmom.sgd, "
    "revmom.adamw or another of revmom's optimizers."
  )
