"""RMSProp and Adagrad with momentum, as bijections."""

from typing import Any

import jax
import jax.numpy as jnp

from revmom.exact.fence import fence
from revmom.exact.pytree import static
from revmom.optimizers.adam import safe_sqrt
from revmom.optimizers.build import build
from revmom.optimizers.grid import Grid
from revmom.optimizers.reversible import ReversibleOptimizer
from revmom.optimizers.slot import Slot

SQUARES, VELOCITY = "squares", "velocity"


class RMSProp(ReversibleOptimizer, kw_only=True):
  """RMSProp with momentum; build it with `rmsprop`."""

  def _velocity(self, g: Any, z: dict[str, Any], t: Any) -> Any:
    if self.eps_in_sqrt:
      # A quotient by a root is not to become a product.
      root = fence(jnp.sqrt(z[SQUARES] + self.eps), t)
      return -self.learning_rate * g / root
    return -self.learning_rate * g / (safe_sqrt(z[SQUARES]) + self.eps)

  elementwise = True
  slots = (
    Slot(
      SQUARES,
      lambda self, g, z, t: (1 - self.decay) * g**2,
      decay="decay",
      fine=True,
      nonnegative=True,
    ),
    Slot(VELOCITY, _velocity, decay="momentum", bits=28),
  )

  decay: Any
  momentum: Any
  eps: Any
  eps_in_sqrt: bool = static(default=True)

  def displacement(
    self, slots: dict[str, jax.Array], step: jax.Array
  ) -> jax.Array:
    return slots[VELOCITY]


class Adagrad(ReversibleOptimizer, kw_only=True):
  """Adagrad with momentum; build it with `adagrad`."""

  def _velocity(self, g: Any, z: dict[str, Any], t: Any) -> Any:
    squares = self.initial_accumulator_value + z[SQUARES]
    positive = squares > 0
    root = fence(jnp.sqrt(jnp.where(positive, squares + self.eps, 1)), t)
    return jnp.where(positive, -self.learning_rate * g / root, 0)

  elementwise = True
  slots = (
    # The sum forgets nothing; its buffer holds what is below its grid.
    Slot(
      SQUARES, lambda self, g, z, t: g**2, bits=20, fine=True, nonnegative=True
    ),
    Slot(VELOCITY, _velocity, decay="momentum", bits=28),
  )

  momentum: Any
  initial_accumulator_value: Any
  eps: Any

  def displacement(
    self, slots: dict[str, jax.Array], step: jax.Array
  ) -> jax.Array:
    return slots[VELOCITY]


def rmsprop(
  learning_rate: Any,
  decay: Any = 0.9,
  momentum: Any = 0.9,
  eps: Any = 1e-8,
  *,
  weight_decay: Any = None,
  eps_in_sqrt: bool = True,
  grid: Grid | None = None,
) -> RMSProp:
  r"""RMSProp with momentum whose every step can be undone bit for bit.

  .. math::
    s' = \gamma s + (1 - \gamma)\, g^2, \qquad
    p' = \beta p - \alpha g / \sqrt{s' + \epsilon}, \qquad
    \theta' = (1 - \alpha\lambda)\,\theta + p'

  (Tieleman & Hinton 2012, Lecture 6.5), with the conventions of
  `optax.rmsprop(..., momentum=beta)`.  Without momentum a step would add a
  function of the gradient at theta to theta itself, which no formula undoes.

  Args:
    learning_rate: alpha; see `revmom.sgd` for the kinds of hyperparameters.
    decay: gamma, in (0, 1].
    momentum: beta, in (0, 1].
    eps: epsilon.
    weight_decay: lambda, decoupled; None is 0.
    eps_in_sqrt: False adds epsilon to the root, as PyTorch does.
    grid: of "params" (24 fraction bits), "squares" (24) and "velocity" (28);
      see `revmom.Grid`.

  Raises:
    ValueError: decay or momentum outside (0, 1], or an unknown role.

  >>> import jax.numpy as jnp, revmom
  >>> optimizer = revmom.rmsprop(0.1, decay=0.75)
  >>> state = optimizer.init(jnp.ones(2), num_steps=1)
  >>> print(optimizer.params(optimizer.forward(state, lambda x: x)))
  [0.8 0.8]
  """
  return build(
    RMSProp,
    grid,
    learning_rate=learning_rate,
    decay=decay,
    momentum=momentum,
    eps=eps,
    weight_decay=weight_decay,
    eps_in_sqrt=eps_in_sqrt,
  )


def adagrad(
  learning_rate: Any,
  momentum: Any = 0.9,
  initial_accumulator_value: Any = 0.1,
  eps: Any = 1e-7,
  *,
  grid: Grid | None = None,
) -> Adagrad:
  r"""Adagrad with momentum whose every step can be undone bit for bit.

  .. math::
    s' = s + g^2, \qquad
    p' = \beta p - \alpha g / \sqrt{s_0 + s' + \epsilon}, \qquad
    \theta' = \theta + p'

  (Duchi, Hazan & Singer 2011, with heavy-ball momentum): `optax.adagrad`
  followed by `optax.trace(beta)`.  Without momentum, as in the paper, a step
  has no explicit inverse.

  Args:
    learning_rate: alpha; see `revmom.sgd` for the kinds of hyperparameters.
    momentum: beta, in (0, 1].
    initial_accumulator_value: s_0.
    eps: epsilon.
    grid: of "params" (24 fraction bits), "squares" (20, so at most 1024) and
      "velocity" (28); see `revmom.Grid`.

  Raises:
    ValueError: momentum outside (0, 1], or an unknown role.

  >>> import jax.numpy as jnp, revmom
  >>> optimizer = revmom.adagrad(0.1, initial_accumulator_value=3.0)
  >>> state = optimizer.init(jnp.ones(2), num_steps=1)
  >>> print(optimizer.params(optimizer.forward(state, lambda x: x)))
  [0.95 0.95]
  """
  return build(
    Adagrad,
    grid,
    learning_rate=learning_rate,
    momentum=momentum,
    initial_accumulator_value=initial_accumulator_value,
    eps=eps,
  )
