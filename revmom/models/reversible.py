"""Stacks whose gradients need no activations of the layers.

The layers are inverted one by one on the way back, so that of each the input
is computed from its output instead of being kept (Gomez, Ren, Urtasun & Grosse
2017; Dinh, Sohl-Dickstein & Bengio 2017, section 3.7).
"""

from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from revmom.models.bijection import Bijection, Direction, stack, sweep


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

  in either direction: sampling is reversible too.  It takes one more pass of
  the layers' inverses than autodiff.

  The inverse of floats is not exact to the bit.  Inputs are recovered up to
  rounding times the condition number of the layers passed, and gradients are
  those at the recovered inputs.  So the first input is kept, and where it is
  not recovered to half of its type's digits all gradients are NaN.  For such
  layers use `stack`, or a `chain` of short reversible stacks, each of which
  keeps its input.

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
    recovered = _is_close(x, start)
    return jax.tree.map(
      lambda bar: jnp.where(recovered, bar, jnp.asarray(jnp.nan, bar.dtype)),
      (params_bar, x_bar),
    )

  run.defvjp(forward, backward)
  return run


def _is_close(recovered: Any, start: Any) -> jax.Array:
  """Whether the largest error is within sqrt(epsilon) of the largest value."""

  def close(recovered: jax.Array, start: jax.Array) -> jax.Array:
    tolerance = float(jnp.finfo(start.dtype).eps) ** 0.5
    error = jnp.max(jnp.abs(recovered - start))
    return error <= tolerance * jnp.max(jnp.abs(start))

  checks = jax.tree.map(close, recovered, start)
  return jnp.all(jnp.stack(jax.tree.leaves(checks)))


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
