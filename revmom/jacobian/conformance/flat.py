"""A bijection of pytrees as a bijection of vectors, for dense references."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.flatten_util import ravel_pytree
from jax.typing import DTypeLike

# f, its inverse, its log-determinant, and that of the inverse if there is one.
Functions = tuple[
  Callable[[Any], Any],
  Callable[[Any], Any],
  Callable[[Any], Any],
  Callable[[Any], Any] | None,
]
Differentiate = Callable[..., Callable[[jax.Array], jax.Array]]


class FlatBijection(NamedTuple):
  """f, its inverse and its log-determinant on vectors of D numbers."""

  forward: Callable[[jax.Array], jax.Array]  # [D] -> [D]
  inverse: Callable[[jax.Array], jax.Array]  # [D] -> [D]
  log_det: Callable[[jax.Array], jax.Array]  # [D] -> [1] or [2]: with a sign
  inverse_log_det: Callable[[jax.Array], jax.Array] | None  # likewise, of y
  # `jax.jacfwd`; `jax.jacrev` where a function has custom reverse derivatives.
  differentiate: Differentiate
  differentiate_inverse: Differentiate

  def jacobian(self, x: jax.Array) -> jax.Array:
    """df/dx [D, D]."""
    return self.differentiate(self.forward)(x)

  def inverse_jacobian(self, y: jax.Array) -> jax.Array:
    """df_inverse/dy [D, D]."""
    return self.differentiate_inverse(self.inverse)(y)


class Local(NamedTuple):
  """What a bijection and its references say at one x and one y near f(x)."""

  image: jax.Array  # [D]: f(x)
  back: jax.Array  # [D]: f_inverse(y)
  again: jax.Array  # [D]: f(f_inverse(y))
  claimed: jax.Array  # []: log_det(x)
  claimed_sign: jax.Array  # []: NaN where log_det gives none
  claimed_inverse: jax.Array  # []: inverse_log_det(y), NaN where there is none
  dense: jax.Array  # []: log|det df/dx| by slogdet of the Jacobian
  dense_sign: jax.Array  # []
  dense_inverse: jax.Array  # []: log|det df_inverse/dy|


class Slopes(NamedTuple):
  """First derivatives at one x, each by autodiff and by another way."""

  jacobian: jax.Array  # [D, D]: df/dx, forward mode if there is one
  reverse: jax.Array  # [D, D]: df/dx, reverse mode
  inverse_jacobian: jax.Array  # [D, D]: df_inverse/dy, likewise
  inverse_reverse: jax.Array  # [D, D]: df_inverse/dy, reverse mode
  differences: jax.Array  # [D, D]: df/dx, central differences
  gradient: jax.Array  # [D]: of log_det
  dense_gradient: jax.Array  # [D]: of slogdet of the Jacobian


def cast(tree: Any, dtype: DTypeLike) -> Any:
  """The pytree with all its leaves in one type."""
  return jax.tree.map(lambda leaf: jnp.asarray(leaf, dtype), tree)


def rows(points: list[Any]) -> np.ndarray:
  """Pytrees as the rows of a matrix."""
  return np.stack([np.asarray(ravel_pytree(point)[0]) for point in points])


def flat_bijection(
  f: Callable[[Any], Any],
  f_inverse: Callable[[Any], Any],
  log_det: Callable[[Any], Any],
  inverse_log_det: Callable[[Any], Any] | None,
  x: Any,
) -> FlatBijection:
  """The bijection on vectors, with the structure of x and of f(x)."""
  flat_x, to_x = ravel_pytree(x)
  flat_y, to_y = ravel_pytree(f(x))
  forward = lambda x: ravel_pytree(f(to_x(x)))[0]
  inverse = lambda y: ravel_pytree(f_inverse(to_y(y)))[0]
  return FlatBijection(
    forward=forward,
    inverse=inverse,
    log_det=lambda x: value_and_sign(log_det(to_x(x))),
    inverse_log_det=inverse_log_det
    and (lambda y: value_and_sign(inverse_log_det(to_y(y)))),
    differentiate=_mode(forward, flat_x),
    differentiate_inverse=_mode(inverse, flat_y),
  )


def _mode(function: Callable[[jax.Array], jax.Array], at: Any) -> Differentiate:
  """Forward mode, unless JAX refuses it for a function with `custom_vjp`."""
  try:
    jax.eval_shape(jax.jacfwd(function), at)
  except TypeError:
    return jax.jacrev
  return jax.jacfwd


def value_and_sign(result: Any) -> jax.Array:
  """[value] of a number, [value, sign] of a result that has both."""
  value = jnp.asarray(getattr(result, "value", result))
  sign = getattr(result, "sign", None)
  if value.shape:
    raise ValueError(
      f"log_det gave an array of shape {value.shape}, expected a scalar: sum "
      "over the elements of the event, and leave batches to vmap."
    )
  parts = [value] if sign is None else [value, jnp.asarray(sign, value.dtype)]
  return jnp.stack(parts)


def local(flat: FlatBijection, x: jax.Array, y: jax.Array) -> Local:
  """Values and log-determinants at x and at y."""
  back = flat.inverse(y)
  claimed = flat.log_det(x)
  nan = jnp.full_like(claimed[0], jnp.nan)
  sign, dense = jnp.linalg.slogdet(flat.jacobian(x))
  return Local(
    image=flat.forward(x),
    back=back,
    again=flat.forward(back),
    claimed=claimed[0],
    claimed_sign=claimed[1] if claimed.size == 2 else nan,
    claimed_inverse=flat.inverse_log_det(y)[0] if flat.inverse_log_det else nan,
    dense=dense,
    dense_sign=sign,
    dense_inverse=jnp.linalg.slogdet(flat.inverse_jacobian(y))[1],
  )


def slopes(flat: FlatBijection, x: jax.Array) -> Slopes:
  """First derivatives at x."""
  y = flat.forward(x)

  def dense(x: jax.Array) -> jax.Array:
    return jnp.linalg.slogdet(flat.jacobian(x))[1]

  return Slopes(
    jacobian=flat.jacobian(x),
    reverse=jax.jacrev(flat.forward)(x),
    inverse_jacobian=flat.inverse_jacobian(y),
    inverse_reverse=jax.jacrev(flat.inverse)(y),
    differences=_central_differences(flat.forward, x),
    gradient=jax.grad(lambda x: flat.log_det(x)[0])(x),
    dense_gradient=jax.grad(dense)(x),
  )


def _central_differences(
  forward: Callable[[jax.Array], jax.Array], x: jax.Array
) -> jax.Array:
  """df/dx without autodiff, at steps relative to x, so as not to leave R+."""
  # Cube root: rounding and the third derivative then err alike.
  relative = jnp.asarray(jnp.finfo(x.dtype).eps ** (1 / 3), x.dtype)
  steps = jnp.diag(relative * jnp.where(x == 0, jnp.ones_like(x), jnp.abs(x)))
  rise = jax.vmap(forward)(x + steps) - jax.vmap(forward)(x - steps)
  run = jnp.diagonal((x + steps) - (x - steps))
  return (rise / run[:, None]).T
