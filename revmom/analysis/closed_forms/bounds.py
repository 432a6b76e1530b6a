"""What must hold for gradients before anything is measured, and what does not.

With s_max and s_min the largest and smallest singular values,

    s_max(A B) <= s_max(A) s_max(B),    s_min(A B) >= s_min(A) s_min(B),   (1)

(the latter for square matrices) so bounds of layers compose to bounds of
networks, as sums of logarithms.  For a layer x -> phi(W x), whose Jacobian is
diag(phi') W, s_max <= sup|phi'| s_max(W).                              (2)
"""

from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from revmom.analysis.gradients.text import Names, number, table

# sup |phi'| of common nonlinearities.
STEEPEST = {"sigmoid": 0.25, "tanh": 1.0, "relu": 1.0, "linear": 1.0}


class Comparison(NamedTuple):
  """Natural logarithms of bounds beside those of what was measured.

  >>> bound = chain_bound([jnp.eye(1)] * 3, "sigmoid")
  >>> print(compare(bound, jnp.log(jnp.array([0.25, 0.1, 0.01]))))
       bound, at most  measured  holds
  1              0.25      0.25    yes
  2            0.0625       0.1     NO
  3            0.0156      0.01    yes
  """

  names: Names
  log_bound: jax.Array  # [n]
  log_measured: jax.Array  # [n]
  tolerance: jax.Array  # []: of rounding, in logarithms
  upper: jax.Array  # bool []: the bound is above, or else below

  @property
  def holds(self) -> jax.Array:
    """Whether each bound does, bool [n]; never for NaN."""
    above = self.log_measured <= self.log_bound + self.tolerance
    below = self.log_measured >= self.log_bound - self.tolerance
    return jnp.where(self.upper, above, below)

  def __str__(self) -> str:
    kind = "most" if bool(self.upper) else "least"
    columns = zip(
      self.names, self.log_bound, self.log_measured, self.holds, strict=True
    )
    return table(
      ["", f"bound, at {kind}", "measured", "holds"],
      [
        [
          name,
          number(bound, log=True),
          number(measured, log=True),
          "yes" if holds else "NO",
        ]
        for name, bound, measured, holds in columns
      ],
    )


def compare(
  log_bound: jax.Array,
  log_measured: jax.Array,
  *,
  upper: bool = True,
  tolerance: float | None = None,
  names: Sequence[str] | None = None,
) -> Comparison:
  """A bound beside a measurement.

  Args:
    log_bound, log_measured: natural logarithms [n].
    upper: whether the bound is above, or else below.
    tolerance: of logarithms; None is n times the precision of the
      measurement's type, times 64.
    names: of the rows; None numbers them from one.

  Raises:
    ValueError: shapes that differ.
  """
  log_bound, log_measured = jnp.asarray(log_bound), jnp.asarray(log_measured)
  if log_bound.shape != log_measured.shape or log_bound.ndim != 1:
    raise ValueError(
      f"bounds have the shape {log_bound.shape} and measurements "
      f"{log_measured.shape}; expected [n] of both."
    )
  size = len(log_bound)
  if tolerance is None:
    tolerance = 64 * size * float(jnp.finfo(log_measured.dtype).eps)
  return Comparison(
    Names(names or [str(i + 1) for i in range(size)]),
    log_bound,
    log_measured,
    jnp.asarray(tolerance, log_measured.dtype),
    jnp.asarray(upper),
  )


def chain_bound(
  weights: Sequence[jax.Array] | jax.Array, nonlinearity: str
) -> jax.Array:
  """log of what no singular value of dx_l/dx_0 exceeds, by (1) and (2): [L].

  A chain of n sigmoid units with weights of one has 4^-n: its gradient
  vanishes and cannot explode.  With tanh it is 1.

  Args:
    weights: of each layer x -> phi(W x) or phi(x W), arrays [M, N]; or all
      together [L, M, N].
    nonlinearity: one of "sigmoid", "tanh", "relu" and "linear".

  Raises:
    ValueError: another nonlinearity.

  >>> log_bound = chain_bound([jnp.eye(1)] * 200, "sigmoid")[-1]
  >>> print((log_bound / jnp.log(4.0)).round(2))
  -200.0
  """
  if nonlinearity not in STEEPEST:
    raise ValueError(
      f"nonlinearity={nonlinearity!r}; expected one of {sorted(STEEPEST)}."
    )
  largest = jnp.stack([jnp.linalg.norm(jnp.asarray(w), 2) for w in weights])
  return jnp.cumsum(jnp.log(largest * STEEPEST[nonlinearity]))


def recurrence_bound(weights: jax.Array, num_steps: int) -> jax.Array:
  """log s^(n-1), s = s_max(W), for n = 1 to num_steps: [num_steps].

  No singular value of dx_n/dx_1 exceeds it in x_{t+1} = tanh(W x_t).

  >>> print(recurrence_bound(2 * jnp.eye(3), 4) / jnp.log(2.0))
  [0. 1. 2. 3.]
  """
  largest = jnp.linalg.norm(weights, 2)
  return jnp.arange(num_steps).astype(largest.dtype) * jnp.log(largest)


class ResidualBounds(NamedTuple):
  """Bounds on I + J of a residual map x + f(x), and its singular values.

  Weyl's inequalities |s_i(I + J) - s_i(I)| <= s_max(J) give all but the last.
  """

  measured: jax.Array  # [N]: s_i(I + J), the largest first
  largest_at_most: jax.Array  # s_max(J) + 1
  largest_at_least: jax.Array  # s_max(J) - 1
  all_at_least: jax.Array  # 1 - s_max(J): all s_i(I + J)
  # 1 - s_min(J), which is often said to be below s_min(I + J), and is not:
  # see `residual_counterexample`.
  claimed_at_least: jax.Array

  @property
  def claim_fails(self) -> jax.Array:
    """Whether this map is a counterexample; bool []."""
    eps = float(jnp.finfo(self.measured.dtype).eps)
    rounding = self.measured.shape[-1] * eps * self.measured[..., 0]
    return self.measured[..., -1] < self.claimed_at_least - rounding


def residual_bounds(branch_jacobian: jax.Array) -> ResidualBounds:
  """Bounds on the singular values of I + J from those of J, [N, N].

  A branch with s_max(J) > 2 makes gradients of some directions grow, whatever
  the identity beside it does; one with s_max(J) < 1 lets none vanish.  So the
  identity prevents vanishing rather than exploding gradients.

  >>> bounds = residual_bounds(residual_counterexample(jax.random.key(0), 4))
  >>> print(f"{bounds.measured[-1]:.4f} {bounds.claimed_at_least:.4f}")
  0.0000 1.0000
  >>> bool(bounds.claim_fails)
  True
  """
  size = branch_jacobian.shape[-1]
  identity = jnp.eye(size, dtype=branch_jacobian.dtype)
  both = jnp.stack([identity + branch_jacobian, branch_jacobian])
  measured, branch = jnp.linalg.svd(both, compute_uv=False)
  largest, smallest = branch[..., 0], branch[..., -1]
  return ResidualBounds(
    measured, largest + 1, largest - 1, 1 - largest, 1 - smallest
  )


def residual_counterexample(
  key: jax.Array, size: int, factor: float = 4.0
) -> jax.Array:
  """J = b u v^T with u . v = -1/b, which makes I + J singular: [size, size].

  u and v have length one, so s_max(J) = b, all other singular values are zero,
  and (I + J) u = u + b (v . u) u = 0.

  Args:
    key: of the directions.
    size: two or more.
    factor: b, more than one.

  Raises:
    ValueError: b or the size is too small.
  """
  if size < 2 or factor <= 1:
    raise ValueError(
      f"size={size}, factor={factor}; in a counterexample there are two "
      "dimensions or more, and u . v = -1/factor is above -1."
    )
  frame = jnp.linalg.qr(jax.random.normal(key, (size, 2)))[0]
  u, other = frame.T
  v = -u / factor + float(np.sqrt(1 - factor**-2)) * other
  return factor * jnp.outer(u, v)
