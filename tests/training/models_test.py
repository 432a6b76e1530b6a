"""Whole runs of real models come back bit for bit."""

from collections.abc import Callable
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

import revmom

BATCH, CLASSES, CYCLE = 8, 4, 4


class Model(NamedTuple):
  """A small classifier and what it needs to be trained."""

  loss_fn: Callable[[Any, Any], jax.Array]
  params: Any
  data: Any  # inputs and labels of CYCLE batches
  preprocess: optax.GradientTransformation | None = None

  def batches(self, step):
    return jax.tree.map(lambda array: array[step % CYCLE], self.data)


def normal(seed, shape, scale=1.0, dtype=jnp.float32):
  draws = np.random.default_rng(seed).normal(size=shape) * scale
  return jnp.asarray(draws, jnp.float32).astype(dtype)


def labels(seed=0):
  draws = np.random.default_rng(seed).integers(0, CLASSES, (CYCLE, BATCH))
  return jnp.asarray(draws, jnp.int32)


def cross_entropy(logits, targets):
  logs = jax.nn.log_softmax(logits.astype(jnp.float32))
  return -jnp.mean(jnp.take_along_axis(logs, targets[:, None], 1))


def mlp(dtype=jnp.float32):
  params = {
    "first": {"w": normal(1, (6, 8), 0.4, dtype), "b": jnp.zeros(8, dtype)},
    "last": {"w": normal(2, (8, CLASSES), 0.4, dtype)},
  }

  def loss_fn(params, batch):
    inputs, targets = batch
    first = params["first"]
    hidden = jnp.tanh(inputs @ first["w"] + first["b"][None])
    return cross_entropy(hidden @ params["last"]["w"], targets)

  return Model(
    loss_fn, params, (normal(3, (CYCLE, BATCH, 6), 1, dtype), labels())
  )


def layer_norm(dtype=jnp.float32):
  params = {
    "w": normal(1, (6, 8), 0.4, dtype),
    "scale": jnp.ones(8, dtype),
    "bias": jnp.zeros(8, dtype),
    "out": normal(2, (8, CLASSES), 0.4, dtype),
  }

  def loss_fn(params, batch):
    inputs, targets = batch
    hidden = inputs @ params["w"]
    hidden = hidden - jnp.mean(hidden, -1, keepdims=True)
    variance = jnp.mean(hidden**2, -1, keepdims=True)
    hidden = hidden * jax.lax.rsqrt(variance + jnp.asarray(1e-5, dtype))
    hidden = hidden * params["scale"][None] + params["bias"][None]
    return cross_entropy(jax.nn.relu(hidden) @ params["out"], targets)

  return Model(
    loss_fn,
    params,
    (normal(3, (CYCLE, BATCH, 6), 1, dtype), labels()),
    optax.clip_by_global_norm(0.5),
  )


class _Conv(nn.Module):
  dtype: Any

  @nn.compact
  def __call__(self, x):
    x = nn.Conv(4, (3, 3), dtype=self.dtype, param_dtype=self.dtype)(x)
    x = nn.max_pool(nn.relu(x), (2, 2), (2, 2)).reshape(x.shape[0], -1)
    return nn.Dense(CLASSES, dtype=self.dtype, param_dtype=self.dtype)(x)


class _Lstm(nn.Module):
  dtype: Any

  @nn.compact
  def __call__(self, x):
    cell = nn.LSTMCell(6, dtype=self.dtype, param_dtype=self.dtype)
    outputs = nn.RNN(cell)(x)
    return nn.Dense(CLASSES, dtype=self.dtype, param_dtype=self.dtype)(
      outputs[:, -1]
    )


def _linen(module, inputs):
  # Orthogonal initial values exist in float32 only.
  wide = module.clone(dtype=jnp.float32)
  params = wide.init(jax.random.key(0), inputs[0].astype(jnp.float32))["params"]
  params = jax.tree.map(lambda array: array.astype(inputs.dtype), params)

  def loss_fn(params, batch):
    inputs, targets = batch
    return cross_entropy(module.apply({"params": params}, inputs), targets)

  return Model(loss_fn, params, (inputs, labels()))


def conv(dtype=jnp.float32):
  return _linen(_Conv(dtype), normal(3, (CYCLE, BATCH, 6, 6, 1), 1, dtype))


def lstm(dtype=jnp.float32):
  return _linen(_Lstm(dtype), normal(3, (CYCLE, BATCH, 5, 3), 1, dtype))


def attention(dtype=jnp.float32):
  names = ("query", "key", "value")
  params = {n: normal(i, (6, 6), 0.4, dtype) for i, n in enumerate(names)}
  params["out"] = normal(9, (6, CLASSES), 0.4, dtype)

  def loss_fn(params, batch):
    inputs, targets = batch
    query, key, value = (inputs @ params[name] for name in names)
    scores = jnp.einsum("bqd,bkd->bqk", query, key)
    mixed = jax.nn.softmax(scores) @ value
    return cross_entropy(jnp.mean(mixed, 1) @ params["out"], targets)

  return Model(
    loss_fn, params, (normal(5, (CYCLE, BATCH, 5, 6), 1, dtype), labels())
  )


def embedding(dtype=jnp.float32):
  draws = np.random.default_rng(7).integers(0, 11, (CYCLE, BATCH, 3))
  tokens = jnp.asarray(draws, jnp.int32)
  params = {
    "table": normal(1, (11, 6), 0.4, dtype),
    "out": normal(2, (6, CLASSES), 0.4, dtype),
  }

  def loss_fn(params, batch):
    tokens, targets = batch
    hidden = jnp.tanh(jnp.sum(params["table"][tokens], 1))
    return cross_entropy(hidden @ params["out"], targets)

  return Model(loss_fn, params, (tokens, labels()))


MODELS = [mlp, layer_norm, conv, lstm, attention, embedding]


def same(a, b):
  """Whether two pytrees hold the same bits."""
  equal = jax.tree.map(lambda x, y: bool(jnp.array_equal(x, y)), a, b)
  return jax.tree.all(equal)


def assert_rewinds(model, optimizer, steps, transform=lambda f: f, start=None):
  """Trains and rewinds, both compiled; returns the run."""
  params = model.params if start is None else start

  def train(params, data):
    batches = model._replace(data=data).batches
    run = revmom.train(
      model.loss_fn, optimizer, params, batches, num_steps=steps
    )
    return run, optimizer.init(params, 0)

  def rewind(state, data):
    batches = model._replace(data=data).batches
    return revmom.rewind(model.loss_fn, optimizer, state, batches)

  run, initial = jax.jit(transform(train))(params, model.data)
  rewound = jax.jit(transform(rewind))(run.state, model.data)
  assert bool(jnp.all(rewound.receipt.ok)), rewound.receipt
  assert same(rewound.state.leaves, initial.leaves)
  snap = lambda state, _: optimizer.params(state)
  snapped = transform(snap)(initial, model.data)
  assert same(rewound.params, snapped)
  for shown, given in zip(
    jax.tree.leaves(snapped), jax.tree.leaves(params), strict=True
  ):
    rounding = 2.0**-25 if given.dtype == jnp.float32 else 2.0**-8
    np.testing.assert_allclose(
      np.asarray(shown, np.float64),
      np.asarray(given, np.float64),
      rtol=0,
      atol=rounding,
    )
  assert {leaf.integers["params"].dtype for leaf in initial.leaves} == {
    jnp.dtype("int32")
  }
  assert bool(jnp.all(jnp.isfinite(run.losses)))
  for moved, still in zip(run.state.leaves, initial.leaves, strict=True):
    same_params = moved.integers["params"] == still.integers["params"]
    assert not bool(jnp.all(same_params)), "it went nowhere"
  return run


def sgd(model, momentum, learning_rate=0.02, **kwargs):
  optimizer = revmom.sgd(learning_rate, momentum, **kwargs)
  if model.preprocess is None:
    return optimizer
  return revmom.preprocessed(optimizer, model.preprocess)


def batch_of_eight(tree):
  """Eight different initial parameters."""
  factors = jnp.linspace(0.5, 1.5, 8)
  scale = lambda a: (
    a[None] * factors.reshape(8, *[1] * a.ndim).astype(a.dtype)
    + jnp.asarray(0.01, a.dtype)
  )
  return jax.tree.map(scale, tree)


def over_params(function):
  return jax.vmap(function, (0, None))


def mesh():
  return jax.make_mesh((8,), ("data",), axis_types=(AxisType.Auto,))


def test_a_short_run_comes_back():
  model = mlp()
  run = assert_rewinds(model, sgd(model, 0.9), 200)
  assert float(run.losses[-1]) < float(run.losses[0])


@pytest.mark.slow
@pytest.mark.parametrize("momentum", [0.5, 0.9, 0.98, 0.999, 58983 / 65536])
def test_five_thousand_steps_come_back(momentum):
  model = mlp()
  assert_rewinds(model, sgd(model, momentum, 0.2 * (1 - momentum)), 5000)


@pytest.mark.slow
def test_momentum_per_step_and_leaf_comes_back():
  model = mlp()
  schedule = jnp.asarray(np.linspace(0.5, 0.999, 5000), jnp.float32)
  momentum = {"first": {"w": schedule, "b": 0.9}, "last": schedule[::-1]}
  rates = {"first": 0.02, "last": lambda step: 0.04 / (1 + step / 1000)}
  assert_rewinds(model, sgd(model, momentum, rates, weight_decay=1e-3), 5000)


@pytest.mark.slow
@pytest.mark.parametrize("form", ["ema", "trace"])
def test_other_forms_come_back(form):
  model = mlp()
  optimizer = sgd(model, 0.9, 0.02, form=form, weight_decay=0.01)
  assert_rewinds(model, optimizer, 2000)


@pytest.mark.slow
@pytest.mark.parametrize("build", MODELS)
@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_models_come_back(build, dtype):
  model = build(dtype)
  run = assert_rewinds(model, sgd(model, 0.9), 1000)
  for leaf in jax.tree.leaves(run.params):
    assert leaf.dtype == dtype


@pytest.mark.slow
def test_traced_momenta_come_back():
  """One compilation serves all momenta above the floor."""
  model = mlp()
  batched = sgd(
    model,
    jnp.array([0.5, 0.9, 0.98, 0.999]),
    grid=revmom.Grid(floors={"velocity": 0.5}),
  )

  def there_and_back(optimizer):
    run = revmom.train(
      model.loss_fn, optimizer, model.params, model.batches, num_steps=2000
    )
    rewound = revmom.rewind(model.loss_fn, optimizer, run.state, model.batches)
    start = optimizer.params(optimizer.init(model.params, 2000))
    return rewound.receipt.ok, rewound.params, start

  one_by_one = jax.jit(lambda all_: jax.lax.map(there_and_back, all_))
  ok, params, start = one_by_one(
    batched.replace(learning_rate=jnp.full(4, 0.02))
  )
  assert bool(jnp.all(ok))
  assert same(params, start)


@pytest.mark.slow
@pytest.mark.parametrize("build", [mlp, layer_norm, lstm, attention])
def test_vmapped_runs_come_back_vmapped(build):
  model = build()
  start = batch_of_eight(model.params)
  run = assert_rewinds(model, sgd(model, 0.9), 1000, over_params, start)
  assert run.losses.shape == (8, 1000)


@pytest.mark.sharded
@pytest.mark.slow
@pytest.mark.parametrize("build", [mlp, layer_norm])
def test_batches_sharded_over_eight_devices(build):
  model = build()
  sharding = NamedSharding(mesh(), P(None, "data"))
  data = jax.device_put(model.data, sharding)
  everywhere = NamedSharding(mesh(), P())
  model = model._replace(
    data=data, params=jax.device_put(model.params, everywhere)
  )
  assert_rewinds(model, sgd(model, 0.9), 300)


@pytest.mark.sharded
@pytest.mark.slow
def test_parameters_sharded_over_eight_devices():
  model = mlp()
  spread = {
    "first": {"w": P(None, "data"), "b": P("data")},
    "last": {"w": P("data", None)},
  }
  shardings = jax.tree.map(lambda spec: NamedSharding(mesh(), spec), spread)
  params = jax.device_put(model.params, shardings)
  data = jax.device_put(model.data, NamedSharding(mesh(), P()))
  model = model._replace(params=params, data=data)
  run = assert_rewinds(model, sgd(model, 0.9), 300)
  assert len(run.params["first"]["w"].sharding.device_set) == 8
