"""Packed arrays come apart as they were, and change no bit of a run."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from jax.sharding import NamedSharding, PartitionSpec

import revmom
from revmom.optimizers import packing

STEPS = 40
shapes = st.lists(st.integers(0, 4), max_size=3).map(tuple)


@settings(max_examples=15, deadline=None, derandomize=True)
@given(st.lists(st.tuples(shapes, st.sampled_from("ab")), max_size=6))
def test_unpack_undoes_pack(drawn):
  arrays = [
    np.arange(np.prod(shape), dtype=np.float32).reshape(shape) + 100 * i
    for i, (shape, _) in enumerate(drawn)
  ]
  kinds = [kind for _, kind in drawn]
  packed = packing.make(arrays, kinds)
  assert len(packed.groups) == len(set(kinds))

  @jax.jit
  def there_and_back(arrays):
    together = packed.pack(arrays)
    twice = [jnp.stack([a, 2 * a]) for a in together]
    return packed.unpack(together), packed.unpack(twice)

  back, batched = there_and_back(arrays)
  for got, array in zip(back, arrays, strict=True):
    np.testing.assert_array_equal(got, array)
  for got, array in zip(batched, arrays, strict=True):
    np.testing.assert_array_equal(got, np.stack([array, 2 * array]))


def members(groups):
  return [group.members for group in groups]


def test_what_is_large_or_of_another_kind_stays_alone():
  large = 2, packing.LARGEST
  arrays = [np.zeros(s) for s in (3, large, (2, 2), 5, (7, 2))]
  packed = packing.make(arrays, ["a", "a", "b", "a", None])
  assert members(packed.groups) == [(0, 3), (1,), (2,), (4,)]
  assert packed.each("wxyz") == ["w", "x", "y", "w", "z"]
  assert packed.first("abcde") == ["a", "b", "c", "e"]


@pytest.mark.parametrize(("backend", "axes"), [("cpu", 1), ("tpu", 2)])
def test_a_large_array_has_one_axis_on_cpu(monkeypatch, backend, axes):
  monkeypatch.setattr(jax, "default_backend", lambda: backend)
  large = jnp.arange(4.0 * packing.LARGEST).reshape(4, -1)
  packed = packing.make([large, jnp.zeros(3), large], ["a", "a", None])
  assert [a.ndim for a in packed.pack([large, jnp.zeros(3), large])] == [
    axes, 1, 2
  ]  # fmt: skip
  back = packed.unpack(packed.pack([large, jnp.zeros(3), large]))
  np.testing.assert_array_equal(back[0], large)


@pytest.mark.sharded
def test_what_may_be_spread_over_devices_stays_alone():
  mesh = jax.make_mesh((8,), ("data",))
  whole = jnp.zeros(16)
  split = jax.device_put(whole, NamedSharding(mesh, PartitionSpec("data")))
  both = jax.device_put(whole, NamedSharding(mesh, PartitionSpec()))
  packed = packing.make([whole, split, whole, both], ["a"] * 4)
  assert members(packed.groups) == [(0, 2), (1,), (3,)]
  assert [group.flat for group in packed.groups] == [True, False, False]
  # Inside jit nobody knows, unless there is one device only.
  groups = []
  traced = lambda *arrays: groups.append(packing.make(arrays, "aa").groups)
  jax.eval_shape(traced, whole, whole)
  assert groups == [(packing.Group((0,), False), packing.Group((1,), False))]


PARAMS = {
  "w": np.linspace(-1, 1, 12, dtype=np.float32).reshape(4, 3),
  "b": np.array([0.5, -0.25, 0.125], np.float32),
  "half": np.array([[1.0, -2.0]], jnp.bfloat16),
  "scale": np.float32(0.7),
}


def loss_fn(params, batch):
  hidden = jnp.tanh(batch @ params["w"] + params["b"]) * params["scale"]
  half = jnp.sin(params["half"].astype(batch.dtype))
  return jnp.mean(hidden**2) + jnp.sum(half**2)


def batches(steps=STEPS):
  return jax.random.normal(jax.random.key(0), (steps, 5, 4))


def groups_of(optimizer, params=PARAMS):
  return members(optimizer.resolve(params, STEPS).packing.groups)


RATE = 0.05
PACKED = {
  "sgd": revmom.sgd(RATE, 0.9, weight_decay=0.1),
  "adamw": revmom.adamw(RATE),
  "rmsprop": revmom.rmsprop(RATE),
  "adagrad": revmom.adagrad(RATE),
  "signum": revmom.signum(1e-3),
  "averaged": revmom.averaged(revmom.adam(RATE), 0.9),
}


def steps_with_given_gradients(optimizer):
  """Params, averages and log-determinant after steps, and the way back."""
  state = start = optimizer.init(PARAMS, num_steps=STEPS)
  noise = lambda t: jax.tree.map(
    lambda p: jax.random.normal(
      jax.random.fold_in(jax.random.key(1), t), jnp.shape(p), jnp.float32
    ).astype(p.dtype),
    PARAMS,
  )

  @jax.jit
  def there_and_back(state):
    forward = lambda s, t: (optimizer.forward(s, lambda _: noise(t)), None)
    inverse = lambda s, t: (optimizer.inverse(s, lambda _: noise(t)), None)
    end, _ = jax.lax.scan(forward, state, jnp.arange(STEPS))
    back, _ = jax.lax.scan(inverse, end, jnp.arange(STEPS), reverse=True)
    return end, back

  end, back = there_and_back(state)
  jax.tree.map(np.testing.assert_array_equal, back, start)
  average = ()
  if optimizer.average is not None:
    average = optimizer.average_params(end)
  return optimizer.params(end), average, optimizer.log_det(end), len(end.leaves)


def rigid(arrays, kinds, make=packing.make):
  """Every array in its own shape."""
  return make(arrays, [None] * len(kinds))


@pytest.mark.slow
@pytest.mark.parametrize("name", PACKED)
def test_packing_changes_no_bit(name, monkeypatch):
  *packed, leaves = steps_with_given_gradients(PACKED[name])
  assert leaves == 1
  monkeypatch.setattr(packing, "LARGEST", -1)
  *flat, leaves = steps_with_given_gradients(PACKED[name])
  assert leaves == len(PARAMS)
  monkeypatch.setattr(packing, "make", rigid)
  *alone, leaves = steps_with_given_gradients(PACKED[name])
  assert leaves == len(PARAMS)
  jax.tree.map(np.testing.assert_array_equal, packed, alone)
  jax.tree.map(np.testing.assert_array_equal, flat, alone)


def test_a_packed_run_comes_back():
  @jax.jit
  def there_and_back(params):
    run = revmom.train(loss_fn, PACKED["adamw"], params, batches())
    assert len(run.state.leaves) == 1
    snapped = PACKED["adamw"].params(PACKED["adamw"].init(params))
    back = revmom.rewind(loss_fn, PACKED["adamw"], run.state, batches())
    return back.receipt.ok, back.params, snapped

  ok, params, snapped = there_and_back(PARAMS)
  assert bool(ok)
  jax.tree.map(np.testing.assert_array_equal, params, snapped)


@pytest.mark.slow
@pytest.mark.parametrize(
  ("dtype", "tolerance"), [(np.float32, 5e-3), (np.float64, 1e-9)]
)
def test_packing_changes_no_gradient(dtype, tolerance, monkeypatch, x64):
  """Beyond the rounding of sums whose order differs, such as a norm's.

  Terms of the gradient of b2 cancel, and it loses three digits.
  """
  optimizer = revmom.clipped(revmom.adamw(RATE), 0.3)

  def gradients(leaves):
    jax.clear_caches()

    def objective(optimizer, params, data):
      run = revmom.train(loss_fn, optimizer, params, data)
      assert len(run.state.leaves) == leaves
      return loss_fn(run.params, data[0]) + jnp.sum(run.losses)

    return jax.grad(objective, (0, 1, 2))(optimizer, params, data)

  params = {name: jnp.asarray(value, dtype) for name, value in PARAMS.items()}
  if dtype == np.float32:
    params["half"] = jnp.asarray(PARAMS["half"])
  data = batches().astype(dtype)
  close = lambda a, b: np.testing.assert_allclose(
    np.asarray(a, float), np.asarray(b, float), rtol=tolerance, atol=1e-12
  )
  packed = gradients(leaves=1)
  monkeypatch.setattr(packing, "LARGEST", -1)
  flat = gradients(leaves=len(PARAMS))
  monkeypatch.setattr(packing, "make", rigid)
  alone = gradients(leaves=len(PARAMS))
  jax.tree.map(close, packed, alone)
  jax.tree.map(close, flat, alone)


def test_only_what_obeys_the_same_equations_is_packed():
  assert len(groups_of(PACKED["sgd"])) == 1
  per_leaf = {"w": RATE, "b": 0.1, "half": 0.2, "scale": 0.3}
  assert len(groups_of(revmom.sgd(per_leaf, 0.9))) == 4
  assert len(groups_of(revmom.clipped(revmom.sgd(RATE, 0.9), per_leaf))) == 4
  per_element = np.full((1, 3), RATE)
  vector = {"a": np.zeros(3, np.float32), "b": np.ones(3, np.float32)}
  assert len(groups_of(revmom.sgd(per_element, 0.9), vector)) == 2
  assert len(groups_of(revmom.sgd(np.full(STEPS, RATE), 0.9), vector)) == 1
  matrices = {"a": np.eye(3), "b": np.eye(2), "c": np.ones(2), "d": np.ones(3)}
  assert groups_of(revmom.muon(RATE), matrices) == [(0,), (1,), (2, 3)]
  parts = revmom.partition(
    {"slow": revmom.sgd(0.1, 0.9), "fast": revmom.sgd(1.0, 0.9)},
    lambda params: {"a": "slow", "b": "fast", "c": "slow", "d": "fast"},
  )
  assert groups_of(parts, matrices) == [(0, 2), (1, 3)]


def test_an_overflow_is_found_in_its_own_array():
  optimizer = revmom.sgd(0.1, 0.9)
  params = {"a": jnp.zeros(2), "b": jnp.zeros((2, 2)), "c": jnp.zeros(3)}
  state = optimizer.init(params, num_steps=2)
  assert len(state.leaves) == 1
  bad = {**params, "b": jnp.array([[0.0, 0.0], [jnp.nan, 0.0]])}
  state = optimizer.forward(state, lambda _: bad)
  with pytest.raises(
    ValueError, match=r"1 of 4 elements of the parameter array \['b'\], shape"
  ):
    optimizer.check(state)
  shown = optimizer.params(state)
  assert not any(bool(jnp.isnan(shown[name]).any()) for name in "ac")
  assert int(jnp.isnan(shown["b"]).sum()) == 1
