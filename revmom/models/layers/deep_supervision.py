"""Deep supervision: every layer of a network learns to predict the target.

A linear regression on each layer's activations h_l, with losses summed,

    L = sum_l L_l,   L_l = mean |h_l W_l + b_l - y|^2 / 2,

brings a gradient to the lowest layers directly, without one that went through
all the layers above (Lee, Xie, Gallagher, Zhang & Tu 2015).  The gradient with
respect to h_l is the sum of that of its own loss and of what comes back through
layer l + 1, so one backward pass, O(L), serves all losses; a backward pass for
each would take O(L^2).
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jax.nn import initializers

from revmom.models.affine_layer import Affine
from revmom.models.layers.layer import Layer, init_affine, repeated


class SupervisedParams(NamedTuple):
  """Of all layers, and of the heads on them."""

  layers: Any  # leaves [L, ...]
  heads: Affine  # weights [L, D, O], bias [L, O]


def deeply_supervised(layer: Layer, depth: int, outputs: int) -> Layer:
  """A stack of a layer whose `apply` returns the predictions of all layers.

  Args:
    layer: of events of some shape to events of the same; D is their size.
    depth: L.
    outputs: O, numbers to predict.

  Returns:
    A layer of [B, *event] to predictions [L, B, O], the deepest last.

  Raises:
    ValueError: if there is no layer, or it changes the shape.

  >>> from revmom.models import dense
  >>> net, x = deeply_supervised(dense(), 5, outputs=1), jnp.ones((2, 3))
  >>> net.apply(net.init(jax.random.key(0), x), x).shape
  (5, 2, 1)
  """
  stack = repeated(layer, depth)

  def head(key: jax.Array, x: jax.Array) -> Affine:
    shape = x[0].size, outputs
    weights = initializers.lecun_normal()
    return init_affine(key, shape, weights, initializers.zeros, x.dtype)

  def init(key: jax.Array, x: jax.Array) -> SupervisedParams:
    of_layers, of_heads = jax.random.split(key)
    heads = jax.vmap(lambda key: head(key, x))(
      jax.random.split(of_heads, depth)
    )
    return SupervisedParams(stack.init(of_layers, x), heads)

  def apply(params: SupervisedParams, x: jax.Array) -> jax.Array:
    def step(x: jax.Array, params: tuple[Any, Affine]) -> tuple[Any, Any]:
      of_layer, of_head = params
      x = layer.apply(of_layer, x)
      features = x.reshape(len(x), -1)
      return x, features @ of_head.weights + of_head.bias

    return lax.scan(step, x, tuple(params))[1]

  return Layer(init, apply)


def squared_losses(predictions: jax.Array, targets: jax.Array) -> jax.Array:
  """L_l = mean |prediction - target|^2 / 2 of every layer; their sum is L.

  Args:
    predictions: [L, B, O].
    targets: [B, O].

  Returns:
    [L].

  Raises:
    ValueError: if the shapes do not fit.

  >>> print(squared_losses(jnp.ones((3, 2, 1)), jnp.zeros((2, 1))))
  [0.5 0.5 0.5]
  """
  if predictions.shape[1:] != targets.shape:
    raise ValueError(
      f"predictions have shape {predictions.shape} and targets "
      f"{targets.shape}; expected [L, B, O] and [B, O]."
    )
  errors = predictions - targets
  return jnp.mean(jnp.sum(errors * errors, -1), -1) / 2
