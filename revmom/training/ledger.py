"""How much a run of training squeezes space: sums of log-determinants.

Every optimizer of this library has exact log-determinants, a factor for each
element of a parameter array and step (D log beta for momentum): `add_run`
enters a whole run.  A step of another optimizer is entered by `add`; plain
gradient descent and Nesterov's momentum have a term of curvature besides,
log|det(I - alpha H)|, which `sgd_curvature` estimates.

A float32 that adds up 10^5 terms is off by 8e-4 of them; here every sum is a
pair of floats with 48 bits, logs that are known in double precision keep it,
and the numbers of elements stay integers.  Variances add up, as the directions
of each estimate are its own; bounds of biases add up too.
"""

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from revmom.exact import compensated
from revmom.exact.compensated import Sum
from revmom.exact.pytree import Pytree, static
from revmom.jacobian.estimates.estimate import (
  CONFIDENCE,
  Deviation,
  Estimate,
  Matvec,
  flatten,
  make_estimate,
  standard_error,
)
from revmom.jacobian.estimates.trace import Estimator
from revmom.optimizers.reversible import ReversibleOptimizer
from revmom.optimizers.state import State


class Total(NamedTuple):
  """log|det| of a run so far."""

  value: jax.Array  # []
  stderr: jax.Array  # []: 0 if nothing was estimated
  interval: jax.Array  # [2]: 95 %, widened by the biases
  bias_bound: jax.Array  # []


class Ledger(Pytree):
  """Log-determinants of the steps of a run; build it with `init`."""

  factors: tuple[Sum, ...]  # log factor of an element of each parameter array
  curvature: Sum  # []: of all elements together
  variance: Sum  # []: of the curvature's estimates
  dispersion: Sum  # []: sum of variance^2 / (samples - 1)
  bias_bound: Sum  # []
  names: tuple[str, ...] = static()
  sizes: tuple[int, ...] = static()


def init(params: Any, dtype: Any = jnp.float32) -> Ledger:
  """An empty ledger for parameters, with sums of a type.

  >>> ledger = init({"w": jnp.zeros((3, 2)), "b": jnp.zeros(3)})
  >>> for _ in range(10):
  ...   ledger = add(ledger, float(np.log(0.9)))
  >>> report(ledger)
  {"['b']": -3.16081..., "['w']": -6.32163...}
  """
  paths = jax.tree.leaves_with_path(params)
  zero = compensated.zero(dtype)
  return Ledger(
    factors=(zero,) * len(paths),
    curvature=zero,
    variance=zero,
    dispersion=zero,
    bias_bound=zero,
    names=tuple(jax.tree_util.keystr(path) or "params" for path, _ in paths),
    sizes=tuple(int(np.size(leaf)) for _, leaf in paths),
  )


def add(
  ledger: Ledger, log_factor: Any = None, curvature: Any = None
) -> Ledger:
  """The ledger after another step.

  Args:
    ledger: so far.
    log_factor: log of what the step multiplies volume with for each element,
      log(beta) for momentum: a number or one for each parameter array, in the
      order of their leaves.  Python floats keep double precision.
    curvature: log|det| that is not such a product: an `Estimate`, with a random
      key of its own, or an exact number.

  Raises:
    ValueError: the number of factors is not that of the parameter arrays.
  """
  if log_factor is not None:
    many = isinstance(log_factor, (tuple, list))
    logs = list(log_factor) if many else [log_factor] * len(ledger.sizes)
    if len(logs) != len(ledger.sizes):
      raise ValueError(
        f"{len(logs)} factors for {len(ledger.sizes)} parameter arrays "
        f"{ledger.names}; give one number, or one for each."
      )
    factors = tuple(
      old.plus(log) for old, log in zip(ledger.factors, logs, strict=True)
    )
    ledger = ledger.replace(factors=factors)
  if curvature is None:
    return ledger
  if not isinstance(curvature, Estimate):
    return ledger.replace(curvature=ledger.curvature.plus(curvature))
  variance = curvature.stderr**2
  freedom = (curvature.num_samples - 1).astype(variance.dtype)
  dispersion = jnp.where(variance > 0, variance**2 / freedom, 0)
  return ledger.replace(
    curvature=ledger.curvature.plus(curvature.value),
    variance=ledger.variance.plus(variance),
    dispersion=ledger.dispersion.plus(dispersion),
    bias_bound=ledger.bias_bound.plus(curvature.bias_bound),
  )


def add_run(
  ledger: Ledger, optimizer: ReversibleOptimizer, state: State
) -> Ledger:
  """The ledger after all the steps that led to a state of an optimizer.

  Exact: the factors are those of `optimizer.log_det`, for each array.

  Args:
    ledger: of what came before the run.
    optimizer: of this library, as it was in the run.
    state: where the run has got to, such as `revmom.train(...).state`.

  Raises:
    ValueError: the state has parameter arrays of other sizes.

  >>> import revmom
  >>> params = {"w": jnp.zeros((3, 2)), "b": jnp.zeros(3)}
  >>> optimizer = revmom.sgd(learning_rate=0.1, momentum=0.9)
  >>> state = optimizer.init(params)
  >>> for _ in range(10):
  ...   state = optimizer.forward(state, lambda params: params)
  >>> book = add_run(init(params), optimizer, state)
  >>> report(book)
  {"['b']": -3.16081..., "['w']": -6.32163...}
  >>> print(f"{total(book).value:.4f} = {optimizer.log_det(state):.4f}")
  -9.4824 = -9.4824
  """
  sizes = tuple(math.prod(shape) for shape in state.packing.shapes)
  if sizes != ledger.sizes:
    raise ValueError(
      f"the state has parameter arrays of sizes {sizes}, the ledger of "
      f"{ledger.sizes}; begin the ledger with the same parameters."
    )
  dtype = ledger.curvature.value.dtype
  factors = tuple(
    old.plus(new.astype(dtype))
    for old, new in zip(
      ledger.factors, optimizer.log_factors(state), strict=True
    )
  )
  return ledger.replace(factors=factors)


def total(ledger: Ledger) -> Total:
  """log|det ds_k/ds_0| of all steps, with its error bar.

  The interval is Student's, with the degrees of freedom of a sum of estimates
  by Welch (1947) and Satterthwaite (1946): sum(v)^2 / sum(v^2 / (S - 1)).
  """
  value = ledger.curvature
  for factor, size in zip(ledger.factors, ledger.sizes, strict=True):
    value = value.plus(factor.times(size))
  variance, bias = ledger.variance.total, ledger.bias_bound.total
  stderr = jnp.sqrt(variance)
  reciprocal = (
    ledger.dispersion.total / jnp.where(variance > 0, variance, 1) ** 2
  )
  half = _t_quantile(reciprocal) * stderr + bias
  interval = jnp.stack([value.total - half, value.total + half])
  return Total(value.total, stderr, interval, bias)


def report(ledger: Ledger) -> dict[str, float]:
  """log|det| of each parameter array, in double precision, and of curvature.

  Only for ledgers that are known, outside of `jit`.
  """
  entries = {
    name: float(size * factor.double())
    for name, size, factor in zip(
      ledger.names, ledger.sizes, ledger.factors, strict=True
    )
  }
  curvature = float(ledger.curvature.double())
  return {**entries, "curvature": curvature} if curvature else entries


def gaussian_entropy(dimension: int, std: Any) -> Any:
  r"""Entropy of N(0, std^2 I), in nats: D/2 (1 + log 2 pi) + D log std.

  That of parameters drawn from it and trained is larger by `total`: S[q_T] =
  S[q_0] + E log|det J| (Duvenaud, Maclaurin & Adams 2016, Section 3).

  >>> print(f"{gaussian_entropy(2, 1.0):.4f}")
  2.8379
  """
  return dimension * (0.5 * (1 + np.log(2 * np.pi)) + jnp.log(std))


def sgd_curvature(
  estimator: Estimator,
  key: jax.Array,
  grad_fn: Callable[[Any], Any],
  params: Any,
  learning_rate: Any,
) -> Estimate:
  """log|det(I - alpha H)| of a step of gradient descent at some parameters.

  For a step of Nesterov's momentum, take the parameters at which it computes
  the gradient; its other factor is `add`'s log(beta).

  Args:
    estimator: such as `lanczos_quadrature` of revmom.jacobian, or
      `parabola_bound`.
    key: a random key of this step's own.
    grad_fn: parameters -> gradients.
    params: where.
    learning_rate: alpha, a number.
  """

  def matvec(vector: Any) -> Any:
    product = jax.jvp(grad_fn, (params,), (vector,))[1]
    return jax.tree.map(
      lambda v, h: v - jnp.asarray(learning_rate, v.dtype) * h, vector, product
    )

  return estimator(key, matvec, params)


def parabola_bound(num_samples: int) -> Estimator:
  """Estimates a lower bound of log|det A| from two products with A = I - X.

  log(1 - x) >= -x - x^2 for x <= 0.68, so that tr(-X - X^2) is a lower bound
  if no eigenvalue of X is larger (Duvenaud, Maclaurin & Adams 2016, Algorithm
  2).  That condition is not checked, and `bias_bound` is infinite.
  """

  def estimate(key: jax.Array, matvec: Matvec, like: Any) -> Estimate:
    operator = flatten(matvec, like)
    probes = operator.directions(key, num_samples)

    def form(r0: jax.Array) -> jax.Array:
      r1 = operator.matvec(r0)
      r2 = operator.matvec(r1)
      return r0 @ (-2 * r0 + 3 * r1 - r2)

    forms = jax.vmap(form)(probes)
    zero = jnp.zeros_like(forms[0])
    return make_estimate(
      jnp.mean(forms),
      standard_error(forms, operator.dimension),
      Deviation(zero, zero + jnp.inf),
      len(probes),
      2 * len(probes),
      jnp.ones((), bool),
    )

  return estimate


def _t_quantile(reciprocal: jax.Array) -> jax.Array:
  """Of Student's t for 1 / degrees of freedom, by interpolation."""
  from scipy import special  # comes with jax; slow to import

  grid = np.linspace(0, 1, 257)
  upper = (1 + CONFIDENCE) / 2
  table = special.stdtrit(1 / np.maximum(grid, 1e-9), upper)
  as_type = lambda numbers: jnp.asarray(numbers, reciprocal.dtype)
  return jnp.interp(
    lax.stop_gradient(reciprocal), as_type(grid), as_type(table)
  )
