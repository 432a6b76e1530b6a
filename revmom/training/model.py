"""A user's loss in one form, whatever it takes and returns."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from revmom.exact.keys import kind_of_key, with_keys, without_key


class Outputs(NamedTuple):
  """What a loss gives, or the cotangents of that; None has none."""

  value: Any
  state: list[Any]  # the model's, after the step
  aux: list[Any]

  @property
  def witness(self) -> jax.Array:
    """A float [] that needs all of them."""
    total = jnp.sum(self.value)
    for leaf in [*self.state, *self.aux]:
      total = total + jnp.sum(leaf.astype(total.dtype))
    return total


class Model:
  """(params, state, batch, *args) -> `Outputs`, of a loss of any form.

  The state and what is returned beside the loss are lists of arrays here.
  """

  def __init__(
    self, loss_fn: Callable[..., Any], has_aux: bool, model_state: Any
  ):
    """A model of `revmom.train`'s arguments of these names."""
    structure: Any
    self.loss_fn, self.has_aux = loss_fn, has_aux
    self.has_state = model_state is not None
    leaves, structure = jax.tree.flatten(model_state)
    self._keys = [kind_of_key(leaf) for leaf in leaves]
    self.structure = structure
    self.state = [without_key(leaf) for leaf in leaves]
    self.aux_structure: Any = None  # known after the first call
    self._aux_keys: list = []

  def __call__(self, params: Any, state: list, batch: Any, *args: Any) -> Any:
    """Calls the loss, and checks what it gives.

    Raises:
      ValueError: the loss is no scalar, or the state after a step is not like
        the state before it.
    """
    own = [self.as_state(state)] if self.has_state else []
    value, after, aux = self._parts(self.loss_fn(params, *own, batch, *args))
    _check_scalar(value)
    if self.has_state:
      # Made anew, since a loss may use a state up (as Equinox's are).
      _check_state(self.as_state(state), after)
    leaves, self.aux_structure = jax.tree.flatten(aux)
    self._aux_keys = [kind_of_key(leaf) for leaf in leaves]
    return Outputs(
      value,
      [without_key(leaf) for leaf in jax.tree.leaves(after)],
      [without_key(leaf) for leaf in leaves],
    )

  def _parts(self, out: Any) -> tuple[Any, Any, Any]:
    if not self.has_aux and not self.has_state:
      return out, None, None
    wants = "(loss, aux)"
    if self.has_state:
      wants = "(loss, model_state)"
      if self.has_aux:
        wants = "(loss, (model_state, aux))"
    if not (isinstance(out, tuple) and len(out) == 2):
      raise ValueError(
        f"loss_fn returned {_named(out)}; it must return {wants}."
      )
    value, beside = out
    if not self.has_state:
      return value, None, beside
    if not self.has_aux:
      return value, beside, None
    if not (isinstance(beside, tuple) and len(beside) == 2):
      raise ValueError(
        f"loss_fn returned {_named(out)}; it must return {wants}."
      )
    return value, *beside

  def as_state(self, leaves: list) -> Any:
    """The model's state of the user's form."""
    return self.structure.unflatten(with_keys(leaves, self._keys))

  def as_aux(self, leaves: list) -> Any:
    """What the loss returned beside, of the user's form."""
    return self.aux_structure.unflatten(with_keys(leaves, self._aux_keys))


def _named(out: Any) -> Any:
  """What a loss returned, with arrays as their shapes."""
  return jax.tree.map(
    lambda leaf: jax.typeof(leaf) if hasattr(leaf, "dtype") else leaf, out
  )


def _check_scalar(value: Any) -> None:
  shape = getattr(value, "shape", () if isinstance(value, float) else None)
  if shape == () and is_float(value):
    return
  raise ValueError(
    f"loss_fn returned {_named(value)} as its loss, which must be one "
    "floating-point scalar: take a mean or a sum.  What is returned beside it "
    "needs has_aux=True or model_state=."
  )


def _check_state(before: Any, after: Any) -> None:
  expected: Any = jax.tree.structure(before)
  got: Any = jax.tree.structure(after)
  if got != expected:
    raise ValueError(
      f"loss_fn returned the model_state {got}, but it was given {expected}; "
      "return a state of the same structure."
    )
  for (path, old), new in zip(
    jax.tree.leaves_with_path(before), jax.tree.leaves(after), strict=True
  ):
    kinds = [(jnp.result_type(leaf), jnp.shape(leaf)) for leaf in (old, new)]
    if kinds[0] != kinds[1]:
      (old_type, old_shape), (new_type, new_shape) = kinds
      raise ValueError(
        f"model_state{jax.tree_util.keystr(path)} is {old_type}"
        f"{list(old_shape)} before a step, but {new_type}{list(new_shape)} "
        "after it; a state keeps its shapes and types."
      )


def is_float(leaf: Any) -> bool:
  """Whether a leaf has a derivative."""
  return jnp.issubdtype(jnp.result_type(leaf), jnp.inexact)


def shaped(tree: Any) -> Any:
  """The shapes and dtypes of a pytree of arrays, and how they are spread."""
  return jax.eval_shape(lambda tree: jax.tree.map(_strong, tree), tree)


def _strong(array: Any) -> Any:
  """The array, whose type is not weak."""
  if kind_of_key(array):
    return array
  return lax.convert_element_type(array, array.dtype)
