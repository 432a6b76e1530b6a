"""Initial weights that keep signals and gradients at their size.

Those of fully connected layers are in `jax.nn.initializers`: `lecun_normal`
for unit variance (sigma_W = 1 / sqrt(d)), `he_normal`, `glorot_normal` and
`orthogonal`.  Here is what needs to know more than the shape of an array: how
gates lie in it, how deep the network is, or the data.

Initializers are called as there: (key, shape, dtype) -> weights.
"""

import math
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax.nn import initializers
from jax.nn.initializers import Initializer

from revmom.numerics import accumulator

_ITERATIONS = 100  # of the calibration of a layer


def orthogonal_gates(num_gates: int, scale: float = 1.0) -> Initializer:
  """Recurrent weights [H, G H] whose G blocks are orthogonal each.

  `jax.nn.initializers.orthogonal` would make the rows of the whole array
  orthonormal, and the blocks of single gates neither orthogonal nor of the
  size that is asked for (Saxe, McClelland & Ganguli 2014, for each gate).

  Args:
    num_gates: G: 4 for an LSTM, 3 for a GRU, 2 for a UGRNN.
    scale: the singular values of all blocks.

  Returns:
    An initializer of arrays [..., H, G H].

  Raises:
    ValueError: when called with a shape that is not H by G H.

  >>> weights = orthogonal_gates(4)(jax.random.key(0), (5, 20))
  >>> forget = weights[:, 5:10]
  >>> bool(jnp.allclose(forget @ forget.T, jnp.eye(5), atol=1e-5))
  True
  """

  def init(
    key: jax.Array, shape: Any, dtype: Any = None, out_sharding: Any = None
  ) -> jax.Array:
    size = shape[-2] if len(shape) > 1 else 0
    if not size or shape[-1] != num_gates * size:
      raise ValueError(
        f"got shape {tuple(shape)}; {num_gates} gates need [H, {num_gates} H]."
      )
    dtype = jnp.result_type(float) if dtype is None else dtype
    blocks = jax.random.orthogonal(
      key, size, (*shape[:-2], num_gates), dtype
    )  # [..., G, H, H]
    return jnp.asarray(scale, dtype) * jnp.moveaxis(blocks, -3, -2).reshape(
      shape
    )

  return init


def residual_filter(depth: int) -> Initializer:
  """Normal weights of sigma_W = sqrt(ln 2 / (L D^2 J)).

  With them a stack of L residual layers of linear filters doubles the variance,
  forward and backward; see `residual_variance`.  With relu inside a branch,
  which halves the power, take sqrt(2) as many.

  Args:
    depth: L, residual layers of the network.

  Returns:
    An initializer of filters [D, D, J, G], or of weights [J, G].

  Raises:
    ValueError: if there is no layer.

  >>> weights = residual_filter(100)(jax.random.key(0), (3, 3, 16, 16))
  >>> print(f"{weights.std():.4f}")
  0.0070
  """
  if depth < 1:
    raise ValueError(f"got depth={depth}, expected 1 or more layers.")
  return initializers.variance_scaling(math.log(2) / depth, "fan_in", "normal")


def fixup(num_branches: int, layer: int, layers_per_branch: int) -> Initializer:
  """Weights of a residual branch in a network without normalisation.

  He's standard initialisation times L^(-1 / (2m - 2)), and zero in the last of
  the m layers of a branch (Zhang, Dauphin & Ma 2019, section 3).  The last
  layer of the network is to start at zero as well, and branches are to have
  the biases and the multiplier of `models.residual.fixup_residual`.

  Args:
    num_branches: L, of the network.
    layer: which of a branch, from 0.
    layers_per_branch: m.

  Returns:
    An initializer of weights [..., J, G].

  Raises:
    ValueError: if there is no such layer, or no branch.

  >>> weights = fixup(100, 0, 2)(jax.random.key(0), (500, 500))
  >>> print(f"{weights.std() / (2 / 500) ** 0.5:.3f}")  # 100^(-1/2)
  0.100
  """
  if num_branches < 1 or not 0 <= layer < layers_per_branch:
    raise ValueError(
      f"got num_branches={num_branches}, layer={layer}, "
      f"layers_per_branch={layers_per_branch}; expected a branch or more, and "
      "a layer from 0 to layers_per_branch - 1."
    )
  if layer == layers_per_branch - 1:
    return initializers.zeros
  # The variance has the square of the factor of weights.
  scale = 2 * num_branches ** (-1 / (layers_per_branch - 1))
  return initializers.variance_scaling(scale, "fan_in", "normal")


def calibrate(
  layers: Sequence[Callable[[Any, Any], jax.Array]],
  params: Sequence[Any],
  x: Any,
  *,
  target: float | Sequence[float] = 1.0,
  tolerance: float = 1e-3,
) -> list[Any]:
  """Scales weights until each layer's outputs have a given spread on data.

  Layer by layer, weights are divided by the standard deviation of the outputs
  until it is as it should be (Mishkin & Matas 2016, algorithm 1, LSUV; start
  from orthogonal weights to have all of it).  For a gain of g per layer let
  the targets be g, g^2, g^3 and so on, times the spread of x.

  Not for `jit`: how often a layer is evaluated depends on the data.

  Args:
    layers: functions (params, x) -> y, each of what the one before returns.
    params: of every layer. Arrays with two axes or more are scaled; biases and
      gains are not.
    x: a batch of data, of the first layer.
    target: standard deviation of outputs, over the batch and all units; one
      for all layers or one for each.
    tolerance: relative; the precision of the outputs if that is coarser.

  Returns:
    The parameters, scaled.

  Raises:
    ValueError: if lengths differ, a target is not positive, a layer has no
      weights, or its outputs are constant, not finite, or cannot reach the
      target, as those of a tanh can't reach more than 1.

  >>> dense = lambda w, x: jnp.maximum(x @ w, 0)
  >>> key, x = jax.random.key(0), jax.random.normal(jax.random.key(1), (50, 9))
  >>> params = [jax.random.normal(key, (9, 9)) for key in jax.random.split(key)]
  >>> params = calibrate([dense, dense], params, x, target=[2.0, 4.0])
  >>> print(f"{dense(params[1], dense(params[0], x)).std():.2f}")
  4.00
  """
  targets = (
    list(target) if isinstance(target, Sequence) else [target] * len(layers)
  )
  if not len(layers) == len(params) == len(targets):
    raise ValueError(
      f"got {len(layers)} layers, {len(params)} parameters and {len(targets)} "
      "targets; expected as many of each."
    )
  calibrated = []
  for number, (layer, of_layer, goal) in enumerate(
    zip(layers, params, targets, strict=True)
  ):
    scaled, x = _scale_to(layer, of_layer, x, float(goal), tolerance, number)
    calibrated.append(scaled)
  return calibrated


def _scale_to(
  layer: Callable[[Any, Any], jax.Array],
  params: Any,
  x: Any,
  target: float,
  tolerance: float,
  number: int,
) -> tuple[Any, jax.Array]:
  """The layer's parameters with its outputs."""
  if target <= 0:
    raise ValueError(
      f"the target of layer {number} is {target}; it must be positive."
    )
  if all(jnp.ndim(leaf) < 2 for leaf in jax.tree.leaves(params)):
    raise ValueError(
      f"layer {number} has no array of two axes or more to scale; put what "
      "has no weights into the function of a layer that has."
    )
  spread, factor = math.nan, 1.0
  for _ in range(_ITERATIONS):
    scaled = _scale(params, factor)
    y = layer(scaled, x)
    spread = float(jnp.std(y.astype(accumulator(y.dtype))))
    if not (math.isfinite(spread) and spread > 0):
      raise ValueError(
        f"the outputs of layer {number} have a standard deviation of {spread}, "
        "which no scale of its weights makes right: it is dead, or its inputs "
        "are."
      )
    if abs(spread / target - 1) <= max(
      tolerance, float(jnp.finfo(y.dtype).eps)
    ):
      return scaled, y
    factor *= target / spread
  raise ValueError(
    f"the outputs of layer {number} have a standard deviation of {spread:.4g} "
    f"after {_ITERATIONS} steps; {target:.4g} may be out of reach of it."
  )


def _scale(params: Any, factor: float) -> Any:
  """Rounded once, as a factor near 1 may be 1 in a short type."""

  def scaled(leaf: Any) -> Any:
    if jnp.ndim(leaf) < 2:
      return leaf
    leaf = jnp.asarray(leaf)
    wide = accumulator(leaf.dtype)
    return (leaf.astype(wide) * jnp.asarray(factor, wide)).astype(leaf.dtype)

  return jax.tree.map(scaled, params)
