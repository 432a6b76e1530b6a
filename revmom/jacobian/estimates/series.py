"""log|det A| by the power series of the logarithm around the identity.

With B = A - I, log det A = sum_k (-1)^(k+1) tr(B^k) / k, which converges where
the spectral radius of B is below one.  Cut off, it is biased; with Russian
roulette it is not (Chen, Behrmann, Duvenaud & Jacobsen 2019), but its variance
is finite only where the terms fall faster than the chance to reach them.
"""

import math
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from revmom.jacobian.estimates.estimate import (
  Deviation,
  Estimate,
  Matvec,
  Operator,
  flatten,
  make_estimate,
  refuse_unless,
  standard_error,
)
from revmom.jacobian.estimates.lanczos import golub_kahan
from revmom.jacobian.estimates.log_action import Action, LogAction
from revmom.jacobian.estimates.log_forms import Method, log_forms, transposed
from revmom.jacobian.estimates.trace import Estimator

NORM_STEPS = 20
NORM_RISK = 1e-3


def power_series(
  num_terms: int, num_samples: int, batch_size: int | None = None
) -> Estimator:
  r"""Estimates log|det A| by the first terms of a power series.

  .. math::
    \log\det(I + B) \approx
    \sum_{k=1}^{n} \frac{(-1)^{k+1}}{k} \operatorname{tr} B^k

  With :math:`\rho` a bound on the norm of B and :math:`h = \lfloor n/2
  \rfloor`, the bias is at most :math:`\|B^h\|_F^2\, \rho^{n+1-2h} /
  ((n + 1)(1 - \rho))`, where the Frobenius norm is estimated too.

  Args:
    num_terms: n, each of which costs a product for every sample.
    num_samples: two or more; more than D are not drawn.
    batch_size: samples handled at once, all by default.

  Returns:
    (key, matvec, like) -> `Estimate`, as `lanczos_quadrature`.

  Raises:
    ValueError: (when called) the norm of A - I may not be below one, as far as
      is known outside of `jit`; inside, the estimate is NaN and not valid.

  >>> matrix = jnp.array([[1.2, 0.3], [-0.1, 0.9]])
  >>> estimate = power_series(num_terms=20, num_samples=2)(
  ...   jax.random.key(0), lambda x: matrix @ x, jnp.zeros(2)
  ... )
  >>> print(f"{estimate.value:.4f} {jnp.linalg.slogdet(matrix)[1]:.4f}")
  0.1044 0.1044
  """
  method = Method(_truncated(num_terms), False, batch_size)

  def estimate(key: jax.Array, matvec: Matvec, like: Any) -> Estimate:
    operator = flatten(matvec, like)
    probes_key, key = jax.random.split(key)
    probes = operator.directions(probes_key, num_samples)
    norm, norm_cost = _norm_bound(operator, probes[0])
    converges = refuse_unless(
      norm < 1,
      f"|A - I| may be as large as {norm}: a power series needs less than 1; "
      "use golub_kahan_quadrature.",
    )
    forms = log_forms(method, operator, probes, key)
    half = num_terms // 2
    tail = norm ** (num_terms + 1 - 2 * half) / ((num_terms + 1) * (1 - norm))
    bias = jnp.mean(forms.diagnostics) * tail
    samples = forms.values[-1]
    return make_estimate(
      jnp.mean(samples),
      standard_error(samples, operator.dimension),
      Deviation(bias, bias),
      len(probes),
      num_terms * len(probes) + norm_cost,
      converges,
    )

  return estimate


def russian_roulette(
  num_samples: int,
  stop_probability: float = 0.5,
  num_exact_terms: int = 2,
  batch_size: int | None = None,
) -> Estimator:
  r"""Estimates log|det A| without bias, by a power series of random length.

  .. math::
    \log\det(I + B) = \mathbb{E} \sum_{k=1}^{n_0 + N}
    \frac{(-1)^{k+1}}{k} \frac{x^\top B^k x}{P(n_0 + N \ge k)},
    \qquad P(N \ge j) = (1 - p)^j

  Chen et al. (2019), equations (6) and (7); derivatives are those of the
  Neumann series, equation (8).

  Args:
    num_samples: two or more; more than D are not drawn.
    stop_probability: p.
    num_exact_terms: n_0.
    batch_size: samples handled at once, all by default.

  Returns:
    (key, matvec, like) -> `Estimate`, as `lanczos_quadrature`; `num_matvecs`
    counts those of the samples drawn.

  Raises:
    ValueError: (when called) the variance may not be finite, |A - I|^2 >=
      1 - p, as far as is known outside of `jit`; inside, the estimate is NaN
      and not valid.
  """
  if not 0 < stop_probability < 1:
    raise ValueError(
      f"stop_probability={stop_probability}; it must lie between 0 and 1."
    )
  going_on = 1 - stop_probability
  method = Method(_roulette(going_on, num_exact_terms), False, batch_size)

  def estimate(key: jax.Array, matvec: Matvec, like: Any) -> Estimate:
    operator = flatten(matvec, like)
    probes_key, key = jax.random.split(key)
    probes = operator.directions(probes_key, num_samples)
    norm, norm_cost = _norm_bound(operator, probes[0])
    finite = refuse_unless(
      norm**2 < going_on,
      f"|A - I| may be as large as {norm}, and its square is not below "
      f"1 - stop_probability = {going_on}: the variance may be infinite; lower "
      "stop_probability, or use golub_kahan_quadrature.",
    )
    forms = log_forms(method, operator, probes, key)
    samples = forms.values[-1]
    zero = jnp.zeros_like(samples, shape=())
    return make_estimate(
      jnp.mean(samples),
      standard_error(samples, None),
      Deviation(zero, zero),
      len(probes),
      jnp.sum(forms.diagnostics) + norm_cost,
      finite,
    )

  return estimate


def _truncated(num_terms: int) -> LogAction:
  """The first terms of the series; their own error is |B^h x|^2."""

  def act(matvec, transpose, x, key) -> Action:
    def step(carry, k):
      power, total, turned, dual, half = carry
      sign = 1 - 2 * ((k - 1) % 2).astype(x.dtype)
      dual = dual + sign * turned
      turned = transpose(turned) - turned
      power = matvec(power) - power
      total = total + sign / k.astype(x.dtype) * power
      half = jnp.where(k == num_terms // 2, jnp.sum(power**2), half)
      return (power, total, turned, dual, half), None

    zero = jnp.zeros_like(x)
    start = (x, zero, x, zero, jnp.sum(x**2))
    (_, total, _, dual, half), _ = lax.scan(
      step, start, jnp.arange(1, num_terms + 1)
    )
    return Action(total[None], dual, half)

  return act


def _roulette(going_on: float, exact: int) -> LogAction:
  """The series up to a random term, weighted; counts products."""

  def act(matvec, transpose, x, key) -> Action:
    uniform = jax.random.uniform(key, (), x.dtype, jnp.finfo(x.dtype).tiny)
    extra = jnp.floor(jnp.log(uniform) / math.log(going_on))
    last = exact + extra.astype(jnp.int32)

    def step(carry):
      k, power, total, turned, dual, weight = carry
      dual = dual + weight * turned
      turned = turned - transpose(turned)
      power = power - matvec(power)
      total = total - weight / k.astype(x.dtype) * power
      weight = weight / jnp.where(k >= exact, going_on, 1.0).astype(x.dtype)
      return k + 1, power, total, turned, dual, weight

    one, zero = jnp.ones_like(x, shape=()), jnp.zeros_like(x)
    start = (jnp.ones((), jnp.int32), x, zero, x, zero, one)
    first = start[:-1] + (one / (going_on if exact == 0 else 1.0),)
    _, _, total, _, dual, _ = lax.while_loop(
      lambda carry: carry[0] <= last, step, first
    )
    return Action(total[None], dual, last)

  return act


def _norm_bound(operator: Operator, start: jax.Array) -> tuple[jax.Array, int]:
  """An upper bound on |A - I|, wrong once in a thousand times, and its cost.

  Kuczynski & Wozniakowski (1992), Theorem 4.2: from a start whose direction
  is uniform, m steps leave |B|^2 underestimated by a factor below 1 - epsilon
  with a probability of at most 1.648 sqrt(D) exp(-sqrt(epsilon) (2m - 1)).
  """
  dimension = operator.dimension
  steps = min(NORM_STEPS, dimension)
  difference = lambda x: operator.matvec(x) - x
  example = jax.ShapeDtypeStruct(start.shape, start.dtype)
  transpose = transposed(difference, example)
  space = golub_kahan(
    lambda x: lax.stop_gradient(difference(x)),
    lambda x: lax.stop_gradient(transpose(x)),
    start,
    steps,
  )
  largest = jnp.linalg.svdvals(space.matrix())[0]
  if steps == dimension:
    return largest, 2 * steps
  risk = math.log(1.648 * math.sqrt(dimension) / NORM_RISK)
  epsilon = (risk / (2 * steps - 1)) ** 2
  return largest / math.sqrt(1 - epsilon), 2 * steps
