"""log|det J| of a function too large for a dense Jacobian."""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from revmom.jacobian.estimates.estimate import Estimate, flatten
from revmom.jacobian.estimates.log_action import product_log, symmetric_log
from revmom.jacobian.estimates.log_forms import Method
from revmom.jacobian.estimates.quadrature import effective_rank, quadrature

FIRST_STEPS = 16


def stochastic_log_det(
  f: Callable[..., Any],
  args: tuple,
  key: jax.Array,
  *,
  symmetric: bool = False,
  num_samples: int = 32,
  max_steps: int = 64,
  batch_size: int | None = None,
) -> Estimate:
  """Estimates log|det df/dargs| from products with the Jacobian alone.

  Lanczos quadrature if the Jacobian is symmetric, as that of x - alpha
  grad L(x) is, else Golub-Kahan quadrature of 1/2 log det(J^T J), at twice the
  products.  The Krylov spaces start with 16 steps and are doubled until
  truncation counts for less than sampling, or `max_steps` are reached.  If the
  first of them show that fewer eigenvalues of log|J| stand out than there are
  samples, the estimator leaves one out (XTrace).

  Args:
    f: a function between pytrees of equally many real numbers.
    args: where; its derivatives are taken with respect to all of `args`.
    key: a random key.
    symmetric: promises a symmetric Jacobian; checked at no cost.
    num_samples: random directions; the error falls with their square root.
    max_steps: most Krylov steps for a direction.  Memory is that of
      (num_samples or batch_size) * max_steps vectors like `args`, twice as
      much if not symmetric.
    batch_size: directions handled at once, all by default.

  Returns:
    An `Estimate`.  Its value differentiates with respect to all that `f` and
    `args` depend on, any number of times.  Where `max_steps` were too few
    `bias_bound` says so, up to infinity.

  Raises:
    ValueError: sizes that differ; as far as is known outside of `jit`: a
      Jacobian that is singular, not finite, or not symmetric though promised.
      Inside, the estimate is NaN and not `valid`.

  >>> estimate = stochastic_log_det(
  ...   lambda x: 2 * x + 0.1 * jnp.roll(jnp.sin(x), 1),
  ...   (jnp.arange(5.0),),
  ...   jax.random.key(0),
  ... )
  >>> print(f"{estimate.value:.5f} {estimate.stderr}")
  3.46574 0.0
  """
  if max_steps < 1:
    raise ValueError(f"max_steps={max_steps}; at least one step is needed.")
  linear = jax.linearize(f, *args)[1]
  operator = flatten(lambda tangents: linear(*tangents), args)
  action = symmetric_log if symmetric else product_log
  most = min(max_steps, operator.dimension)

  def attempt(steps: int, leave_one_out: bool) -> _Attempt:
    method = Method(action(steps), leave_one_out, batch_size)
    cost = steps if symmetric else 2 * steps
    estimate, spectrum = quadrature(method, operator, key, num_samples, cost)
    # More steps can't help against rounding.
    rounding = 2 * jnp.mean(spectrum.rounding)
    unsettled = estimate.bias_bound > estimate.stderr + rounding
    few = effective_rank(spectrum) < num_samples
    return _Attempt(estimate, ~unsettled, few & (estimate.stderr > 0))

  def follow(steps: int, leave_one_out: bool, before: _Attempt) -> _Attempt:
    return before.then(attempt(steps, leave_one_out))

  def refine(start: _Attempt, steps: int, leave_one_out: bool) -> _Attempt:
    while steps < most:
      steps = min(2 * steps, most)
      more = functools.partial(follow, steps, leave_one_out)
      start = _either(start.settled, lambda a: a, more, start)
    return start

  first = min(FIRST_STEPS, most)
  start = attempt(first, False)
  return _either(
    start.few,
    lambda a: refine(follow(first, True, a), first, True),
    lambda a: refine(a, first, False),
    start,
  ).estimate


class _Attempt(NamedTuple):
  """An estimate, and whether another should follow."""

  estimate: Estimate
  settled: jax.Array  # bool []: truncation counts for less than sampling
  few: jax.Array  # bool []: eigenvalues stand out, fewer than samples

  def then(self, other: "_Attempt") -> "_Attempt":
    """The other one, with the cost of both."""
    spent = self.estimate.num_matvecs + other.estimate.num_matvecs
    return other._replace(estimate=other.estimate._replace(num_matvecs=spent))


def _either(
  condition: jax.Array,
  then: Callable[[_Attempt], _Attempt],
  otherwise: Callable[[_Attempt], _Attempt],
  attempt: _Attempt,
) -> _Attempt:
  """One of two continuations, chosen now if the condition is known."""
  try:
    return (then if bool(condition) else otherwise)(attempt)
  except jax.errors.ConcretizationTypeError:
    return lax.cond(condition, then, otherwise, attempt)
