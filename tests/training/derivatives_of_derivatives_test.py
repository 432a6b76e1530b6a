"""Derivatives of hypergradients are refused, never wrong in silence."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

import revmom


def loss_fn(x, batch):
  return jnp.sum(0.5 * x**2 * batch)


def objective(learning_rate):
  optimizer = revmom.sgd(learning_rate, 0.5)
  run = revmom.train(loss_fn, optimizer, jnp.ones(1), jnp.ones(5))
  return jnp.sum(run.params**2)


def of_start(x):
  run = revmom.train(loss_fn, revmom.adam(0.1), x, jnp.ones(5))
  return jnp.sum(run.params**2)


def meta_objective(learning_rate):
  """A run whose loss is a run."""
  loss = lambda x, batch: of_start(x) * batch
  optimizer = revmom.sgd(learning_rate, 0.5)
  return jnp.sum(revmom.train(loss, optimizer, jnp.ones(1), jnp.ones(3)).params)


POINT = 0.5


@pytest.mark.parametrize(
  "composition",
  {
    "grad of grad": lambda: jax.grad(jax.grad(objective))(POINT),
    "jitted": lambda: jax.jit(jax.grad(jax.grad(objective)))(POINT),
    "vmapped": lambda: jax.vmap(jax.grad(jax.grad(objective)))(jnp.ones(2)),
    "jvp of grad": lambda: jax.jvp(jax.grad(objective), (POINT,), (1.0,)),
    "jacrev of grad": lambda: jax.jacrev(jax.grad(objective))(POINT),
    "hessian": lambda: jax.hessian(of_start)(jnp.ones(1)),
    "penalty": lambda: jax.grad(lambda a: jax.grad(objective)(a) ** 2)(POINT),
    "run in a run": lambda: jax.jit(jax.grad(meta_objective))(0.1),
  }.values(),
)
def test_a_derivative_of_a_hypergradient_is_refused(composition):
  with pytest.raises(ValueError, match="can't be differentiated again"):
    composition()


def test_a_stopped_hypergradient_is_fine():
  scaled = lambda a: a * jax.grad(objective)(lax.stop_gradient(a))
  both = jax.jit(lambda a: (jax.grad(objective)(a), jax.grad(scaled)(a)))
  assert both(POINT) == (-0.1875, -0.1875)


def test_many_objectives_at_once():
  """jacrev of a vector runs one reversal for all its elements."""

  def outcomes(optimizer):
    run = revmom.train(loss_fn, optimizer, jnp.arange(1.0, 4.0), jnp.ones(20))
    return jnp.stack([jnp.sum(run.params), jnp.max(run.params), run.losses[7]])

  @jax.jit
  def both(optimizer):
    one = lambda which: jax.grad(lambda o: outcomes(o) @ which)(optimizer)
    return jax.jacrev(outcomes)(optimizer), lax.map(one, jnp.eye(3))

  for a, b in zip(*map(jax.tree.leaves, both(revmom.adam(0.1))), strict=True):
    np.testing.assert_allclose(a, b, rtol=1e-4)
