"""Stochastic gradient descent with momentum, as a bijection."""

from typing import Any

import jax

from revmom.exact.pytree import static
from revmom.optimizers.build import build
from revmom.optimizers.grid import Grid
from revmom.optimizers.reversible import ReversibleOptimizer
from revmom.optimizers.slot import Slot

VELOCITY = "velocity"
FORMS = ("heavy_ball", "ema", "trace")


class SGD(ReversibleOptimizer, kw_only=True):
  """Momentum SGD; build it with `sgd`."""

  elementwise = True
  slots = (
    Slot(
      VELOCITY,
      lambda self, g, z, t: -self.gain * g,
      decay="momentum",
      bits=28,
    ),
  )

  momentum: Any
  form: str = static(default="heavy_ball")

  @property
  def gain(self) -> Any:
    """What a gradient is multiplied with on its way into the velocity."""
    if self.form == "heavy_ball":
      return self.learning_rate
    return 1 - self.momentum if self.form == "ema" else 1

  def displacement(
    self, slots: dict[str, jax.Array], step: jax.Array
  ) -> jax.Array:
    if self.form == "heavy_ball":
      return slots[VELOCITY]
    return self.learning_rate * slots[VELOCITY]


def sgd(
  learning_rate: Any,
  momentum: Any,
  *,
  weight_decay: Any = None,
  form: str = "heavy_ball",
  grid: Grid | None = None,
) -> SGD:
  r"""Momentum SGD whose every step can be undone bit for bit.

  With :math:`g = \nabla L(\theta)`, learning rate :math:`\alpha`, momentum
  :math:`\beta` and weight decay :math:`\lambda`, the forms are

  .. math::
    \text{heavy_ball:}\quad p' &= \beta p - \alpha g, &
      \theta' &= (1 - \alpha\lambda)\,\theta + p' \\
    \text{ema:}\quad v' &= \beta v - (1 - \beta)\, g, &
      \theta' &= (1 - \alpha\lambda)\,\theta + \alpha v' \\
    \text{trace:}\quad m' &= \beta m - g, &
      \theta' &= (1 - \alpha\lambda)\,\theta + \alpha m'

  Polyak (1964); Maclaurin, Duvenaud & Adams (2015), Algorithm 1, use "ema";
  "trace" is `optax.sgd`, also under a schedule (for a constant learning rate
  "heavy_ball" has the same parameters).  The decay is decoupled (Loshchilov &
  Hutter 2019) with the convention of `optax.adamw`.

  Args:
    learning_rate: a number; an array over steps, [steps] or with a value per
      element [steps or 1, *leaf]; a function of the step, such as an optax
      schedule; or a pytree of these like the parameters or a prefix of them.
      May be traced and differentiated, except for functions: tabulate them.
    momentum: likewise, in (0, 1] and one number per step and parameter array.
    weight_decay: likewise, with zeros for arrays that should not decay;
      0 <= learning_rate * weight_decay < 1, or None.
    form: "heavy_ball", "ema" or "trace".
    grid: of "params" (24 fraction bits: at most 64 with int32) and "velocity"
      (28: at most 4; 24 in the other forms, whose velocity has the size of
      gradients); see `revmom.Grid`.

  Returns:
    A `ReversibleOptimizer`: `init`, `forward`, `inverse`, `params`, `log_det`.

  Raises:
    ValueError: momentum outside (0, 1], an argument of the wrong kind, or an
      unknown form or role.

  >>> import jax, jax.numpy as jnp, revmom
  >>> optimizer = revmom.sgd(learning_rate=0.1, momentum=0.9)
  >>> gradient = jax.grad(lambda x: jnp.sum(jnp.cos(x)))
  >>> start = state = optimizer.init(jnp.array([0.3, -1.2]), num_steps=100)
  >>> forward = jax.jit(lambda state: optimizer.forward(state, gradient))
  >>> inverse = jax.jit(lambda state: optimizer.inverse(state, gradient))
  >>> for _ in range(100): state = forward(state)
  >>> for _ in range(100): state = inverse(state)
  >>> all(bool((a == b).all()) for a, b in
  ...     zip(jax.tree.leaves(state), jax.tree.leaves(start)))
  True
  """
  if form not in FORMS:
    raise ValueError(f"form={form!r}; choose one of {FORMS}.")
  return build(
    SGD,
    grid,
    bits=None if form == "heavy_ball" else {VELOCITY: 24},
    learning_rate=learning_rate,
    momentum=momentum,
    weight_decay=weight_decay,
    form=form,
  )
