"""Stacks whose gradients need no activations of the layers.

The layers are inverted one by one on the way back, so that of each the input
is computed from its output instead of being kept (Gomez, Ren, Urtasun & Grosse
2017; Dinh, Sohl-Dickstein & Bengio 2017, section 3.7).
"""

from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from revmom.models.flows.bijection import Bijection, Direction, stack, sweep


def reversible_stack(layer: Bijection, depth: int) -> Bijection:
  r"""`stack`, with memory for one layer's activations at any depth.

  Parameters and values are those of `stack`.  For :math:`y_k = f_k(y_{k-1})`
  the backward pass knows :math:`y_K` and computes, from the last layer,

  .. math::
    y_{k-1} = f_k^{-1}(y_k), \qquad
    (\bar\theta_k, \bar y_{k-1})
      = \left[\frac{\partial (f_k, \log|\det f_k'|)}
                   {\partial (\theta_k, y_{k-1})}\right]^\top
        (\bar y_k, \bar\ell),

  in either direction: sampling is reversible too.  It computes each coupling's
  network once more than autodiff, so that a gradient takes a third longer.

  The inverse of floats is not exact to the bit.  Inputs are recovered up to
  rounding times the condition number of the layers passed, and gradients are
  those at the recovered inputs.  So the first input is kept.  The gradient of
  an example that is not recovered to half of its type's digits is NaN, and
  so is that of the parameters, unless the loss does not depend on the
  example.  For such layers use `stack`, or a `chain` of short reversible
  stacks, each of which keeps its input.

  Reverse mode over reverse mode and forward over reverse are right; they keep
  activations.  Forward mode alone JAX refuses: use `stack`, whose parameters
  are the same.

  Args:
    layer: a bijection of events of some shape to events of the same; all that
      is differentiated must be in its parameters.
    depth: number of layers.

  Returns:
    A bijection whose parameters have a leading axis [depth].

  >>> import jax.numpy as jnp
  >>> from revmom.models import actnorm, reversible_stack
  >>> layers = reversible_stack(actnorm(), 3)
  >>> x = jax.random.normal(jax.random.key(0), (8, 5))
  >>> params = layers.init(jax.random.key(1), x)
  >>> y, log_det = layers.forward_and_log_det(params, x)
  >>> y.shape, log_det.shape
  ((8, 5), (8,))
  """
  plain = stack(layer, depth)
  forward = _reversible(layer, inverse=False)
  inverse = _reversible(layer, inverse=True)
  return Bijection(plain.init, forward, inverse)


def stacked(layer: Bijection, depth: int, reversible: bool) -> Bijection:
  """`reversible_stack`, or `stack`."""
  return (reversible_stack if reversible else stack)(layer, depth)


def _reversible(layer: Bijection, inverse: bool) -> Direction:
  """All layers in one direction, differentiated by way of the other."""
  function = layer.inverse if inverse else layer.forward

  @jax.custom_vjp
  def run(params: Any, x: Any) -> tuple[Any, jax.Array]:
    return sweep(function, params, x, inverse)

  def forward(params: Any, x: Any) -> Any:
    y, log_det = sweep(function, params, x, inverse)
    return (y, log_det), (params, x, y)

  def backward(kept: Any, bars: Any) -> tuple[Any, Any]:
    params, start, y = kept
    y_bar, log_det_bar = bars

    def step(carry: tuple[Any, Any], params: Any) -> tuple[Any, Any]:
      return _undo(layer, params, *carry, log_det_bar, inverse)

    (x, x_bar), params_bar = lax.scan(
      step, (y, y_bar), params, reverse=not inverse
    )
    recovered = _recovered(x, start, log_det_bar.ndim)
    recovered |= ~_touched(y_bar, log_det_bar)
    everywhere = jnp.all(recovered)
    return (
      jax.tree.map(lambda bar: _known(bar, everywhere), params_bar),
      jax.tree.map(lambda bar: _known(bar, recovered), x_bar),
    )

  run.defvjp(forward, backward)
  return run


def _recovered(x: Any, start: Any, batch_ndim: int) -> jax.Array:
  """Whether each example is within sqrt(epsilon) of what it was: [*batch].

  Relative to the largest number of the example, or to that of the middle one
  of a batch if it is larger: an example of zeros is as good as its neighbours.
  """

  def largest(values: jax.Array) -> jax.Array:
    axes = tuple(range(batch_ndim, values.ndim))
    return jnp.max(jnp.abs(values), axes)

  def close(x: jax.Array, start: jax.Array) -> jax.Array:
    tolerance = float(jnp.finfo(start.dtype).eps) ** 0.5
    scale = largest(start)
    return largest(x - start) <= tolerance * jnp.maximum(
      scale, jnp.median(scale)
    )

  checks = jax.tree.leaves(jax.tree.map(close, x, start))
  return jnp.all(jnp.stack(checks), 0)


def _touched(y_bar: Any, log_det_bar: jax.Array) -> jax.Array:
  """Which examples the loss depends on: [*batch]."""
  touched = log_det_bar != 0
  for bar in jax.tree.leaves(y_bar):
    touched |= jnp.any(bar != 0, tuple(range(touched.ndim, bar.ndim)))
  return touched


def _known(bar: jax.Array, known: jax.Array) -> jax.Array:
  """NaN where it is not known; `known` has the first axes of the array."""
  known = known.reshape(known.shape + (1,) * (bar.ndim - known.ndim))
  return jnp.where(known, bar, jnp.asarray(jnp.nan, bar.dtype))


def _undo(
  layer: Bijection,
  params: Any,
  y: Any,
  y_bar: Any,
  log_det_bar: jax.Array,
  inverse: bool,
) -> tuple[tuple[Any, Any], Any]:
  """(x, the adjoint of x) and that of params, from y and its adjoint."""
  if layer.parts:
    bars = list(params)
    carry, order = (y, y_bar), range(len(bars))
    for k in order if inverse else reversed(order):
      carry, bars[k] = _undo(
        layer.parts[k], params[k], *carry, log_det_bar, inverse
      )
    return carry, tuple(bars)
  function, undo = layer.forward, layer.inverse
  if inverse:
    function, undo = undo, function
  x, _ = undo(params, y)
  _, pull_back = jax.vjp(function, params, x)
  params_bar, x_bar = pull_back((y_bar, log_det_bar))
  return (x, x_bar), params_bar
