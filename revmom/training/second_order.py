"""A gradient and the adjoint of the map from parameters to gradient."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

MODES = ("auto", "forward_over_reverse", "reverse_over_reverse", "recompute")

Loss = Callable[[Any, Any], jax.Array]  # (params, others) -> []
# (gradient_bar, value_bar or None) -> (params_bar, others_bar)
Pullback = Callable[[Any, jax.Array | None], tuple[Any, Any]]
Evaluate = Callable[[Any, Any], tuple[jax.Array, Any, Pullback]]


def forward_over_reverse(loss: Loss, params: Any, others: Any):
  """Value, gradient and pullback, by linearising the gradient.

  The Hessian is symmetric, so (d g / d theta)^T v = d/de grad(theta + e v),
  and (d g / d w)^T v = d/de grad_w(theta + e v) for any other argument w.
  """

  def gradients(params):
    value, grads = jax.value_and_grad(loss, (0, 1))(params, others)
    return value, *grads

  (value, gradient, others_gradient), tangent = jax.linearize(gradients, params)

  def pullback(gradient_bar, value_bar):
    _, *bars = tangent(gradient_bar)
    return _plus(tuple(bars), (gradient, others_gradient), value_bar)

  return value, gradient, pullback


def reverse_over_reverse(loss: Loss, params: Any, others: Any):
  """Value, gradient and pullback, by reverse mode through the gradient."""
  (value, gradient), vjp = jax.vjp(jax.value_and_grad(loss), params, others)

  def pullback(gradient_bar, value_bar):
    if value_bar is None:
      value_bar = jnp.zeros_like(value)
    return vjp((value_bar.astype(value.dtype), gradient_bar))

  return value, gradient, pullback


def recompute(loss: Loss, params: Any, others: Any):
  """Value, gradient and pullback; the pullback computes the gradient again.

  Forward over reverse without anything kept between the two, so that a model
  that recomputes its activations (`jax.checkpoint`) still does: linearising it
  would store them.
  """
  value, gradient = jax.value_and_grad(loss)(params, others)

  def pullback(gradient_bar, value_bar):
    # The barrier keeps compilers from sharing what should be recomputed.
    point, along = lax.optimization_barrier((params, gradient_bar))
    gradients = lambda params: jax.grad(loss, (0, 1))(params, others)
    grads, bars = jax.jvp(gradients, (point,), (along,))
    return _plus(bars, grads, value_bar)

  return value, gradient, pullback


def _plus(bars: Any, grads: Any, value_bar: jax.Array | None) -> Any:
  """The cotangents, with those of the value itself."""
  if value_bar is None:
    return bars
  return jax.tree.map(
    lambda bar, grad: bar + value_bar.astype(grad.dtype) * grad, bars, grads
  )


def check_mode(mode: str) -> None:
  """Raises ValueError for an unknown mode."""
  if mode not in MODES:
    raise ValueError(f"second_order_mode={mode!r}; choose one of {MODES}.")


def choose(mode: str, loss: Loss, params: Any, others: Any) -> Callable:
  """The evaluator of a mode; "auto" asks whether the model has forward mode.

  Forward over reverse stores no second tape, which makes it the cheaper one
  wherever it works; a model that brings a `custom_vjp` of its own inside a
  gradient may not have it.

  Raises:
    ValueError: the mode is unknown.
  """
  check_mode(mode)
  if mode == "reverse_over_reverse":
    return reverse_over_reverse
  if mode == "forward_over_reverse":
    return forward_over_reverse
  if mode == "recompute":
    return recompute

  def product(params, others):
    gradient = lambda params: jax.grad(loss)(params, others)
    return jax.jvp(gradient, (params,), (params,))

  shaped = lambda tree: jax.tree.map(
    lambda a: jax.ShapeDtypeStruct(jnp.shape(a), jnp.result_type(a)), tree
  )
  try:  # to lower it: tracing alone takes a custom_vjp for differentiable
    jax.jit(product).lower(shaped(params), shaped(others))
  except (TypeError, NotImplementedError):
    return reverse_over_reverse
  return forward_over_reverse
