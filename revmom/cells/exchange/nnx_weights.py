"""Modules of Flax NNX around the parameters of a cell."""

import inspect
from collections.abc import Callable, Mapping
from typing import Any, get_args

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
    """Takes over arrays, such as from `conversion.from_flax`.

    Parts that are None in one of both, such as biases, may come and go.

    Raises:
      ValueError: if they are no parameters of this layer, or of other sizes.
    """
    _check_alike(type(self).__name__, self.weights(), params)
    self._hold(params)

  def _hold(self, params: Any) -> None:
    self.params = nnx.data(jax.tree.map(nnx.Param, params))

  def _cast(self, inputs: jax.Array) -> jax.Array:
    return inputs if self.dtype is None else inputs.astype(self.dtype)


def check_options(
  layer: str, init: Callable[..., Any], options: Mapping[str, Any]
) -> None:
  """Raises ValueError for keywords that `init` of the cell does not have."""
  known = [
    name
    for name, parameter in inspect.signature(init).parameters.items()
    if parameter.kind is parameter.KEYWORD_ONLY and name != "dtype"
  ]
  unknown = sorted(set(options) - set(known))
  if unknown:
    raise ValueError(
      f"{layer} has no {', '.join(unknown)}; `init` of its cell has the "
      f"options {', '.join(known)}. Activations are those of the cell's "
      "equations, and weights other than those of `init` come by `load`."
    )


def _check_alike(layer: str, held: Any, given: Any, place: str = "") -> None:
  """Raises ValueError unless what both have is of one kind and one shape."""
  where = f"its parameters{place}"
  if isinstance(held, tuple):
    if type(given) is not type(held) or len(given) != len(held):
      raise ValueError(
        f"{layer}.load: {where} are {_kind(held)}, but got {_kind(given)}. "
        "Give what `init` of the same cell returns, for one layer and one "
        "direction at a time."
      )
    names = getattr(held, "_fields", range(len(held)))
    for name, own, new in zip(names, held, given, strict=True):
      inner = f".{name}" if isinstance(name, str) else f"[{name}]"
      if own is not None and (new is not None or not _optional(held, name)):
        _check_alike(layer, own, new, place + inner)
  elif getattr(given, "shape", None) != held.shape:
    shape = getattr(given, "shape", None)
    got = _kind(given) if shape is None else f"the shape {shape}"
    raise ValueError(
      f"{layer}.load: {where} have the shape {held.shape}, but got {got}. "
      "Build the layer with the sizes of the parameters."
    )


def _optional(params: Any, name: Any) -> bool:
  """Whether a field of a NamedTuple may be None."""
  hint = getattr(type(params), "__annotations__", {}).get(name)
  return type(None) in get_args(hint)


def _kind(tree: Any) -> str:
  if isinstance(tree, tuple) and not hasattr(tree, "_fields"):
    return f"a tuple of {len(tree)}"
  return type(tree).__name__


def _is_variable(node: Any) -> bool:
  return isinstance(node, nnx.Variable)
