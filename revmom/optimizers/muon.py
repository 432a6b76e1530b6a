"""Muon, as a bijection."""

import math
from typing import Any

import jax
import jax.numpy as jnp

from revmom.exact.pytree import static
from revmom.optimizers.adam import adam
from revmom.optimizers.build import build
from revmom.optimizers.grid import Grid
from revmom.optimizers.partition import Partition, partition
from revmom.optimizers.reversible import ReversibleOptimizer
from revmom.optimizers.slot import PARAMS, Slot

MOMENTUM = "momentum"
# Of the quintic iteration (Jordan et al. 2024): steepest at zero.
QUINTIC = (3.4445, -4.7750, 2.0315)


class Muon(ReversibleOptimizer, kw_only=True):
  """Muon for matrices; build it with `muon`."""

  corrected = (MOMENTUM,)
  slots = (
    Slot(
      MOMENTUM,
      lambda self, g, z, t: (1 - self.momentum) * g,
      decay="momentum",
      fine=True,
    ),
  )

  momentum: Any
  eps: Any
  iterations: int = static(default=5)

  def contracts(self, name: str) -> bool:
    return name == PARAMS  # the momentum's increment is one product

  def displacement(
    self, slots: dict[str, jax.Array], step: jax.Array
  ) -> jax.Array:
    mean = slots[MOMENTUM] * self.correction(MOMENTUM, step)
    fan_in, fan_out = mean.shape
    scale = math.sqrt(max(1, fan_out / max(1, fan_in)))
    direction = orthogonalise(mean, self.eps, self.iterations)
    return -self.learning_rate * scale * direction


def orthogonalise(
  matrix: jax.Array, eps: Any = 1e-8, iterations: int = 5
) -> jax.Array:
  """Newton-Schulz: singular values near 1, singular vectors unchanged.

  X <- a X + (b A + c A A) X with A = X X^T (Jordan et al. 2024), from
  X = M / (|M| + eps).

  >>> x = orthogonalise(jnp.array([[3.0, 0.0], [0.0, 1.0]]), iterations=10)
  >>> bool((jnp.abs(jnp.diag(x) - 1) < 0.4).all())
  True
  """
  a, b, c = QUINTIC
  tall = matrix.shape[0] > matrix.shape[1]
  x = matrix.T if tall else matrix
  # Not jnp.linalg.norm, whose derivative at zero is not a number.
  squares = jnp.sum(x * x)
  norm = jnp.where(squares > 0, jnp.sqrt(jnp.where(squares > 0, squares, 1)), 0)
  x = x / (norm + eps)
  for _ in range(iterations):
    gram = x @ x.T
    x = a * x + (b * gram + c * gram @ gram) @ x
  return x.T if tall else x


def muon(
  learning_rate: Any,
  momentum: Any = 0.95,
  eps: Any = 1e-8,
  weight_decay: Any = None,
  *,
  iterations: int = 5,
  others: ReversibleOptimizer | None = None,
  grid: Grid | None = None,
) -> Partition:
  r"""Muon for matrices, Adam for the rest; every step can be undone.

  .. math::
    m' = \beta m + (1 - \beta)\, g, \qquad
    \theta' = (1 - \alpha\lambda)\,\theta - \alpha
      \sqrt{\max(1, n / m)}\;\mathrm{orthogonalise}(m' / (1 - \beta^t))

  for arrays of shape [m, n] (Jordan et al. 2024), with the conventions of
  `optax.contrib.muon(..., nesterov=False)`: Nesterov's form adds the gradient
  at theta to theta itself, which no formula undoes.

  Args:
    learning_rate: alpha; see `revmom.sgd` for the kinds of hyperparameters.
    momentum: beta, in (0, 1].
    eps: added to the norm before the iteration; Adam's too.
    weight_decay: lambda, decoupled; None is 0.
    iterations: of Newton and Schulz.
    others: for arrays that are not matrices; by default `revmom.adam` with
      the same learning rate and eps.
    grid: of "params" and "momentum" (24 fraction bits); that of `others` is
      the same by default, as far as it names "params"; see `revmom.Grid`.

  Raises:
    ValueError: momentum outside (0, 1], or an unknown role.

  >>> import jax.numpy as jnp, revmom
  >>> optimizer = revmom.muon(0.1)
  >>> state = optimizer.init({"w": jnp.eye(2), "b": jnp.ones(2)}, num_steps=1)
  >>> state = optimizer.forward(state, lambda p: p)
  >>> bool((optimizer.params(state)["b"] == 0.9).all())
  True
  """
  matrices = build(
    Muon,
    grid,
    learning_rate=learning_rate,
    momentum=momentum,
    eps=eps,
    weight_decay=weight_decay,
    iterations=iterations,
  )
  if others is None:
    role = matrices.role(PARAMS)
    own = Grid({PARAMS: role.bits}, integer=role.integer)
    others = adam(learning_rate, eps=eps, grid=own)
  return partition(
    {"matrices": matrices, "others": others}, _matrices_and_others
  )


def _matrices_and_others(params: Any) -> Any:
  return jax.tree.map(
    lambda array: "matrices" if jnp.ndim(array) == 2 else "others", params
  )
