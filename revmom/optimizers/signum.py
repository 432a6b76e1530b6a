"""Sign descent with momentum, as a bijection."""

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import optax

from revmom.exact.pytree import static
from revmom.optimizers.choices import check_factor, choices, floor
from revmom.optimizers.hyperparameters import wrap
from revmom.optimizers.leaf import PARAMS
from revmom.optimizers.reversible import ReversibleOptimizer

MOMENTUM = "momentum"


class Signum(ReversibleOptimizer, kw_only=True):
  """Signum; build it with `signum`."""

  elementwise = True

  momentum: Any
  fine: tuple[str, ...] = static(default=(MOMENTUM,))

  def forgetting(self, step: jax.Array) -> dict[str, jax.Array]:
    return {MOMENTUM: 1 - self.momentum}

  def increment(
    self,
    role: str,
    gradient: jax.Array,
    slots: dict[str, jax.Array],
    step: jax.Array,
  ) -> jax.Array:
    return (1 - self.momentum) * gradient

  def update(self, slots: dict[str, jax.Array], step: jax.Array) -> jax.Array:
    return -self.learning_rate * jnp.sign(slots[MOMENTUM])


def signum(
  learning_rate: Any,
  momentum: Any = 0.9,
  *,
  weight_decay: Any = None,
  clip: Any = None,
  preprocess: optax.GradientTransformation | None = None,
  fraction_bits: Mapping[str, int] | None = None,
  floors: Mapping[str, float] | None = None,
  integer: Any = "int32",
) -> Signum:
  r"""Signum whose every step can be undone bit for bit.

  .. math::
    m' = \beta m + (1 - \beta)\, g, \qquad
    \theta' = (1 - \alpha\lambda)\,\theta - \alpha\,\mathrm{sign}(m')

  (Bernstein et al. 2018, Algorithm 2): `optax.ema(beta, debias=False)` and
  `optax.scale_by_sign`, and `revmom`'s answer to Lion, which it is for
  b1 = b2.  The derivative of the sign is 0, so that gradients reach the
  learning rate and the decay, but not the momentum.

  Args:
    learning_rate: alpha; see `revmom.sgd` for the kinds of hyperparameters.
    momentum: beta, in (0, 1].
    weight_decay: lambda, decoupled; None is 0.
    clip: largest norm of the gradients; see `revmom.sgd`.
    preprocess: a stateless optax transformation of the gradients.
    fraction_bits: of "params" and "momentum" (24).
    floors: smallest factors to make room for when they are traced.
    integer: "int32", or "int64" where x64 is on.

  Raises:
    ValueError: momentum outside (0, 1], an unknown role, or a `preprocess` with
      a state.

  >>> import jax.numpy as jnp, revmom
  >>> optimizer = revmom.signum(0.25)
  >>> state = optimizer.init(jnp.ones(2), num_steps=1)
  >>> print(optimizer.params(optimizer.forward(state, lambda x: x)))
  [0.75 0.75]
  """
  check_factor("momentum", momentum)
  room = {MOMENTUM: floor(momentum)}
  return Signum(
    momentum=wrap("momentum", momentum),
    **choices(
      {MOMENTUM: 24, PARAMS: 24},
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
