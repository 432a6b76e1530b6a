"""Stochastic gradient descent with momentum, as a bijection."""

from collections.abc import Mapping
from typing import Any

import jax
import optax

from revmom.exact.pytree import static
from revmom.optimizers.choices import check_factor, choices, floor
from revmom.optimizers.hyperparameters import wrap
from revmom.optimizers.leaf import PARAMS
from revmom.optimizers.reversible import ReversibleOptimizer

VELOCITY = "velocity"
FORMS = ("heavy_ball", "ema", "trace")


class SGD(ReversibleOptimizer, kw_only=True):
  """Momentum SGD; build it with `sgd`."""

  elementwise = True

  momentum: Any
  form: str = static(default="heavy_ball")

  def forgetting(self, step: jax.Array) -> dict[str, jax.Array]:
    return {VELOCITY: 1 - self.momentum}

  def increment(
    self,
    role: str,
    gradient: jax.Array,
    slots: dict[str, jax.Array],
    step: jax.Array,
  ) -> jax.Array:
    gain = {
      "heavy_ball": self.learning_rate,
      "ema": 1 - self.momentum,
      "trace": 1,
    }[self.form]
    return -gain * gradient

  def update(self, slots: dict[str, jax.Array], step: jax.Array) -> jax.Array:
    if self.form == "heavy_ball":
      return slots[VELOCITY]
    return self.learning_rate * slots[VELOCITY]


def sgd(
  learning_rate: Any,
  momentum: Any,
  *,
  weight_decay: Any = None,
  form: str = "heavy_ball",
  clip: Any = None,
  preprocess: optax.GradientTransformation | None = None,
  fraction_bits: Mapping[str, int] | None = None,
  floors: Mapping[str, float] | None = None,
  integer: Any = "int32",
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
    clip: the largest global norm of the gradients, or, as a pytree like the
      parameters, of each array; differentiable like the others.
    preprocess: a stateless optax transformation of the gradients, before they
      are clipped.
    fraction_bits: resolution 2^-bits of "params" (24) and "velocity" (28;
      24 in the other forms, whose velocity has the size of gradients).  With
      int32 values reach 2^(30 - bits): 64 for parameters, 4 for velocities.
      With int64 both are 48.
    floors: the smallest factor of "velocity" (and "params" under weight decay)
      to make room for when it is traced; by default twice the bits of the
      values given here, or 0.5 (0.99) if they are traced already.
    integer: "int32", or "int64" where x64 is on.  With int64 a step multiplies
      by a factor that is within some 2^-30 of itself of the one given (2^-22
      with int32) and carries the rest to the next step, so that runs with a
      weight decay follow float64 to some 1e-9.

  Returns:
    A `ReversibleOptimizer`: `init`, `forward`, `inverse`, `params`, `log_det`.

  Raises:
    ValueError: momentum outside (0, 1], a clip that is not positive, an
      argument of the wrong kind, an unknown form or role, or a `preprocess`
      with a state.

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
  check_factor("momentum", momentum)
  room = {VELOCITY: floor(momentum)}
  return SGD(
    momentum=wrap("momentum", momentum),
    form=form,
    **choices(
      {VELOCITY: 28 if form == "heavy_ball" else 24, PARAMS: 24},
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
