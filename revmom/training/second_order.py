"""The adjoint of the map from parameters to the gradient of a loss.

It computes the gradient once more, besides the isolated one that a step
consumes: what shares its program with a linearisation has other last bits.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from revmom.training.model import shaped

MODES = ("auto", "forward_over_reverse", "reverse_over_reverse")

# (params, others) -> (loss [], [arrays beside it])
Loss = Callable[[Any, Any], tuple[jax.Array, list]]


def forward_over_reverse(
  loss: Loss,
  params: Any,
  others: Any,
  gradient_bar: Any,
  value_bar: Any,
  beside_bar: list,
) -> tuple[Any, Any]:
  """Cotangents of (params, others), by a derivative along `gradient_bar`.

  The Hessian is symmetric, so (d g / d theta)^T v = d/de grad(theta + e v),
  and (d g / d w)^T v = d/de grad_w(theta + e v) for any other argument w.
  Nothing is kept in between, so that a model that recomputes its activations
  (`jax.checkpoint`) still does.
  """
  value = lambda params, others: loss(params, others)[0]
  gradients = lambda params: jax.grad(value, (0, 1))(params, others)
  grads, bars = jax.jvp(gradients, (params,), (gradient_bar,))
  if not beside_bar:
    return _plus(bars, grads, value_bar)
  (out, _), vjp = jax.vjp(loss, params, others)
  more = vjp((_instantiated(value_bar, out), beside_bar))
  return jax.tree.map(jnp.add, bars, more)


def reverse_over_reverse(
  loss: Loss,
  params: Any,
  others: Any,
  gradient_bar: Any,
  value_bar: Any,
  beside_bar: list,
) -> tuple[Any, Any]:
  """The same by reverse mode through the gradient."""
  with_gradient = jax.value_and_grad(loss, has_aux=True)
  ((value, _), _), vjp = jax.vjp(with_gradient, params, others)
  outputs_bar = _instantiated(value_bar, value), beside_bar
  return vjp((outputs_bar, gradient_bar))


def _instantiated(value_bar: Any, value: jax.Array) -> jax.Array:
  if value_bar is None:
    return jnp.zeros_like(value)
  return value_bar.astype(value.dtype)


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


def choose(
  mode: str, loss: Callable[..., jax.Array], params: Any, others: Any
) -> Callable:
  """The pullback of a mode; "auto" asks whether the model has forward mode.

  Forward over reverse stores no second tape, which makes it the cheaper one
  wherever it works.  It needs the gradient of a scalar: a loss with a
  `custom_vjp` or a `stop_gradient` of its own may compute something else.  (Of
  a maximum, as in softmax, it is fine.)

  Raises:
    ValueError: the mode is unknown, or is "forward_over_reverse" for a loss
      whose gradient may be none of a scalar.
  """
  check_mode(mode)
  if mode == "reverse_over_reverse":
    return reverse_over_reverse
  params, others = shaped(params), shaped(others)
  breaks = _asymmetric(jax.make_jaxpr(loss)(params, others).jaxpr)
  if mode == "forward_over_reverse":
    if breaks:
      raise ValueError(
        f"the loss contains a {breaks}, so that its gradient may not be that "
        "of a scalar and its Hessian not symmetric, which "
        'second_order_mode="forward_over_reverse" relies on; use "auto" or '
        '"reverse_over_reverse".'
      )
    return forward_over_reverse
  if breaks:
    return reverse_over_reverse
  return forward_over_reverse


# From a maximum to the `stop_gradient` of the shift that softmax and logsumexp
# subtract: their gradients are those of scalars.
_SHIFTS = ("max", "select_n", "broadcast_in_dim", "reshape", "reduce_max")


def _asymmetric(program: Any) -> str | None:
  """The first primitive that may make a gradient none of a scalar."""
  # Slow to import.
  from jax.extend.core import ClosedJaxpr, Jaxpr

  from revmom.jacobian.program.control_flow import CUSTOM_JVP, CUSTOM_VJP, HIGH

  made_by = {}
  for equation in program.eqns:
    name = equation.primitive.name
    outputs = equation.outvars
    made_by.update(dict.fromkeys(outputs, equation))
    if name == CUSTOM_VJP or (name == HIGH and any(map(_is_float, outputs))):
      return name
    if name == "stop_gradient" and not _is_shift(equation, made_by):
      return name
    if name == CUSTOM_JVP:  # what its rule says is not in there
      continue
    for inner in jax.tree.leaves(
      list(equation.params.values()),
      is_leaf=lambda x: isinstance(x, (Jaxpr, ClosedJaxpr)),
    ):
      inner = inner.jaxpr if isinstance(inner, ClosedJaxpr) else inner
      if isinstance(inner, Jaxpr) and (found := _asymmetric(inner)):
        return found
  return None


def _is_float(variable: Any) -> bool:
  return jnp.issubdtype(variable.aval.dtype, jnp.inexact)


def _is_shift(equation: Any, made_by: dict) -> bool:
  """Whether a `stop_gradient` is of a maximum over an axis."""
  while equation is not None:
    known = (made_by.get(x) for x in equation.invars if not hasattr(x, "val"))
    sources = [source for source in known if source is not None]
    sources = [s for s in sources if s.primitive.name in _SHIFTS]
    if any(s.primitive.name == "reduce_max" for s in sources):
      return True
    equation = sources[0] if sources else None
  return False
