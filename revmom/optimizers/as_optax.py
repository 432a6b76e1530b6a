"""A reversible optimizer as an optax transformation."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax

from revmom.exact.refusal import refuse_derivative
from revmom.exact.tracing import concrete
from revmom.optimizers.checks import check_like, check_params
from revmom.optimizers.reversible import (
  NO_DERIVATIVE,
  ReversibleOptimizer,
  check_optimizer,
)
from revmom.optimizers.slot import PARAMS
from revmom.optimizers.state import State


class ReversibleTransformation(optax.GradientTransformationExtraArgs):
  """An optax transformation with its inverse beside it.

  Attributes:
    init: params -> state.
    update: (gradients, state, params) -> (updates, state).
    inverse: (state, grad_fn) -> (params, state), those before the last update.
    params: state -> the parameters of a state.
    optimizer: the reversible optimizer behind it.
  """

  inverse: Callable[[State, Callable[[Any], Any]], tuple[Any, State]]
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
  give stateless transformations of gradients to `revmom.preprocessed`.

  It works in `flax.nnx.Optimizer` and Linen's `TrainState`, too.
  `optax.tree.map_params` doesn't know the arrays of the state, in which small
  parameters are packed together; map over `state.leaves`.

  Args:
    optimizer: such as `revmom.adamw`.
    num_steps: that the buffers must hold; see `ReversibleOptimizer.init`.

  Returns:
    A `ReversibleTransformation`.

  Raises:
    ValueError: `optimizer` is none of revmom's; from `init` if parameters
      have another type than float32 (float64 for int64), from `update` if
      `params` are not those of the state; where that can't be known because
      they are traced, the updates are NaN.

  >>> import revmom
  >>> gradient = jax.jit(jax.grad(lambda x: jnp.sum(jnp.cos(x))))
  >>> transformation = revmom.as_optax(revmom.sgd(0.1, 0.9), num_steps=50)
  >>> state = transformation.init(jnp.array([0.3, -1.2]))
  >>> params = start = transformation.params(state)
  >>> for _ in range(50):
  ...   updates, state = transformation.update(gradient(params), state, params)
  ...   params = optax.apply_updates(params, updates)
  >>> for _ in range(50):
  ...   params, state = transformation.inverse(state, gradient)
  >>> bool((params == start).all())
  True
  """
  check_optimizer("as_optax", optimizer)
  # The largest integer has `span` bits; a float's mantissa holds fewer.
  role = optimizer.role(PARAMS)
  wide = role.integer.itemsize == 8
  dtype = jnp.dtype("float64" if wide else "float32")
  span = 62 if wide else 30
  mantissa = 53 if wide else 24
  optimizer = optimizer.replace(shown_bits=role.bits - (span - mantissa))

  def init(params: Any) -> State:
    if _is_placeholder(params):
      raise ValueError(
        "optax.tree.map_params can't tell which arrays of the state belong to "
        "which parameters: the state holds integers, in which small arrays "
        "are packed together.  Map over state.leaves instead, as in "
        "state.replace(leaves=jax.tree.map(f, state.leaves))."
      )
    params = _without_variables(params)
    check_params(role, params)
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
    structure: Any = jax.tree.structure(gradients)
    state = _without_variables(state)
    gradients, params = refuse_derivative(
      (
        _like_state("gradients", gradients, state),
        _like_state("params", params, state),
      ),
      NO_DERIVATIVE.format("as_optax(...).update"),
    )
    same = jnp.ones((), bool)
    for given, own in zip(
      jax.tree.leaves(params),
      jax.tree.leaves(optimizer.params(state)),
      strict=True,
    ):
      same = same & jnp.all((given == own) | jnp.isnan(own))
    known = concrete(same)
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
    return structure.unflatten(jax.tree.leaves(updates)), state

  def inverse(state: State, grad_fn: Callable[[Any], Any]):
    state = _without_variables(state)
    gradients = lambda params: _like_state("gradients", grad_fn(params), state)
    state = optimizer.inverse(state, gradients)
    return optimizer.params(state), state

  def params_of(state: State) -> Any:
    return optimizer.params(_without_variables(state))

  return ReversibleTransformation(init, update, inverse, params_of, optimizer)


def _without_variables(tree: Any) -> Any:
  """Arrays instead of the variables that `flax.nnx.Optimizer` makes of them."""
  from flax import nnx  # slow to import

  is_variable = lambda node: isinstance(node, nnx.Variable)
  return jax.tree.map(
    lambda node: node.get_value() if is_variable(node) else node,
    tree,
    is_leaf=is_variable,
  )


def _like_state(name: str, tree: Any, state: State) -> Any:
  """A tree in the containers of the state's parameters.

  `flax.nnx.Optimizer` initialises with other containers than it updates.
  """
  tree = _without_variables(tree)
  names = [
    [jax.tree_util.keystr((key,), simple=True) for key in path]
    for path, _ in jax.tree.leaves_with_path(tree)
  ]
  own = [
    [jax.tree_util.keystr((key,), simple=True) for key in path]
    for path, _ in jax.tree.leaves_with_path(state.like_params())
  ]
  if names == own:
    tree = state.structure.unflatten(jax.tree.leaves(tree))
  check_like(name, tree, state.like_params())
  return tree


def _is_placeholder(params: Any) -> bool:
  """Whether optax asks where the parameters are in a state.

  `optax.tree.map_params` initialises with a node of its own, without leaves.
  """
  ours = type(params).__module__.startswith("optax.")
  return ours and not isinstance(params, tuple) and not jax.tree.leaves(params)
