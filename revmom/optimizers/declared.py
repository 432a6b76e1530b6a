"""What an optimizer declares: its equations and its choices.

Every optimizer that changes its slots z_1, ..., z_n and the parameters theta
in turn,

    z_k'   = rho_k z_k + phi_k(g(theta), z_1', ..., z_{k-1}'),          (1)
    theta' = rho_theta theta + u(z_1', ..., z_n'),                      (2)

is a step of `revmom.steps.equations`: going back, theta comes first, so that
the gradient is known when the slots are undone.
"""

import dataclasses
from collections.abc import Mapping
from typing import Any, ClassVar, Self

import jax
import jax.numpy as jnp
import optax

from revmom.exact.fence import fence
from revmom.exact.pytree import is_static, static
from revmom.optimizers import hyperparameters
from revmom.optimizers.slot import AVERAGE, PARAMS, Slot
from revmom.steps.equations import Equations
from revmom.steps.leaf import Role


def correction_of(factor: str) -> str:
  """The name of what a moving average is corrected by, as a hyperparameter."""
  return f"correction by {factor}"


class Declared(Equations, kw_only=True):
  """The equations of an optimizer, as a pytree of its hyperparameters.

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
    corrections: of moving averages, if they were computed before the run; see
      `correction`.
    average: factor rho of an average of the parameters, see `revmom.averaged`.
    preprocess: see `revmom.preprocessed`.
    shown_bits: fraction bits of the floats that the parameters are shown as,
      where their low bits are to stay hidden in the state; None shows all.
  """

  slots: ClassVar[tuple[Slot, ...]] = ()
  elementwise: ClassVar[bool] = False
  corrected: ClassVar[tuple[str, ...]] = ()  # that `correction` is asked for

  learning_rate: Any = None
  weight_decay: Any = None
  clip: Any = None
  average: Any = None
  corrections: dict[str, Any] | None = None
  preprocess: optax.GradientTransformation | None = static(default=None)
  shown_bits: int | None = static(default=None)

  def displacement(
    self, slots: dict[str, jax.Array], step: jax.Array
  ) -> jax.Array:
    """u, equation (2): what is added to the parameters."""
    raise NotImplementedError

  def correction(self, factor: str, step: jax.Array) -> jax.Array:
    """1 / (1 - rho^(step + 1)): one over the weights in a moving average.

    A number to multiply with, since a compiler may or may not make one of a
    quotient.
    """
    if self.corrections is not None:
      return self.corrections[factor]
    rho = self.value(factor)
    # A power may end in a product, which must not be fused with the difference.
    power = fence(rho ** (step + 1).astype(rho.dtype), step)
    return fence(1 / (1 - power), step)

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

  # What the drivers of whole runs ask for.

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
    for factor, correction in (self.corrections or {}).items():
      if name == correction_of(factor):
        return correction
    return getattr(self, name)

  def with_values(self, values: dict[str, Any]) -> Self:
    """The optimizer with other values of some of its hyperparameters."""
    own = dict(values)
    corrections = {
      factor: own.pop(correction_of(factor))
      for factor in self.corrected
      if correction_of(factor) in own
    }
    if corrections:
      own["corrections"] = corrections
    return self.replace(**own)

  def num_steps(self) -> int | None:
    """The length of the hyperparameters' step axis, if one has it."""
    return hyperparameters.num_steps(self.hyperparameters())

  def parts(self, params: Any) -> tuple[list[tuple[Any, list[int]]], dict]:
    """(optimizer, its leaves) of each part, and what concerns all leaves."""
    everything = list(range(len(jax.tree.leaves(params))))
    shared = {} if self.clip is None else {"clip": self.clip}
    return [(self.replace(clip=None), everything)], shared
