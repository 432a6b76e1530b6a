"""Gradient descent with a ledger of the entropy that it takes from weights.

The rule is that of Duvenaud, Maclaurin & Adams (2016): weights drawn from
N(0, s0^2) have the entropy D/2 (1 + log 2 pi) + D log s0, and each step adds
log|det| of its Jacobian.
"""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from revmom.jacobian import lanczos_quadrature, top_eigenvalues
from revmom.training import (
  Ledger,
  gaussian_entropy,
  ledger,
  parabola_bound,
  sgd_curvature,
)

Params = list[jax.Array]  # weights [F, G] and bias [G] of each layer

_SAMPLES = 2  # directions of an estimate of one step
_LANCZOS_STEPS = 6
_LARGEST_STEPS = 24  # of Lanczos, for the largest eigenvalue


class Examples(NamedTuple):
  """Inputs [N, F], and labels int32 [N] or targets float32 [N]."""

  inputs: np.ndarray
  targets: np.ndarray


class Problem(NamedTuple):
  """What is trained, and how."""

  sizes: tuple[int, ...]  # of the layers, inputs first
  train: Examples
  test: Examples
  init_scale: float  # s0 of all weights, and of the prior
  learning_rate: float  # of the mean loss
  batch_size: int  # drawn with replacement
  threshold: float = 0.0  # g0, of the gradient of the summed loss
  target_scale: float = 1.0  # of targets before they were normalised


class State(NamedTuple):
  """Of one run; of several if arrays have a leading axis."""

  params: Params
  book: Ledger  # log|det| by Lanczos quadrature
  bound: Ledger  # by the paper's estimator


def outputs(params: Params, inputs: jax.Array | np.ndarray) -> jax.Array:
  """A network with tanh units and linear outputs: [N, G]."""
  inputs = jnp.asarray(inputs)
  *inner, weights, bias = params
  for w, b in zip(inner[::2], inner[1::2], strict=True):
    inputs = jnp.tanh(inputs @ w + b)
  return inputs @ weights + bias


def log_likelihoods(params: Params, examples: Examples) -> jax.Array:
  """Of each example, [N].

  Classes if targets are integers.  Else -(y - t)^2 - log(2 pi) / 2, which the
  authors' code has: without the half of a normal density.
  """
  found = outputs(params, examples.inputs)
  if jnp.issubdtype(examples.targets.dtype, jnp.integer):
    logs = jax.nn.log_softmax(found)
    return jnp.take_along_axis(logs, examples.targets[:, None], 1)[:, 0]
  constant = 0.5 * float(np.log(2 * np.pi))
  return -((found[:, 0] - examples.targets) ** 2) - constant


def error(params: Params, examples: Examples) -> jax.Array:
  """The fraction of wrong classes, or the root mean squared error."""
  found = outputs(params, examples.inputs)
  if jnp.issubdtype(examples.targets.dtype, jnp.integer):
    return jnp.mean(found.argmax(-1) != examples.targets)
  return jnp.sqrt(jnp.mean((found[:, 0] - examples.targets) ** 2))


def initial(problem: Problem, key: jax.Array) -> State:
  """Weights and biases from N(0, s0^2), and empty ledgers."""
  shapes = [
    shape
    for fan, out in zip(problem.sizes[:-1], problem.sizes[1:], strict=True)
    for shape in ((fan, out), (out,))
  ]
  keys = jax.random.split(key, len(shapes))
  params = [
    problem.init_scale * jax.random.normal(key, shape)
    for key, shape in zip(keys, shapes, strict=True)
  ]
  return State(params, ledger.init(params), ledger.init(params))


# The entropy-friendly gradient g' = g - g0 tanh(g / g0) of the paper: it leaves
# small gradients, which would squeeze space most, alone.


def _inner_slope(g: jax.Array, threshold: jax.Array) -> jax.Array:
  """tanh(g / g0), whose square is dg'/dg; 1 without a threshold."""
  positive = threshold > 0
  return jnp.where(positive, jnp.tanh(g / jnp.where(positive, threshold, 1)), 1)


def shrunk(g: jax.Array, threshold: jax.Array) -> jax.Array:
  """g - g0 tanh(g / g0), and g itself without a threshold."""
  return g - threshold * _inner_slope(g, threshold)


class Descent(NamedTuple):
  """A step x - alpha (g - g0 tanh(g / g0)) at some parameters.

  Its Jacobian is I - alpha T^2 H with the diagonal T = tanh(g / g0).  By
  Sylvester's identity its determinant is that of I - alpha T H T, which is
  symmetric: plain descent in coordinates that T stretches.
  """

  before: Params
  after: Params
  stretched: Callable[[Params], Params]  # gradients, with the Jacobian T H T
  rate: jax.Array

  def curvature(self, estimator: Any, key: jax.Array) -> Any:
    """log|det(I - alpha T H T)|, an `Estimate`."""
    return sgd_curvature(estimator, key, self.stretched, self.before, self.rate)

  def largest_eigenvalue(self, key: jax.Array) -> jax.Array:
    """Of alpha T H T."""

    def matvec(vector: Params) -> Params:
      product = jax.jvp(self.stretched, (self.before,), (vector,))[1]
      return jax.tree.map(lambda p: self.rate * p, product)

    return top_eigenvalues(_LARGEST_STEPS, 1)(key, matvec, self.before).values[
      0
    ]


def descend(
  params: Params,
  loss: Callable[[Params], jax.Array],
  rate: jax.Array,
  threshold: jax.Array,
) -> Descent:
  """One step; the threshold is 0 for plain gradient descent."""
  gradient = jax.grad(loss)
  gradients = gradient(params)
  stretch = jax.tree.map(lambda g: _inner_slope(g, threshold), gradients)

  def stretched(point: Params) -> Params:
    moved = jax.tree.map(
      lambda x, p, t: x + t * (p - x), params, point, stretch
    )
    return jax.tree.map(jnp.multiply, stretch, gradient(moved))

  after = jax.tree.map(
    lambda x, g: x - rate * shrunk(g, threshold), params, gradients
  )
  return Descent(params, after, stretched, rate)


def _batch_loss(
  train: Examples, key: jax.Array, batch_size: int
) -> Callable[[Params], jax.Array]:
  """The summed loss of all examples, estimated by some of them."""
  count = len(train.targets)
  chosen = jax.random.randint(key, (batch_size,), 0, count)
  batch = jax.tree.map(lambda array: jnp.asarray(array)[chosen], train)
  return lambda params: -count * jnp.mean(log_likelihoods(params, batch))


@functools.partial(jax.jit, static_argnames=("length", "batch_size"))
def advance(
  states: State,
  train: Examples,
  keys: jax.Array,
  first: jax.Array,
  learning_rate: jax.Array,
  threshold: jax.Array,
  *,
  length: int,
  batch_size: int,
) -> State:
  """`length` steps of each run.

  Args:
    states: of the runs, which have a leading axis [R].
    train: examples.
    keys: [R], of batches and directions.
    first: number of the first step.
    learning_rate: of the mean loss.
    threshold: g0; 0 for plain gradient descent.
    length: steps.
    batch_size: examples of a step, drawn with replacement.
  """
  count = len(train.targets)
  lanczos = lanczos_quadrature(_LANCZOS_STEPS, _SAMPLES)
  parabola = parabola_bound(_SAMPLES)

  def run(state: State, key: jax.Array) -> State:
    def step(state: State, number: jax.Array) -> tuple[State, None]:
      own = jax.random.split(jax.random.fold_in(key, number), 3)
      loss = _batch_loss(train, own[0], batch_size)
      done = descend(state.params, loss, learning_rate / count, threshold)
      enter = lambda book, estimator, key: ledger.add(
        book, curvature=done.curvature(estimator, key)
      )
      book = enter(state.book, lanczos, own[1])
      bound = enter(state.bound, parabola, own[2])
      return State(done.after, book, bound), None

    return lax.scan(step, state, first + jnp.arange(length))[0]

  return jax.vmap(run)(states, keys)


class Measured(NamedTuple):
  """Of each run [R], in nats per training example."""

  train_likelihood: jax.Array
  test_likelihood: jax.Array
  train_error: jax.Array
  test_error: jax.Array
  log_prior: jax.Array
  entropy: jax.Array
  entropy_stderr: jax.Array
  entropy_low: jax.Array  # ends of the 95 % interval
  entropy_high: jax.Array
  entropy_bound: jax.Array  # with the paper's estimator
  largest_eigenvalue: jax.Array  # of alpha H: the bound needs 0.68 or less


def measure(problem: Problem, states: State, keys: jax.Array) -> Measured:
  """All figures of the states of some runs."""
  return _measure(
    states,
    keys,
    problem.train,
    problem.test,
    np.float32(problem.init_scale),
    np.float32(problem.learning_rate),
    np.float32(problem.threshold),
    batch_size=problem.batch_size,
  )


@functools.partial(jax.jit, static_argnames="batch_size")
def _measure(
  states,
  keys,
  train,
  test,
  init_scale,
  learning_rate,
  threshold,
  *,
  batch_size,
):
  count = len(train.targets)

  def of(state: State, key: jax.Array) -> Measured:
    squares = sum(jnp.sum(p * p) for p in state.params)
    dimension = sum(p.size for p in state.params)
    log_prior = -0.5 * squares / init_scale**2 - dimension * (
      0.5 * float(np.log(2 * np.pi)) + jnp.log(init_scale)
    )
    start = gaussian_entropy(dimension, init_scale)
    book, bound = ledger.total(state.book), ledger.total(state.bound)
    likelihood = lambda data: jnp.mean(log_likelihoods(state.params, data))
    loss = _batch_loss(train, key, batch_size)
    done = descend(state.params, loss, learning_rate / count, threshold)
    return Measured(
      likelihood(train),
      likelihood(test),
      error(state.params, train),
      error(state.params, test),
      log_prior / count,
      (start + book.value) / count,
      book.stderr / count,
      (start + book.interval[0]) / count,
      (start + book.interval[1]) / count,
      (start + bound.value) / count,
      done.largest_eigenvalue(key),
    )

  return jax.vmap(of)(states, keys)
