"""Reversals whose gradients are computed otherwise than those of the run."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import revmom
from revmom.training import plans

STEPS = 40
OPTIMIZERS = {
  "sgd": revmom.sgd(0.05, 0.9),
  "adamw": revmom.clipped(revmom.adamw(1e-2, weight_decay=0.1), 0.5),
  "muon": revmom.muon(1e-2),
}


def problem():
  rng = np.random.default_rng(0)
  normal = lambda *shape: jnp.asarray(rng.normal(size=shape), "float32")
  params = {"w": normal(20, 30) / 4, "b": normal(30), "v": normal(30, 7) / 5}
  return params, (normal(STEPS, 24, 20), normal(STEPS, 24, 7))


def loss_fn(params, batch):
  x, y = batch
  hidden = jnp.tanh(x @ params["w"] + params["b"][None])
  return jnp.mean((hidden @ params["v"] - y) ** 2)


def in_parts(params, batch):
  """The same loss, of another order of rows and in four parts."""
  turned = jax.tree.map(lambda a: a[::-1].reshape(4, 6, -1), batch)
  return jnp.mean(jax.lax.map(lambda part: loss_fn(params, part), turned))


def rewind_in_parts(optimizer, bits, plan=None):
  params, batches = problem()
  train = lambda p: revmom.train(
    loss_fn, optimizer, p, batches, residue_bits=bits, plan=plan
  )
  run = jax.jit(train)(params)
  undo = lambda s: revmom.rewind(in_parts, optimizer, s, batches)
  return run, jax.jit(undo)(run.state)


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_other_microbatches_restore_every_bit(name):
  run, back = rewind_in_parts(OPTIMIZERS[name], 2)
  assert bool(back.receipt.ok)
  jax.tree.map(np.testing.assert_array_equal, back.params, run.initial_params)


class Again(plans.Policy):
  """Segments that are run again, though there is room for all words."""

  def make(self, steps, costs):
    return plans._split(steps, 3, "recompute", 1)


@pytest.mark.parametrize(
  "name", ["sgd", pytest.param("muon", marks=pytest.mark.slow)]
)
def test_segments_that_are_run_again_in_other_microbatches(name):
  """The second pass computes other gradients, too."""
  run, back = rewind_in_parts(OPTIMIZERS[name], 2, plan=Again())
  assert run.state.plan.segments == 3
  assert bool(back.receipt.ok)
  jax.tree.map(np.testing.assert_array_equal, back.params, run.initial_params)


def test_without_residues_they_do_not():
  _, back = rewind_in_parts(OPTIMIZERS["sgd"], 0)
  assert not bool(back.receipt.ok)


def test_hypergradients_and_losses_are_those_of_the_run_without():
  params, batches = problem()
  optimizer = OPTIMIZERS["sgd"]

  def objective(optimizer, params, bits):
    run = revmom.train(loss_fn, optimizer, params, batches, residue_bits=bits)
    return jnp.sum(run.losses[-5:])

  @jax.jit
  def both(optimizer, params):
    gradient = jax.value_and_grad(objective, (0, 1))
    return gradient(optimizer, params, 0), gradient(optimizer, params, 1)

  (value, plain), (rounded_value, rounded) = both(optimizer, params)
  np.testing.assert_allclose(value, rounded_value, rtol=1e-4)
  for a, b in zip(
    jax.tree.leaves(plain), jax.tree.leaves(rounded), strict=True
  ):
    np.testing.assert_allclose(a, b, atol=1e-3 * np.abs(a).max())


def test_another_environment_is_forgiven():
  params, batches = problem()
  optimizer = OPTIMIZERS["sgd"]
  run = revmom.train(loss_fn, optimizer, params, batches, residue_bits=2)
  other = run.state.replace(
    fingerprint=run.state.fingerprint._replace(jax="0.0", threads=99)
  )
  back = revmom.rewind(in_parts, optimizer, other, batches)
  jax.tree.map(np.testing.assert_array_equal, back.params, run.initial_params)


def test_what_is_kept_and_refused():
  params, batches = problem()
  run = lambda **options: jax.eval_shape(
    lambda p: revmom.train(loss_fn, OPTIMIZERS["sgd"], p, batches, **options),
    params,
  )
  kept = jax.tree.leaves(run(residue_bits=2).state.residues)
  size = sum(a.size for a in jax.tree.leaves(params))
  assert sum(a.size for a in kept) <= STEPS * (size + 128) * (2 / 8 + 1 / 128)
  assert not run().state.residues
  with pytest.raises(ValueError, match="choose one of"):
    run(residue_bits=3)
  plan = revmom.plans.recompute(30_000)
  assert run(residue_bits=2, plan=plan).state.plan.steps == STEPS
  with pytest.raises(ValueError, match="raise the budget"):
    run(residue_bits=8, plan=plan)
