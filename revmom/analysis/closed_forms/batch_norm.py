"""The derivative of batch normalisation, in closed form.

Over a mini-batch of m examples, each feature by itself (Ioffe & Szegedy 2015,
algorithm 1, without the offset beta, which no derivative contains),

    y_i = gamma x_hat_i,   x_hat_i = (x_i - mean) / sqrt(var + epsilon),
    dy_i/dx_j = gamma / sqrt(var + epsilon)
                (delta_ij - 1/m - x_hat_i x_hat_j / m).

It is symmetric.  In the basis of 1, x_hat and what is orthogonal to both, it is
gamma / sqrt(var + epsilon) times 0, epsilon / (var + epsilon) and 1: a batch
passes on nothing about its mean, next to nothing about its scale, and all the
rest divided by the spread that it came with.
"""

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike

from revmom.models.layers.layer import EPSILON, normalise


def batch_norm_product(
  x: jax.Array,
  vector: jax.Array,
  gamma: ArrayLike = 1.0,
  epsilon: float = EPSILON,
) -> jax.Array:
  """J v and J^T v, which are the same, without forming J = dy/dx.

  Args:
    x: [m, ...], the mini-batch first.
    vector: a tangent of x, or an adjoint of y, of the shape of x.
    gamma: a number, or of the shape of an example.
    epsilon: added to the variance.

  Returns:
    The tangent of y, or the adjoint of x.

  Raises:
    ValueError: if the shapes differ.

  >>> x = jnp.array([0.0, 0.0, 3.0])
  >>> print(batch_norm_product(x, jnp.ones(3)).round(4))  # its mean is lost
  [0. 0. 0.]
  """
  if vector.shape != x.shape:
    raise ValueError(
      f"vector has shape {vector.shape}; expected that of x, {x.shape}."
    )
  normalised, scale = normalise(x, epsilon)
  along = jnp.mean(normalised * vector, 0)
  return (jnp.asarray(gamma, x.dtype) / scale) * (
    vector - jnp.mean(vector, 0) - normalised * along
  )


def batch_norm_jacobian(
  x: jax.Array, gamma: ArrayLike = 1.0, epsilon: float = EPSILON
) -> jax.Array:
  """dy_i/dx_j of every feature; different features do not mix.

  Args:
    x: [m] or [m, D].
    gamma: a number, or [D].
    epsilon: added to the variance.

  Returns:
    [m, m], or [D, m, m] for the D diagonal blocks of the whole Jacobian.

  Raises:
    ValueError: if x has another number of axes.

  >>> print(batch_norm_jacobian(jnp.array([1.0, 1.0, -1.0, -1.0])).round(2))
  [[ 0.5 -0.5 -0.  -0. ]
   [-0.5  0.5 -0.  -0. ]
   [-0.  -0.   0.5 -0.5]
   [-0.  -0.  -0.5  0.5]]
  """
  if x.ndim not in (1, 2):
    raise ValueError(
      f"x has shape {x.shape}; expected a mini-batch [m] or [m, D]. Reshape "
      "what else features are made of into D."
    )
  normalised, scale = normalise(x, epsilon)
  size = len(x)
  rows = jnp.moveaxis(normalised, 0, -1)  # [m], or [D, m]
  outer = rows[..., :, None] * rows[..., None, :]
  gain = jnp.asarray(gamma, x.dtype) / scale
  return gain[..., None, None] * (
    jnp.eye(size, dtype=x.dtype) - (1 + outer) / size
  )
