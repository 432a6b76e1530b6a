"""What an optimizer can be given besides its own equations.

Each function takes an optimizer and returns it with one thing more.
"""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from revmom.optimizers.build import Optimizer, check_factor, floor
from revmom.optimizers.hyperparameters import extreme, wrap
from revmom.optimizers.partition import Partition
from revmom.optimizers.reversible import check_optimizer
from revmom.optimizers.slot import AVERAGE, PARAMS


def averaged(optimizer: Optimizer, decay: Any) -> Optimizer:
  r"""The optimizer, with an average of the parameters after each step.

  .. math::
    a' = \rho a + (1 - \rho)\,\theta', \qquad
    \bar\theta = a' / (1 - \textstyle\prod \rho)

  `optimizer.average_params(state)` and `run.average` give it; gradients go
  through it.  A number is an exponential average; the mean of all (Polyak &
  Juditsky 1992) is `lambda t: (t + 1) / (t + 2)`.

  Args:
    optimizer: of this library, not yet averaged.
    decay: rho, in (0, 1); see `revmom.sgd` for the kinds of hyperparameters.

  Raises:
    ValueError: decay outside (0, 1), or an average that is kept already.

  >>> import jax.numpy as jnp, revmom
  >>> optimizer = revmom.averaged(
  ...   revmom.sgd(1.0, 1.0), lambda t: (t + 1) / (t + 2)
  ... )
  >>> state = optimizer.init(jnp.zeros(1), num_steps=3)
  >>> for _ in range(3):  # to -1, -3, -6
  ...   state = optimizer.forward(state, jnp.ones_like)
  >>> print(optimizer.average_params(state))
  [-3.3333333]
  """
  check_optimizer("averaged", optimizer)
  check_factor("decay", decay)
  if extreme(decay, np.max) == 1:
    raise ValueError(
      "decay=1 keeps an average that has no weight; give a smaller one."
    )
  if AVERAGE in optimizer.names:
    raise ValueError(
      "the optimizer keeps an average already; average it once, with one decay."
    )
  if isinstance(optimizer, Partition):
    optimizers = {
      label: averaged(own, decay) for label, own in optimizer.optimizers.items()
    }
    return optimizer.replace(optimizers=optimizers)
  average = optimizer.role(PARAMS)._replace(
    name=AVERAGE, floor=floor(decay), fine=True
  )
  return optimizer.replace(
    average=wrap("decay", decay), roles=(*optimizer.roles, average)
  )


def clipped(optimizer: Optimizer, max_norm: Any) -> Optimizer:
  """The optimizer, with gradients whose norm is limited.

  g <- g min(1, max_norm / |g|), where |g| is the norm of all gradients
  together, after those of `preprocessed`.  At g = 0 the derivative is that of
  the identity.

  Args:
    optimizer: of this library; for a part of the parameters clip the whole
      `revmom.partition`.
    max_norm: see `revmom.sgd` for the kinds of hyperparameters; a pytree like
      the parameters limits the norm of each array on its own.

  Raises:
    ValueError: max_norm is not positive, or the optimizer clips already.

  >>> import revmom
  >>> optimizer = revmom.clipped(revmom.sgd(1.0, 1.0), 0.5)
  >>> state = optimizer.init(jnp.zeros(2), num_steps=1)
  >>> print(optimizer.params(optimizer.forward(state, lambda x: x - 3)))
  [0.3535534 0.3535534]
  """
  check_optimizer("clipped", optimizer)
  if optimizer.clip is not None:
    raise ValueError("the optimizer clips gradients already; clip them once.")
  if max_norm is None:
    raise ValueError("max_norm is None; give a number, or don't clip.")
  return optimizer.replace(clip=wrap("max_norm", max_norm))


def preprocessed(
  optimizer: Optimizer, transformation: optax.GradientTransformation
) -> Optimizer:
  """The optimizer, with gradients that an optax transformation changes first.

  Args:
    optimizer: of this library; see `clipped`.
    transformation: without a state, such as
      `optax.adaptive_grad_clip(0.1)`; several are put together by
      `optax.chain`.

  Raises:
    ValueError: the transformation keeps a state, which would have to be
      reversed, too, or the optimizer has one already.

  >>> import revmom
  >>> optimizer = revmom.preprocessed(revmom.sgd(1.0, 1.0), optax.scale(2.0))
  >>> state = optimizer.init(jnp.zeros(2), num_steps=1)
  >>> print(optimizer.params(optimizer.forward(state, lambda x: x - 1)))
  [2. 2.]
  """
  check_optimizer("preprocessed", optimizer)
  if optimizer.preprocess is not None:
    raise ValueError(
      "the optimizer has a transformation already; chain them by optax.chain."
    )
  _check_stateless(transformation)
  return optimizer.replace(preprocess=transformation)


def _check_stateless(transformation: Any) -> None:
  if not isinstance(transformation, optax.GradientTransformation):
    raise ValueError(
      f"preprocessed got {transformation!r}; give an optax transformation "
      "without a state, such as optax.clip_by_global_norm(1.0)."
    )
  state = transformation.init({"probe": jnp.zeros(1)})
  if jax.tree.leaves(state):
    raise ValueError(
      "the transformation keeps a state "
      f"({jax.tree.structure(state)}), which no step could undo; use a "
      "stateless one such as optax.clip_by_global_norm."
    )
