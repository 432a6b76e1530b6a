"""RMSProp and Adagrad with momentum, as bijections."""

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import optax

from revmom.exact.pytree import static
from revmom.optimizers.adam import safe_sqrt
from revmom.optimizers.choices import check_factor, choices, floor
from revmom.optimizers.hyperparameters import wrap
from revmom.optimizers.leaf import PARAMS
from revmom.optimizers.reversible import ReversibleOptimizer

SQUARES, VELOCITY = "squares", "velocity"


class RMSProp(ReversibleOptimizer, kw_only=True):
  """RMSProp with momentum; build it with `rmsprop`."""

  elementwise = True

  decay: Any
  momentum: Any
  eps: Any
  eps_in_sqrt: bool = static(default=True)
  fine: tuple[str, ...] = static(default=(SQUARES,))
  nonnegative: tuple[str, ...] = static(default=(SQUARES,))

  def forgetting(self, step: jax.Array) -> dict[str, jax.Array]:
    return {SQUARES: 1 - self.decay, VELOCITY: 1 - self.momentum}

  def increment(
    self,
    role: str,
    gradient: jax.Array,
    slots: dict[str, jax.Array],
    step: jax.Array,
  ) -> jax.Array:
    if role == SQUARES:
      return (1 - self.decay) * gradient**2
    if self.eps_in_sqrt:
      return (
        -self.learning_rate * gradient / jnp.sqrt(slots[SQUARES] + self.eps)
      )
    root = safe_sqrt(slots[SQUARES]) + self.eps
    return -self.learning_rate * gradient / root

  def update(self, slots: dict[str, jax.Array], step: jax.Array) -> jax.Array:
    return slots[VELOCITY]


class Adagrad(ReversibleOptimizer, kw_only=True):
  """Adagrad with momentum; build it with `adagrad`."""

  elementwise = True

  momentum: Any
  initial_accumulator_value: Any
  eps: Any
  fine: tuple[str, ...] = static(default=(SQUARES,))
  nonnegative: tuple[str, ...] = static(default=(SQUARES,))

  def forgetting(self, step: jax.Array) -> dict[str, jax.Array]:
    # The sum forgets nothing; it has a buffer for what is below its grid.
    return {
      SQUARES: jnp.zeros_like(self.momentum),
      VELOCITY: 1 - self.momentum,
    }

  def increment(
    self,
    role: str,
    gradient: jax.Array,
    slots: dict[str, jax.Array],
    step: jax.Array,
  ) -> jax.Array:
    if role == SQUARES:
      return gradient**2
    squares = self.initial_accumulator_value + slots[SQUARES]
    positive = squares > 0
    root = jnp.sqrt(jnp.where(positive, squares + self.eps, 1))
    return jnp.where(positive, -self.learning_rate * gradient / root, 0)

  def update(self, slots: dict[str, jax.Array], step: jax.Array) -> jax.Array:
    return slots[VELOCITY]


def rmsprop(
  learning_rate: Any,
  decay: Any = 0.9,
  momentum: Any = 0.9,
  eps: Any = 1e-8,
  *,
  weight_decay: Any = None,
  eps_in_sqrt: bool = True,
  clip: Any = None,
  preprocess: optax.GradientTransformation | None = None,
  fraction_bits: Mapping[str, int] | None = None,
  floors: Mapping[str, float] | None = None,
  integer: Any = "int32",
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
    clip: largest norm of the gradients; see `revmom.sgd`.
    preprocess: a stateless optax transformation of the gradients.
    fraction_bits: of "params" (24), "squares" (24) and "velocity" (28).
    floors: smallest factors to make room for when they are traced.
    integer: "int32", or "int64" where x64 is on.

  Raises:
    ValueError: decay or momentum outside (0, 1], an unknown role, or a
      `preprocess` with a state.

  >>> import jax.numpy as jnp, revmom
  >>> optimizer = revmom.rmsprop(0.1, decay=0.75)
  >>> state = optimizer.init(jnp.ones(2), num_steps=1)
  >>> print(optimizer.params(optimizer.forward(state, lambda x: x)))
  [0.8 0.8]
  """
  check_factor("decay", decay)
  check_factor("momentum", momentum)
  room = {SQUARES: floor(decay), VELOCITY: floor(momentum)}
  return RMSProp(
    decay=wrap("decay", decay),
    momentum=wrap("momentum", momentum),
    eps=wrap("eps", eps),
    eps_in_sqrt=eps_in_sqrt,
    **choices(
      {SQUARES: 24, VELOCITY: 28, PARAMS: 24},
      room,
      learning_rate=learning_rate,
      weight_decay=weight_decay,
      clip=clip,
      preprocess=preprocess,
      fraction_bits=fraction_bits,
      floors=floors,
      integer=integer,
    ),
  )


def adagrad(
  learning_rate: Any,
  momentum: Any = 0.9,
  initial_accumulator_value: Any = 0.1,
  eps: Any = 1e-7,
  *,
  clip: Any = None,
  preprocess: optax.GradientTransformation | None = None,
  fraction_bits: Mapping[str, int] | None = None,
  floors: Mapping[str, float] | None = None,
  integer: Any = "int32",
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
    clip: largest norm of the gradients; see `revmom.sgd`.
    preprocess: a stateless optax transformation of the gradients.
    fraction_bits: of "params" (24), "squares" (20, so at most 1024) and
      "velocity" (28).
    floors: smallest factor of "velocity" to make room for when it is traced.
    integer: "int32", or "int64" where x64 is on.

  Raises:
    ValueError: momentum outside (0, 1], an unknown role, or a `preprocess` with
      a state.

  >>> import jax.numpy as jnp, revmom
  >>> optimizer = revmom.adagrad(0.1, initial_accumulator_value=3.0)
  >>> state = optimizer.init(jnp.ones(2), num_steps=1)
  >>> print(optimizer.params(optimizer.forward(state, lambda x: x)))
  [0.95 0.95]
  """
  check_factor("momentum", momentum)
  return Adagrad(
    momentum=wrap("momentum", momentum),
    initial_accumulator_value=wrap(
      "initial_accumulator_value", initial_accumulator_value
    ),
    eps=wrap("eps", eps),
    **choices(
      {SQUARES: 20, VELOCITY: 28, PARAMS: 24},
      {SQUARES: 1.0, VELOCITY: floor(momentum)},
      learning_rate=learning_rate,
      clip=clip,
      preprocess=preprocess,
      fraction_bits=fraction_bits,
      floors=floors,
      integer=integer,
    ),
  )
