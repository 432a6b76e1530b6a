"""Accumulated gradients are those of the whole batch, in less memory."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import revmom

WIDTH, BATCH = 64, 512


def problem():
  rng = np.random.default_rng(0)
  draw = lambda *shape: jnp.asarray(rng.normal(size=shape), jnp.float32)
  params = [0.1 * draw(WIDTH, WIDTH) for _ in range(4)]

  def loss_fn(params, batch, scale):
    hidden = batch
    for weights in params:
      hidden = jnp.tanh(hidden @ weights)
    return scale * jnp.mean((hidden - 0.5) ** 2)

  return params, loss_fn, draw(3, BATCH, WIDTH)


def test_gradient_of_the_whole_batch():
  params, loss_fn, batches = problem()
  whole = jax.value_and_grad(loss_fn)(params, batches[0], 2.0)
  parts = jax.value_and_grad(revmom.accumulated(loss_fn, 8))(
    params, batches[0], 2.0
  )
  for a, b in zip(jax.tree.leaves(whole), jax.tree.leaves(parts), strict=True):
    np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-7)


def final(loss_fn, mode):
  def objective(optimizer, params, batches):
    run = revmom.train(
      loss_fn, optimizer, params, batches, 2.0, second_order_mode=mode
    )
    return loss_fn(run.params, batches[0], 2.0)

  return jax.value_and_grad(objective)


@pytest.mark.slow
def test_hypergradients_and_their_memory():
  params, loss_fn, batches = problem()
  args = revmom.adamw(0.01), params, batches
  results, memory = {}, {}
  for name, loss, mode in (
    ("whole", loss_fn, "auto"),
    ("parts", revmom.accumulated(loss_fn, 16), "auto"),
  ):
    compiled = jax.jit(final(loss, mode)).lower(*args).compile()
    results[name] = compiled(*args)
    memory[name] = compiled.memory_analysis().temp_size_in_bytes
  for a, b in zip(
    jax.tree.leaves(results["whole"]),
    jax.tree.leaves(results["parts"]),
    strict=True,
  ):
    np.testing.assert_allclose(a, b, rtol=1e-2)
  assert memory["parts"] < 0.8 * memory["whole"]


@pytest.mark.parametrize("number", [0, 3, 1000])
def test_parts_must_be_equal(number):
  params, loss_fn, batches = problem()
  with pytest.raises(ValueError, match=r"\(512, 64\) can't be cut into"):
    revmom.accumulated(loss_fn, number)(params, batches[0], 1.0)
