"""States are saved and restored, and what doesn't fit is named."""

import functools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import orbax.checkpoint as ocp
import pytest

import revmom
from revmom.training import plans


class Again(plans.Policy):
  """Segments that are run again, though there is room for all words."""

  def make(self, steps, costs):
    return plans._split(steps, 2, "recompute", 1)


def loss_fn(params, batch):
  return jnp.sum(jnp.cos(params["w"] - batch)) + jnp.sum(params["b"] ** 2)


BATCHES = np.linspace(0, 3, 24, dtype=np.float32).reshape(8, 3)
PARAMS = {"w": np.ones((2, 3), np.float32), "b": np.ones(3, np.float32)}
OPTIMIZERS = {
  "partition": revmom.muon(0.1, 0.8),
  "sgd": revmom.sgd(0.1, 0.5, weight_decay=0.01),
}


def stepped(optimizer):
  stepper = revmom.Stepper(loss_fn, optimizer, residue_bits=1)
  state = stepper.init(PARAMS, num_steps=8)
  for batch in BATCHES[:3]:
    state, _ = stepper.forward(state, batch)
  return stepper, state


def trained(optimizer):
  run = jax.jit(functools.partial(revmom.train, loss_fn, plan=Again()))
  return optimizer, run(optimizer, PARAMS, BATCHES).state


def no_steps(optimizer):
  return optimizer, revmom.train(loss_fn, optimizer, PARAMS, BATCHES[:0]).state


def in_optax(optimizer):
  transformation = revmom.as_optax(optimizer, num_steps=5)
  return transformation, transformation.init(PARAMS)


@pytest.mark.parametrize("name", OPTIMIZERS)
@pytest.mark.parametrize("make", [stepped, trained, no_steps, in_optax])
def test_a_state_comes_back_from_orbax(make, name, tmp_path):
  owner, state = make(OPTIMIZERS[name])
  with ocp.StandardCheckpointer() as checkpointer:
    checkpointer.save(tmp_path / "state", revmom.to_state_dict(owner, state))
    checkpointer.wait_until_finished()
    stored = checkpointer.restore(tmp_path / "state")
  again = revmom.from_state_dict(owner, stored, PARAMS)
  assert jax.tree.structure(again) == jax.tree.structure(state)
  chex.assert_trees_all_equal(again, state)
  chex.assert_trees_all_equal_dtypes(again, state)
  if make is stepped:
    for batch in BATCHES[2::-1]:
      again, _ = owner.inverse(again, batch)
    owner.check(again)


def test_a_run_goes_on_and_back_from_a_file(tmp_path):
  optimizer, state = trained(OPTIMIZERS["sgd"])
  np.savez(tmp_path / "run.npz", **revmom.to_state_dict(optimizer, state))
  again = revmom.from_state_dict(
    optimizer, np.load(tmp_path / "run.npz"), PARAMS
  )
  back = jax.jit(functools.partial(revmom.rewind, loss_fn))
  assert bool(back(optimizer, again, BATCHES).receipt.ok)


@pytest.mark.parametrize(
  ("owner", "params", "message"),
  [
    (revmom.adamw(0.1), None, r"optimizer\.parts\[0\]\.name='sgd'.*'adam"),
    (
      revmom.sgd(0.1, 0.9, grid=revmom.Grid({"velocity": 20})),
      None,
      r"parts\[0\]\.fraction_bits\.velocity=28, but .*velocity=20",
    ),
    (revmom.sgd(0.1, 0.8), None, "multiplied 'velocity' by 0.9 in step 0"),
    (revmom.sgd(0.1, 0.9, weight_decay=0.1), None, "weight_decay was None"),
    (revmom.clipped(revmom.sgd(0.1, 0.9), 1.0), None, r"optimizer\.clip=False"),
    (None, {"a": PARAMS["b"], "w": PARAMS["w"]}, r"params\[0\]\[0\]=.*'b'"),
    (None, {"b": np.ones(2, np.float32), "w": PARAMS["w"]}, r"\[1\]\[0\]=3"),
    (optax.sgd(0.1), None, "an optax transformation"),
    (
      revmom.Stepper(lambda params, batch: 0.0, revmom.sgd(0.1, 0.9)),
      None,
      "saved as a State; a Stepper goes on from the state of a Stepper alone",
    ),
  ],
)
def test_what_differs_is_named(owner, params, message):
  optimizer = revmom.sgd(0.1, 0.9)
  stored = revmom.to_state_dict(optimizer, optimizer.init(PARAMS, 4))
  with pytest.raises(ValueError, match=f"(?s){message}"):
    revmom.from_state_dict(owner or optimizer, stored, params or PARAMS)


def test_a_damaged_dict():
  optimizer = revmom.sgd(0.1, 0.9)
  stored = revmom.to_state_dict(optimizer, optimizer.init(PARAMS, 4))
  restored = functools.partial(revmom.from_state_dict, optimizer, params=PARAMS)
  with pytest.raises(ValueError, match="without 'about'"):
    restored({"array_0": 1})
  text = stored["about"].tobytes().replace(b'"version": 1', b'"version": 9')
  with pytest.raises(ValueError, match="version=9, but this revmom reads"):
    restored({**stored, "about": np.frombuffer(text, np.uint8)})
  with pytest.raises(ValueError, match="array 'array_1' is missing"):
    restored({k: v for k, v in stored.items() if k != "array_1"})
  with pytest.raises(ValueError, match=r"saved as int32\[9\], but is now"):
    restored({**stored, "array_1": np.zeros(3)})
