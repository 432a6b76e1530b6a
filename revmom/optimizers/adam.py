"""Adam and AdamW, as bijections."""

from typing import Any

import jax
import jax.numpy as jnp

from revmom.exact.fence import fence
from revmom.optimizers.build import build
from revmom.optimizers.grid import Grid
from revmom.optimizers.reversible import ReversibleOptimizer
from revmom.optimizers.slot import Slot

FIRST_MOMENT, SECOND_MOMENT = "first_moment", "second_moment"


class Adam(ReversibleOptimizer, kw_only=True):
  """Adam; build it with `adam` or `adamw`."""

  elementwise = True
  corrected = ("b1", "b2")
  slots = (
    Slot(
      FIRST_MOMENT,
      lambda self, g, z, t: (1 - self.b1) * g,
      decay="b1",
      fine=True,
    ),
    Slot(
      SECOND_MOMENT,
      lambda self, g, z, t: (1 - self.b2) * g**2,
      decay="b2",
      bits=26,
      fine=True,
      nonnegative=True,
    ),
  )

  b1: Any
  b2: Any
  eps: Any
  eps_root: Any = None

  def displacement(
    self, slots: dict[str, jax.Array], step: jax.Array
  ) -> jax.Array:
    # Each product is rounded, whatever it may be put together with.
    corrected = lambda name, factor: fence(
      slots[name] * self.correction(factor, step), step
    )
    first = corrected(FIRST_MOMENT, "b1")
    second = corrected(SECOND_MOMENT, "b2")
    if self.eps_root is not None:
      second = second + self.eps_root
    return -self.learning_rate * first / (safe_sqrt(second) + self.eps)


def safe_sqrt(values: jax.Array) -> jax.Array:
  """The square root, with derivative 0 instead of infinity at 0."""
  positive = values > 0
  return jnp.where(positive, jnp.sqrt(jnp.where(positive, values, 1)), 0)


def adamw(
  learning_rate: Any,
  b1: Any = 0.9,
  b2: Any = 0.999,
  eps: Any = 1e-8,
  eps_root: Any = None,
  weight_decay: Any = 1e-4,
  *,
  grid: Grid | None = None,
) -> Adam:
  r"""AdamW whose every step can be undone bit for bit.

  With :math:`g = \nabla L(\theta)` and :math:`t = 1, 2, \dots`,

  .. math::
    m' &= \beta_1 m + (1 - \beta_1)\, g, \qquad
    v' = \beta_2 v + (1 - \beta_2)\, g^2, \\
    \theta' &= (1 - \alpha\lambda)\,\theta - \alpha\,
      \frac{m' / (1 - \beta_1^t)}
      {\sqrt{v' / (1 - \beta_2^t) + \epsilon_{root}} + \epsilon}

  (Kingma & Ba 2015, Algorithm 1; Loshchilov & Hutter 2019, Algorithm 2), with
  the conventions of `optax.adamw`.  With int32 m is kept to 2^-46 and v to
  2^-48; what is positive never rounds to zero, so that no update divides by a
  v that did: elements whose gradients stay below some 2e-6 move less than with
  infinite precision.

  Args:
    learning_rate: alpha; see `revmom.sgd` for the kinds of hyperparameters.
    b1: in (0, 1], one number per step and parameter array.
    b2: likewise.
    eps: outside of the square root.
    eps_root: inside of it; None is 0.
    weight_decay: lambda, for example with zeros for some of the arrays;
      0 <= learning_rate * weight_decay < 1.
    grid: of "params" and "first_moment" (24 fraction bits) and "second_moment"
      (26); with int32 values reach 2^(30 - bits), so that gradients may stay
      at 4; see `revmom.Grid`.

  Returns:
    A `ReversibleOptimizer`.

  Raises:
    ValueError: b1 or b2 outside (0, 1], a negative eps, an argument of the
      wrong kind, or an unknown role.

  >>> import jax, jax.numpy as jnp, revmom
  >>> optimizer = revmom.adamw(learning_rate=0.1)
  >>> gradient = jax.jit(jax.grad(lambda x: jnp.sum(jnp.cos(x))))
  >>> start = state = optimizer.init(jnp.array([0.3, -1.2]), num_steps=10)
  >>> for _ in range(10): state = optimizer.forward(state, gradient)
  >>> for _ in range(10): state = optimizer.inverse(state, gradient)
  >>> bool((optimizer.params(state) == optimizer.params(start)).all())
  True
  """
  return build(
    Adam,
    grid,
    learning_rate=learning_rate,
    b1=b1,
    b2=b2,
    eps=eps,
    eps_root=eps_root,
    weight_decay=weight_decay,
  )


def adam(
  learning_rate: Any,
  b1: Any = 0.9,
  b2: Any = 0.999,
  eps: Any = 1e-8,
  eps_root: Any = None,
  *,
  grid: Grid | None = None,
) -> Adam:
  """Adam: `adamw` without weight decay, as `optax.adam`.

  >>> import jax.numpy as jnp, revmom
  >>> optimizer = revmom.adam(0.1)
  >>> state = optimizer.init(jnp.ones(2), num_steps=1)
  >>> state = optimizer.forward(state, lambda x: x)
  >>> print(optimizer.params(state))
  [0.9 0.9]
  """
  return adamw(
    learning_rate, b1, b2, eps, eps_root, weight_decay=None, grid=grid
  )
