"""A run one step at a time, for Python loops over a data iterator."""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from revmom.exact.refusal import refuse_derivative
from revmom.exact.residue import Bits
from revmom.optimizers.checks import check_like
from revmom.optimizers.reversible import (
  NO_DERIVATIVE,
  ReversibleOptimizer,
  check_optimizer,
)
from revmom.training import one_step
from revmom.training.beginning import check_numbers
from revmom.training.lengths import check_arrays
from revmom.training.model import Model, Outputs
from revmom.training.one_step import Cotangents
from revmom.training.receipt import Receipt
from revmom.training.stepper_state import StepperState, begin, receipt_of


class Gradients(NamedTuple):
  """What `Stepper.gradients` returns."""

  optimizer: Any  # an optimizer of derivatives
  params: Any  # of those at the step that was gone back to
  args: tuple  # None for what is no float
  model_state: Any  # likewise, there


class Stepper:
  """Takes and undoes steps outside of any compiled loop.

  A function compiled inside a scan may differ in its last bits from the same
  function compiled on its own, so a run is reversed by what made it: both
  directions call one compiled gradient.  A step uses the state up that it is
  given (its memory is donated), so that it costs the same however long the run
  is; keep one by jax.tree.map(jnp.copy, state), or save it.

  Whatever is undone is compared with what was there: if a batch was another,
  say, the parameters become NaN, and `check` names the step.

  >>> import jax.numpy as jnp, revmom
  >>> loss_fn = lambda x, batch: jnp.sum(jnp.cos(x - batch))
  >>> data = [jnp.full(2, float(i)) for i in range(20)]
  >>> stepper = revmom.Stepper(loss_fn, revmom.sgd(0.1, 0.9))
  >>> state = stepper.init(jnp.zeros(2), num_steps=20)
  >>> for batch in data:
  ...   state, loss = stepper.forward(state, batch)
  >>> for batch in data[::-1]:
  ...   state, loss = stepper.inverse(state, batch)
  >>> stepper.check(state)
  >>> print(stepper.params(state))
  [0. 0.]
  """

  def __init__(
    self,
    loss_fn: Callable[..., Any],
    optimizer: ReversibleOptimizer,
    *,
    has_aux: bool = False,
    model_state: Any = None,
    checksum_every: int = 1,
    residue_bits: Bits = 0,
  ):
    """Compiles nothing yet.

    Args:
      loss_fn: (params, batch, *args) -> scalar, or what `revmom.train` takes
        with `has_aux` or `model_state`.
      optimizer: such as `revmom.adamw`; concrete, not traced.
      has_aux: whether the loss returns something beside it; then steps return
        (loss, aux) in the loss's place.
      model_state: before the first step; see `revmom.train`.
      checksum_every: steps between the checksums that what is undone is
        compared with.  One costs a pass over the integers, and 8 bytes.
      residue_bits: see `revmom.train`.

    Raises:
      ValueError: the optimizer is none of revmom's, or a number out of range.
    """
    check_optimizer("Stepper", optimizer)
    check_numbers(checksum_every, residue_bits)
    self.optimizer = optimizer
    self._model = Model(loss_fn, has_aux, model_state)
    self._checks = checksum_every, residue_bits
    bound = lambda function: functools.partial(function, optimizer)
    self._gradient = jax.jit(jax.value_and_grad(self._loss, has_aux=True))
    self._here = jax.jit(bound(one_step.at))
    self._forward = jax.jit(bound(one_step.forward), donate_argnums=0)
    self._undo_update = jax.jit(bound(one_step.undo_update))
    self._undo_increments = jax.jit(
      bound(one_step.undo_increments), donate_argnums=0
    )
    self._backward = jax.jit(
      functools.partial(one_step.backward, optimizer, self._model),
      donate_argnums=(0, 1),
      static_argnames="wants_batch",
    )
    self._receipt = jax.jit(receipt_of)

  def init(self, params: Any, num_steps: int | None = None) -> StepperState:
    """See `ReversibleOptimizer.init`."""
    state = self.optimizer.init(params, num_steps)
    dynamics = self.optimizer.resolve_for(state)
    return begin(state, dynamics, self._model, *self._checks)

  def params(self, state: StepperState) -> Any:
    """See `ReversibleOptimizer.params`."""
    return self.optimizer.params(state)

  def model_state(self, state: StepperState) -> Any:
    """The model's state there, of the form in which it was given."""
    return self._model.as_state(state.model)

  def forward(
    self, state: StepperState, batch: Any, *args: Any
  ) -> tuple[StepperState, Any]:
    """One step; the loss is that before it.  The state given is used up."""
    batch, args = self._constant((batch, args))
    out, gradients = self._at(self._here(state), batch, args)
    return self._forward(state, gradients, out.state), self._shown(out)

  def inverse(
    self, state: StepperState, batch: Any, *args: Any
  ) -> tuple[StepperState, Any]:
    """The state before the last step, which had this batch, and its loss.

    The state given is used up.
    """
    batch, args = self._constant((batch, args))
    between, _, there = self._undo_update(state)
    out, gradients = self._at(there, batch, args)
    state = self._undo_increments(state, between, there[1], gradients)
    return state, self._shown(out)

  def receipt(self, state: StepperState) -> Receipt:
    """Whether all steps that were undone were undone exactly.

    `ok` is true of a state that has only gone forward, too, unless its integers
    were changed in between.
    """
    return self._receipt(state)

  def check(self, state: StepperState) -> None:
    """Raises unless all that was undone is what it was.

    Raises:
      RuntimeError: naming the step.
      ValueError: a value left its grid.
    """
    receipt = self.receipt(state)
    if not bool(receipt.in_range):
      self.optimizer.check(state)
    if not bool(receipt.ok):
      step = int(receipt.diverged_at)
      step = int(state.count) if step < 0 else step
      raise RuntimeError(
        f"the integers at step {step} are not those that were there: a step "
        "after it was undone with another batch, other arguments or another "
        "optimizer than it was taken with, its gradient was not recomputed "
        "bit for bit (residue_bits=2 forgives other rounding), or the state "
        "was changed."
      )

  def cotangents(
    self,
    state: StepperState,
    params_bar: Any,
    *args: Any,
    model_state_bar: Any = None,
  ) -> Cotangents:
    """Where `backward` starts: the derivatives of something after the run.

    Args:
      state: after the last step.
      params_bar: its gradient with respect to `params(state)`.
      *args: of the loss: those that the steps had.
      model_state_bar: with respect to `model_state(state)`.

    Raises:
      ValueError: a gradient is not like what it is of.
    """
    like = state.like_params()
    check_like("gradients", params_bar, like)
    model_bar = None
    if model_state_bar is not None:
      check_like("gradients", model_state_bar, self.model_state(state))
      model_bar = jax.tree.leaves(model_state_bar)
    return one_step.first_cotangents(
      self.optimizer, state, params_bar, model_bar, args
    )

  def backward(
    self,
    state: StepperState,
    cotangents: Cotangents,
    batch: Any,
    *args: Any,
    loss_bar: Any = None,
    batch_bar: bool = False,
  ) -> tuple[StepperState, Cotangents, Any]:
    """Undoes the last step, as `inverse` does, and pulls derivatives back.

    Derivatives are those that `jax.grad` of `revmom.train` computes: exact ones
    of the steps on their grid, and NaN where the reversal is not exact, which
    `check` explains, or where the cotangents are those of another step.

    Args:
      state: after the step; it is used up, and so are the cotangents.
      cotangents: of `Stepper.cotangents`, or of the step after this one.
      batch: the batch of the step.
      *args: further arguments of the loss, as the step had them.
      loss_bar: the derivative with respect to the step's own loss, if that
        matters.
      batch_bar: whether the derivatives of the batch are wanted.

    Returns:
      The state before the step, the cotangents there, and the derivatives of
      the batch: None for what is no float, or if they are not wanted.
    """
    batch, args = self._constant((batch, args))
    structure: Any = jax.tree.structure(args)
    if structure != cotangents.structure:
      raise ValueError(
        f"backward got args {structure}, but `cotangents` had "
        f"{cotangents.structure}; give both those that the steps had."
      )
    _, words, there = self._undo_update(state)
    out, gradients = self._at(there, batch, args)
    if loss_bar is not None:
      loss_bar = jnp.asarray(loss_bar, out.value.dtype)
    return self._backward(
      state, cotangents, words, batch, args, out, gradients, loss_bar,
      wants_batch=batch_bar,
    )  # fmt: skip

  def gradients(self, state: StepperState, cotangents: Cotangents) -> Gradients:
    """Derivatives with respect to all that the steps depended on.

    Args:
      state: that of `backward`.
      cotangents: likewise.
    """
    dynamics = self.optimizer.resolve_for(state)
    like, packing = state.like_params(), state.packing
    floats = jax.tree.map(
      lambda leaf: jnp.asarray(leaf, jnp.result_type(leaf, float)),
      self.optimizer,
    )
    values = lambda optimizer: (
      optimizer.resolve(like, state.steps, packing).hyperparameters
    )
    optimizer_bar = jax.vjp(values, floats)[1](cotangents.hyperparameters)[0]
    views_bar = [dynamics.view_bar(own) for own in cotangents.leaves]
    return Gradients(
      optimizer=optimizer_bar,
      params=state.as_params(views_bar),
      args=cotangents.structure.unflatten(cotangents.args),
      model_state=self._model.structure.unflatten(cotangents.model),
    )

  def _constant(self, inputs: tuple[Any, tuple]) -> Any:
    for name, tree in zip(("batch", "args"), inputs, strict=True):
      check_arrays(name, tree)
    return refuse_derivative(inputs, NO_DERIVATIVE.format("revmom.Stepper"))

  def _loss(self, params: Any, model_state: list, batch: Any, args: tuple):
    out = self._model(params, model_state, batch, *args)
    return out.value, out

  def _at(self, here: tuple[Any, list], batch: Any, args: tuple) -> Any:
    """What the loss gives, and its gradients: one program both ways."""
    (_, out), gradients = self._gradient(*here, batch, args)
    return out, gradients

  def _shown(self, out: Outputs) -> Any:
    if not self._model.has_aux:
      return out.value
    return out.value, self._model.as_aux(out.aux)
