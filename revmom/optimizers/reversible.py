"""One step of an optimizer as a bijection.

Every optimizer that changes its slots z_1, ..., z_n and the parameters theta
in turn,

    z_k'   = rho_k z_k + phi_k(g(theta), z_1', ..., z_{k-1}'),          (1)
    theta' = rho_theta theta + u(z_1', ..., z_n'),                      (2)

is a step of `revmom.steps.equations`: going back, theta comes first, so that
the gradient is known when the slots are undone.

An optimizer states phi, u and the factors; all else is derived here.
"""

import dataclasses
import math
from collections.abc import Callable, Mapping
from typing import Any, ClassVar, NoReturn, Self

import jax
import jax.numpy as jnp
import optax
from jax import lax

from revmom.exact import compensated
from revmom.exact.pytree import is_static, static
from revmom.exact.refusal import refuse_derivative
from revmom.optimizers import hyperparameters
from revmom.optimizers.checks import (
  check_factors,
  check_like,
  check_params,
  check_slots,
)
from revmom.optimizers.dynamics import Dynamics
from revmom.optimizers.gradients import consumed
from revmom.optimizers.packing import Packing
from revmom.optimizers.resolve import resolve
from revmom.optimizers.slot import AVERAGE, PARAMS, Slot
from revmom.optimizers.state import State, check_in_range
from revmom.steps.equations import Equations
from revmom.steps.leaf import Role

DEFAULT_STEPS = 1000
NO_DERIVATIVE = (
  "{} computes on integers, through which every derivative would be zero.  "
  "Differentiate revmom.train instead: the params, average and losses of its "
  "result have exact derivatives with respect to the optimizer, the "
  "parameters, the batches and args.  Where no derivative is meant, pass "
  "jax.lax.stop_gradient of the arguments."
)


class ReversibleOptimizer(Equations, kw_only=True):
  """A reversible optimizer, as a pytree of its hyperparameters.

  A subclass declares its hyperparameters as fields, equation (1) as a table of
  slots, and equation (2) as `displacement`.  Each is written for one parameter
  array at one step: there the hyperparameters are scalars.

  Attributes:
    slots: equation (1) of each slot, in the order in which a step changes them.
    elementwise: whether phi and u of an element depend on nothing but its own
      gradient and slots, so that small arrays may be packed into one.
    roles: the slots, the parameters and their average with their grids.
    learning_rate, weight_decay: theta is multiplied by one minus their product
      in every step; without a weight decay it is not.
    clip: see `revmom.clipped`; None is no limit.
    average: factor rho of an average of the parameters, see `revmom.averaged`.
    preprocess: see `revmom.preprocessed`.
    shown_bits: fraction bits of the floats that the parameters are shown as,
      where their low bits are to stay hidden in the state; None shows all.
  """

  slots: ClassVar[tuple[Slot, ...]] = ()
  elementwise: ClassVar[bool] = False

  learning_rate: Any = None
  weight_decay: Any = None
  clip: Any = None
  average: Any = None
  preprocess: optax.GradientTransformation | None = static(default=None)
  shown_bits: int | None = static(default=None)

  def displacement(
    self, slots: dict[str, jax.Array], step: jax.Array
  ) -> jax.Array:
    """u, equation (2): what is added to the parameters."""
    raise NotImplementedError

  # What `revmom.steps.equations` asks for.

  @property
  def early(self) -> tuple[Role, ...]:
    return self.before(PARAMS)

  def forgetting(self, step: jax.Array) -> dict[str, jax.Array]:
    factors = {}
    for slot in self.slots:
      if slot.decay is not None:
        factors[slot.name] = 1 - self.value(slot.decay)
      elif slot.fine:  # its buffer holds what is below its grid
        factors[slot.name] = jnp.zeros((), self.learning_rate.dtype)
    if self.weight_decay is not None:
      factors[PARAMS] = self.learning_rate * self.weight_decay
    if self.average is not None:
      factors[AVERAGE] = 1 - self.average
    return factors

  def increment(
    self, name: str, given: Any, values: dict[str, jax.Array], step: jax.Array
  ) -> jax.Array:
    if name == AVERAGE:
      return (1 - self.average) * values[PARAMS]
    if name == PARAMS:
      return self.displacement(values, step)
    (slot,) = (slot for slot in self.slots if slot.name == name)
    return slot.increment(self, given, values, step)

  def contracts(self, name: str) -> bool:
    return not self.elementwise

  # What follows from them.

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
    gradients = refuse_derivative(
      self.gradients(dynamics, state, grad_fn),
      NO_DERIVATIVE.format("optimizer.forward"),
    )
    # A step that the buffers have no room for must not look like one.
    gradients = [
      jnp.where(state.count < state.steps, g, jnp.nan) for g in gradients
    ]
    leaves = dynamics.forward(
      state.leaves, gradients, state.count, state.schedules
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

  def undo_update(self, state: State) -> State:
    """The first half of `inverse`: equation (2) undone, parameters restored."""
    dynamics, state = self._constant(state, "optimizer.inverse")
    step = state.count - 1
    check_factors(dynamics, state.schedules, step)
    leaves = dynamics.undo_update(state.leaves, step, state.schedules)
    return state.replace(count=step, leaves=leaves)

  def undo_increments(self, state: State, gradients: list) -> State:
    """The second half: equation (1) undone, with the gradients consumed."""
    dynamics, state = self._constant(state, "optimizer.inverse")
    gradients = refuse_derivative(
      gradients, NO_DERIVATIVE.format("optimizer.inverse")
    )
    # There is nothing before the first step.
    gradients = [jnp.where(state.count >= 0, g, jnp.nan) for g in gradients]
    leaves = dynamics.undo_increments(
      state.leaves, gradients, state.count, state.schedules
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

  @property
  def floors(self) -> dict[str, float]:
    """The smallest factor of each role that buffers have room for if traced."""
    return {r.name: r.floor for r in self.roles if r.floor is not None}

  def with_floors(self, floors: Mapping[str, float]) -> Self:
    """The optimizer, with room for smaller factors; none is raised.

    >>> import revmom
    >>> revmom.sgd(0.1, 0.9).with_floors({"velocity": 0.5}).floors
    {'velocity': 0.5}
    """

    def lower(role: Role) -> Role:
      if role.floor is None:
        return role
      lowest = min(role.floor, floors.get(role.name, role.floor))
      return role._replace(floor=lowest)

    return self.replace(roles=tuple(map(lower, self.roles)))

  # Machinery shared with the drivers of whole runs.

  def hyperparameters(self) -> dict[str, Any]:
    """The fields that are hyperparameters and in use."""
    values = {
      field.name: getattr(self, field.name)
      for field in dataclasses.fields(self)
      if not is_static(field)
    }
    return {name: v for name, v in values.items() if v is not None}

  def value(self, name: str) -> Any:
    """One of the hyperparameters, by its name."""
    return getattr(self, name)

  def with_values(self, values: dict[str, Any]) -> "ReversibleOptimizer":
    """The optimizer with other values of some of its hyperparameters."""
    return self.replace(**values)

  def num_steps(self) -> int | None:
    """The length of the hyperparameters' step axis, if one has it."""
    return hyperparameters.num_steps(self.hyperparameters())

  def resolve(
    self, params: Any, steps: int, packing: Packing | None = None
  ) -> Dynamics:
    """The dynamics of a run; hyperparameters differentiate through it."""
    return resolve(self, params, steps, packing)

  def parts(self, params: Any) -> tuple[list[tuple[Any, list[int]]], dict]:
    """(optimizer, its leaves) of each part, and what concerns all leaves."""
    everything = list(range(len(jax.tree.leaves(params))))
    shared = {} if self.clip is None else {"clip": self.clip}
    return [(self.replace(clip=None), everything)], shared

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
      "gradients without a state, such as clipping, go into its `preprocess`."
    )
  raise ValueError(
    f"{where} got {optimizer!r} as its optimizer; build one with revmom.sgd, "
    "revmom.adamw or another of revmom's optimizers."
  )
