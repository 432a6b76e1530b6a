"""A run one step at a time, for Python loops over a data iterator."""

from collections.abc import Callable
from typing import Any

import jax

from revmom.exact.refusal import refuse_derivative
from revmom.optimizers.reversible import (
  NO_DERIVATIVE,
  ReversibleOptimizer,
  check_optimizer,
)
from revmom.optimizers.state import State
from revmom.training.problem import check_arrays


class Stepper:
  """Takes and undoes steps outside of any compiled loop.

  A function compiled inside a scan may differ in its last bits from the same
  function compiled on its own, so a run is reversed by what made it: both
  directions call one compiled gradient.  Checkpoint the state wherever you
  like; it is a pytree.

  >>> import jax.numpy as jnp, revmom
  >>> loss_fn = lambda x, batch: jnp.sum(jnp.cos(x - batch))
  >>> data = [jnp.full(2, float(i)) for i in range(20)]
  >>> stepper = revmom.Stepper(loss_fn, revmom.sgd(0.1, 0.9))
  >>> state = start = stepper.init(jnp.zeros(2), num_steps=20)
  >>> for batch in data:
  ...   state, loss = stepper.forward(state, batch)
  >>> for batch in data[::-1]:
  ...   state, loss = stepper.inverse(state, batch)
  >>> all(
  ...   bool((a == b).all())
  ...   for a, b in zip(jax.tree.leaves(state), jax.tree.leaves(start))
  ... )
  True
  """

  def __init__(
    self,
    loss_fn: Callable[..., jax.Array],
    optimizer: ReversibleOptimizer,
  ):
    """Compiles nothing yet.

    Args:
      loss_fn: (params, batch, *args) -> scalar.
      optimizer: such as `revmom.adamw`; concrete, not traced.
    """
    check_optimizer("Stepper", optimizer)
    self.optimizer = optimizer
    self._value_and_grad = jax.jit(jax.value_and_grad(loss_fn))
    self._params = jax.jit(self._float_params)
    self._advance = jax.jit(
      lambda state, gradients: optimizer.forward(state, lambda _: gradients)
    )
    self._undo_update = jax.jit(optimizer.undo_update)
    self._undo_increments = jax.jit(self._consume)

  def init(self, params: Any, num_steps: int | None = None) -> State:
    """See `ReversibleOptimizer.init`."""
    return self.optimizer.init(params, num_steps)

  def params(self, state: State) -> Any:
    """See `ReversibleOptimizer.params`."""
    return self.optimizer.params(state)

  def forward(
    self, state: State, batch: Any, *args: Any
  ) -> tuple[State, jax.Array]:
    """One step; the loss is that before it."""
    batch, args = self._constant((batch, args))
    loss, gradients = self._value_and_grad(self._params(state), batch, *args)
    return self._advance(state, gradients), loss

  def inverse(
    self, state: State, batch: Any, *args: Any
  ) -> tuple[State, jax.Array]:
    """The state before the last step, which had this batch, and its loss."""
    batch, args = self._constant((batch, args))
    state = self._undo_update(state)
    loss, gradients = self._value_and_grad(self._params(state), batch, *args)
    return self._undo_increments(state, gradients), loss

  def _constant(self, inputs: tuple[Any, tuple]) -> Any:
    for name, tree in zip(("batch", "args"), inputs, strict=True):
      check_arrays(name, tree)
    return refuse_derivative(inputs, NO_DERIVATIVE.format("revmom.Stepper"))

  def _float_params(self, state: State) -> Any:
    dynamics = self.optimizer.resolve_for(state)
    return state.as_params(dynamics.views(state.leaves))

  def _consume(self, state: State, gradients: Any) -> State:
    consumed = self.optimizer.gradients(
      self.optimizer.resolve_for(state), state, lambda _: gradients
    )
    return self.optimizer.undo_increments(state, consumed)
