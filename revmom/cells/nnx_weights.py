"""Modules of Flax NNX around the parameters of a cell."""

from typing import Any

import jax
from flax import nnx
from jax.typing import DTypeLike


class Weighted(nnx.Module):
  """A module whose `params` are a pytree of `nnx.Param`."""

  params: Any
  dtype: DTypeLike | None

  def weights(self) -> Any:
    """The arrays, as the functions of the cell take them."""
    values = jax.tree.map(
      lambda variable: variable[...], self.params, is_leaf=_is_variable
    )
    if self.dtype is None:
      return values
    return jax.tree.map(lambda array: array.astype(self.dtype), values)

  def load(self, params: Any) -> None:
    """Takes over arrays, such as from `conversion.from_flax`."""
    self.params = nnx.data(jax.tree.map(nnx.Param, params))

  def _cast(self, inputs: jax.Array) -> jax.Array:
    return inputs if self.dtype is None else inputs.astype(self.dtype)


def _is_variable(node: Any) -> bool:
  return isinstance(node, nnx.Variable)
