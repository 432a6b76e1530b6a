"""Layers one after the other: a list of functions, or one function scanned."""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

Layer = Callable[[Any, Any], Any]  # (params, x) -> y
Layers = Layer | Sequence[Layer]


class LayerStack(NamedTuple):
  """Functions and their parameters, checked.

  Attributes:
    layers: one function, applied once for each row of `params`, whose leaves
      are [L, ...]; or L functions, where `params` has L elements.
    params: a pytree, or a sequence of pytrees.
    length: L.
  """

  layers: Layers
  params: Any
  length: int

  @property
  def scanned(self) -> bool:
    """Whether one function serves all layers."""
    return callable(self.layers)

  def names(self) -> tuple[str, ...]:
    """The names of the layers, numbered as they are applied."""
    if callable(self.layers):
      return tuple(f"layer {i}" for i in range(self.length))
    known = [getattr(layer, "__name__", "") for layer in self.layers]
    return tuple(
      f"layer {i}" + (f" {name}" if name.isidentifier() else "")
      for i, name in enumerate(known)
    )

  def fold(
    self, step: Callable[..., tuple[Any, Any]], carry: Any, rows: Any = None
  ) -> tuple[Any, Any]:
    """step(layer, params, row, carry) -> (carry, result), for each layer.

    Args:
      step: what is done with a layer.
      carry: what goes from layer to layer.
      rows: a pytree of arrays [L, ...].

    Returns:
      The last carry, and the results: stacked if one function serves all
      layers, else a list.
    """
    if callable(self.layers):
      layer = self.layers
      return jax.lax.scan(
        lambda carry, now: step(layer, *now, carry), carry, (self.params, rows)
      )
    results = []
    for i, (layer, params) in enumerate(
      zip(self.layers, self.params, strict=True)
    ):
      row = jax.tree.map(lambda leaf, i=i: leaf[i], rows)
      carry, result = step(layer, params, row, carry)
      results.append(result)
    return carry, results


def layer_stack(layers: Layers, params: Any, x: Any) -> LayerStack:
  """Checks that layers, parameters and input fit.

  Raises:
    ValueError: they don't.
  """
  if callable(layers):
    return _scanned(layers, params, x)
  if not isinstance(layers, list | tuple):
    raise ValueError(
      f"the network is a {type(layers).__name__}, which is neither a Flax "
      "module nor a function; give a list of functions layer(params, x) -> y."
    )
  if not layers:
    raise ValueError("there are no layers; give at least one function.")
  for i, layer in enumerate(layers):
    if not callable(layer):
      raise ValueError(
        f"layer {i} is a {type(layer).__name__}; expected a function "
        "layer(params, x) -> y."
      )
  if not isinstance(params, list | tuple) or len(params) != len(layers):
    raise ValueError(
      f"{len(layers)} layers need a list or tuple of {len(layers)} parameters, "
      f"one for each (None for a layer without any); got "
      f"{type(params).__name__}"
      + (f" of {len(params)}." if hasattr(params, "__len__") else ".")
    )
  return LayerStack(tuple(layers), tuple(params), len(layers))


def _scanned(layer: Layer, params: Any, x: Any) -> LayerStack:
  leaves = jax.tree.leaves(params)
  lengths: set[Any] = {getattr(leaf, "shape", ())[:1] for leaf in leaves}
  if len(lengths) != 1 or () in lengths:
    raise ValueError(
      f"the network is a {type(layer).__name__} and no Flax module, so it is "
      "taken for one function layer(params, x) -> y, which needs parameters "
      "stacked along a leading axis of layers; the leading axes here are "
      f"{sorted(lengths)}. Give a list of functions, one for each layer, and a "
      "list of their parameters, for any other network."
    )
  length = lengths.pop()[0]
  if not length:
    raise ValueError("there are no layers: the parameters' first axis is 0.")
  first = jax.tree.map(lambda leaf: jnp.asarray(leaf)[0], params)
  result = jax.eval_shape(layer, first, x)
  kind = lambda tree: jax.tree.map(
    lambda leaf: (jnp.shape(leaf), str(jnp.result_type(leaf))), tree
  )
  if kind(result) != kind(x):
    raise ValueError(
      f"the layer maps {kind(x)} to {kind(result)}; layers with stacked "
      "parameters must keep shape and dtype. Give a list of functions else."
    )
  return LayerStack(layer, params, length)
