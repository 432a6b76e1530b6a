"""A reversible optimizer as an optax transformation."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax

from revmom.exact.refusal import refuse_derivative
from revmom.optimizers import hyperparameters
from revmom.optimizers.leaf import PARAMS
from revmom.optimizers.reversible import (
  NO_DERIVATIVE,
  ReversibleOptimizer,
  check_optimizer,
)
from revmom.optimizers.state import State


class ReversibleTransformation(optax.GradientTransformationExtraArgs):
  """An optax transformation with its inverse beside it.

  Attributes:
    init: params -> state.
    update: (gradients, state, params) -> (updates, state).
    inverse: (grad_fn, state) -> (params, state), those before the last update.
    params: state -> the parameters of a state.
    optimizer: the reversible optimizer behind it.
  """

  inverse: Callable[[Callable[[Any], Any], State], tuple[Any, State]]
  params: Callable[[State], Any]
  optimizer: ReversibleOptimizer

  def __new__(cls, init, update, inverse, params, optimizer):
    self = super().__new__(cls, init, update)
    self.inverse, self.params, self.optimizer = inverse, params, optimizer
    return self


def as_optax(
  optimizer: ReversibleOptimizer, num_steps: int | None = None
) -> ReversibleTransformation:
  """An optax transformation that `optax.apply_updates` can't make inexact.

  Floats are shown to the user on a grid coarse enough that they, and the
  differences of any two, are float32 numbers exactly: `p + (q - p)` is `q`.
  The state keeps the lower bits.  With the default int32 and 24 fraction bits
  the shown grid has 18: 2^-18 apart, up to 64.

  Start from `params = transformation.params(transformation.init(params))`,
  which snaps them to the grid.  Nothing may change the updates on their way;
  give stateless transformations of gradients as the optimizer's `preprocess`.

  Args:
    optimizer: such as `revmom.adamw`.
    num_steps: that the buffers must hold; see `ReversibleOptimizer.init`.

  Returns:
    A `ReversibleTransformation`.

  Raises:
    ValueError: from `init` if parameters have another type than float32
      (float64 for int64), from `update` if `params` are not those of the
      state; where that can't be known because they are traced, the updates
      are NaN.

  >>> import revmom
  >>> gradient = jax.jit(jax.grad(lambda x: jnp.sum(jnp.cos(x))))
  >>> transformation = revmom.as_optax(revmom.sgd(0.1, 0.9), num_steps=50)
  >>> state = transformation.init(jnp.array([0.3, -1.2]))
  >>> params = start = transformation.params(state)
  >>> for _ in range(50):
  ...   updates, state = transformation.update(gradient(params), state, params)
  ...   params = optax.apply_updates(params, updates)
  >>> for _ in range(50):
  ...   params, state = transformation.inverse(gradient, state)
  >>> bool((params == start).all())
  True
  """
  check_optimizer("as_optax", optimizer)
  # The largest integer has `span` bits; a float's mantissa holds fewer.
  wide = jnp.dtype(optimizer.integer).itemsize == 8
  dtype = jnp.dtype("float64" if wide else "float32")
  span = 62 if wide else 30
  mantissa = 53 if wide else 24
  bits = dict(optimizer.fraction_bits)[PARAMS]
  optimizer = optimizer.replace(shown_bits=bits - (span - mantissa))

  def init(params: Any) -> State:
    for path, leaf in jax.tree.leaves_with_path(params):
      if jnp.result_type(leaf) != dtype:
        raise ValueError(
          f"the parameter array {jax.tree_util.keystr(path) or 'params'} is "
          f"{jnp.result_type(leaf)}; apply_updates is exact on a grid of "
          f"{dtype} numbers only, so cast it."
        )
    return optimizer.init(params, num_steps)

  def update(gradients: Any, state: State, params: Any = None, **extra: Any):
    del extra
    if params is None:
      raise ValueError(
        "update got no params; pass transformation.update(gradients, state, "
        "params), which must be the parameters of the state."
      )
    gradients, params = refuse_derivative(
      (gradients, params), NO_DERIVATIVE.format("as_optax(...).update")
    )
    same = jax.tree.map(
      lambda given, own: jnp.all((given == own) | jnp.isnan(own)),
      params,
      optimizer.params(state),
    )
    same = jnp.all(jnp.stack(jax.tree.leaves(same)))
    known = hyperparameters.concrete(same)
    if known is not None and not known:
      raise ValueError(
        "params are not those of the state; start from "
        "transformation.params(state), and let nothing but "
        "optax.apply_updates change them."
      )
    state = optimizer.forward(state, lambda _: gradients)
    updates = jax.tree.map(
      lambda new, old: jnp.where(same, new - old, jnp.nan),
      optimizer.params(state),
      params,
    )
    return updates, state

  def inverse(grad_fn: Callable[[Any], Any], state: State):
    state = optimizer.inverse(state, grad_fn)
    return optimizer.params(state), state

  return ReversibleTransformation(
    init, update, inverse, optimizer.params, optimizer
  )
