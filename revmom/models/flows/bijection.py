"""Invertible functions with parameters, and their composition.

A bijection z = f(x) comes with its inverse and with log|det| of the direction
that was computed.  Arrays have batch axes first, as many as one likes or none;
what a layer calls an event is one x: [D] for vectors, [H, W, C] for images.  A
log-determinant has the batch axes.
"""

import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from revmom.models.events import batch_shape
from revmom.models.sizes import at_least
from revmom.numerics import accumulator

# A loop of few layers costs more in copies than it saves in compilation: a
# gradient of 8 couplings takes 10 % longer.
UNROLLED = 8

Direction = Callable[[Any, Any], tuple[Any, jax.Array]]


class Bijection(NamedTuple):
  """A family of bijections, one for each value of the parameters.

  Attributes:
    init: (key, x) -> params, for a batch x of data, whose type they take.
    forward: (params, x) -> (y, log|det dy/dx|), all of one type.
    inverse: (params, y) -> (x, log|det dx/dy|), likewise.
    parts: of a chain, its layers; its parameters are a tuple of theirs.
  """

  init: Callable[[jax.Array, Any], Any]
  forward: Direction
  inverse: Direction
  parts: tuple[Any, ...] = ()

  def forward_and_log_det(self, params: Any, x: Any) -> tuple[Any, jax.Array]:
    """y = f(x) and log|det dy/dx|.

    Args:
      params: from `init`.
      x: [*batch, *event]; computed in the wider of its type and the params'.

    Returns:
      y, and the log-determinant [*batch], float32 or wider.

    >>> from revmom.models import actnorm
    >>> layer, x = actnorm(), jnp.array([[1.0], [5.0]])
    >>> params = layer.init(jax.random.key(0), x)
    >>> y, log_det = layer.forward_and_log_det(params, x)
    >>> print(y.ravel(), log_det.round(4))
    [-1.  1.] [-0.6931 -0.6931]
    """
    return self.forward(*_in_common_type(params, x))

  def inverse_and_log_det(self, params: Any, y: Any) -> tuple[Any, jax.Array]:
    """x with f(x) = y and log|det dx/dy|, the negative of the forward one.

    Args:
      params: from `init`.
      y: as `forward_and_log_det` gives it.

    Returns:
      x, and the log-determinant [*batch], float32 or wider.
    """
    return self.inverse(*_in_common_type(params, y))


def _in_common_type(params: Any, x: Any) -> tuple[Any, Any]:
  """params and x, with their floats widened to the widest among them."""
  for leaf in jax.tree.leaves(x):
    if not _is_float(leaf):
      raise ValueError(
        f"got x of {jnp.result_type(leaf)}, expected floats: images of "
        "integers become floats by `dequantise`."
      )
  floats = filter(_is_float, jax.tree.leaves((params, x)))
  widest = np.result_type(*map(jnp.result_type, floats))
  return jax.tree.map(
    lambda leaf: jnp.asarray(leaf, widest) if _is_float(leaf) else leaf,
    (params, x),
  )


def _is_float(leaf: Any) -> bool:
  return jnp.issubdtype(jnp.result_type(leaf), jnp.floating)


def same_everywhere(
  log_scales: jax.Array, x: jax.Array, event_ndim: int
) -> jax.Array:
  """log|det| [*batch] of a map that scales every position's channels alike.

  Args:
    log_scales: [C].
    x: [*batch, *positions, C].
    event_ndim: axes of an event, which are the positions and the channels.
  """
  batch = batch_shape(x, event_ndim)
  positions = math.prod(x.shape[len(batch) : -1])
  total = jnp.sum(log_scales, dtype=accumulator(log_scales.dtype))
  return jnp.broadcast_to(positions * total, batch)


def no_change(x: jax.Array, event_ndim: int) -> jax.Array:
  """log|det| [*batch] of a map that keeps volumes: zero."""
  return jnp.zeros(batch_shape(x, event_ndim), accumulator(x.dtype))


def chain(*layers: Bijection) -> Bijection:
  """The layers one after the other, the first one first.

  Args:
    *layers: bijections, each of what the one before gives.

  Returns:
    A bijection whose parameters are a tuple of the layers' parameters.
  """
  if not layers:
    raise ValueError("chain() got no layers, expected one or more.")

  def init(key: jax.Array, x: Any) -> tuple[Any, ...]:
    all_params: list[Any] = []
    keys = jax.random.split(key, len(layers))
    for layer, its_key in zip(layers, keys, strict=True):
      all_params.append(layer.init(its_key, x))
      x, _ = layer.forward(all_params[-1], x)
    return tuple(all_params)

  def forward(params: Any, x: Any) -> tuple[Any, jax.Array]:
    return _compose([layer.forward for layer in layers], params, x)

  def inverse(params: Any, y: Any) -> tuple[Any, jax.Array]:
    inverses = [layer.inverse for layer in reversed(layers)]
    return _compose(inverses, params[::-1], y)

  return Bijection(init, forward, inverse, layers)


def _compose(
  functions: Sequence[Direction], params: Sequence[Any], x: Any
) -> tuple[Any, jax.Array]:
  log_dets = []
  for function, its_params in zip(functions, params, strict=True):
    x, log_det = function(its_params, x)
    log_dets.append(log_det)
  return x, sum(log_dets[1:], log_dets[0])


def stack(layer: Bijection, depth: int) -> Bijection:
  """A layer repeated, each time with parameters of its own.

  More than UNROLLED layers are one `lax.scan`, so that programs do not grow
  with depth.  The gradient by autodiff keeps what every layer computed;
  `reversible_stack` does not.

  Args:
    layer: a bijection of events of some shape to events of the same.
    depth: how often.

  Returns:
    A bijection whose parameters are those of the layer with a leading axis
    [depth].
  """
  at_least(1, depth=depth)

  def init(key: jax.Array, x: Any) -> Any:
    def grow(x: Any, key: jax.Array) -> tuple[Any, Any]:
      params = layer.init(key, x)
      return layer.forward(params, x)[0], params

    return lax.scan(grow, x, jax.random.split(key, depth))[1]

  def forward(params: Any, x: Any) -> tuple[Any, jax.Array]:
    return sweep(layer.forward, params, x)

  def inverse(params: Any, y: Any) -> tuple[Any, jax.Array]:
    return sweep(layer.inverse, params, y, reverse=True)

  return Bijection(init, forward, inverse)


def sweep(
  function: Direction, params: Any, x: Any, reverse: bool = False
) -> tuple[Any, jax.Array]:
  """One direction of all layers, from the first or from the last."""

  def step(carry: tuple[Any, jax.Array], params: Any) -> tuple[Any, None]:
    x, total = carry
    x, log_det = function(params, x)
    return (x, total + log_det), None

  one = jax.tree.map(lambda leaf: leaf[0], params)
  _, log_det = jax.eval_shape(function, one, x)
  carry = x, jnp.zeros(log_det.shape, log_det.dtype)
  layers = _unstacked(params)
  if len(layers) > UNROLLED:
    return lax.scan(step, carry, params, reverse=reverse)[0]
  for layer in reversed(layers) if reverse else layers:
    carry, _ = step(carry, layer)
  return carry


def _unstacked(params: Any) -> list[Any]:
  """The parameters of each layer."""
  leaves, structure = jax.tree.flatten(params)
  depth = len(leaves[0])
  # The adjoint of a split is a concatenation, that of indexing a sum.
  split = [lax.split(leaf, (1,) * depth) for leaf in leaves]
  return [
    jax.tree.unflatten(structure, [leaf[0] for leaf in layer])
    for layer in zip(*split, strict=True)
  ]
