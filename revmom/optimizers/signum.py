"""Sign descent with momentum, as a bijection."""

from typing import Any

import jax
import jax.numpy as jnp

from revmom.optimizers.build import build
from revmom.optimizers.grid import Grid
from revmom.optimizers.reversible import ReversibleOptimizer
from revmom.optimizers.slot import Slot

MOMENTUM = "momentum"


class Signum(ReversibleOptimizer, kw_only=True):
  """Signum; build it with `signum`."""

  elementwise = True
  slots = (
    Slot(
      MOMENTUM,
      lambda self, g, z, t: (1 - self.momentum) * g,
      decay="momentum",
      fine=True,
    ),
  )

  momentum: Any

  def displacement(
    self, slots: dict[str, jax.Array], step: jax.Array
  ) -> jax.Array:
    return -self.learning_rate * jnp.sign(slots[MOMENTUM])


def signum(
  learning_rate: Any,
  momentum: Any = 0.9,
  *,
  weight_decay: Any = None,
  grid: Grid | None = None,
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
    grid: of "params" and "momentum" (24 fraction bits); see `revmom.Grid`.

  Raises:
    ValueError: momentum outside (0, 1], or an unknown role.

  >>> import jax.numpy as jnp, revmom
  >>> optimizer = revmom.signum(0.25)
  >>> state = optimizer.init(jnp.ones(2), num_steps=1)
  >>> print(optimizer.params(optimizer.forward(state, lambda x: x)))
  [0.75 0.75]
  """
  return build(
    Signum,
    grid,
    learning_rate=learning_rate,
    momentum=momentum,
    weight_decay=weight_decay,
  )
