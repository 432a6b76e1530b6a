"""What holds for every optimizer, against optax as the reference."""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax import lax

import revmom

WEIGHTS, BIASES = (5, 4), (4,)


class Case(NamedTuple):
  """An optimizer and its namesake, both of named hyperparameters."""

  ours: Callable[..., Any]
  theirs: Callable[..., optax.GradientTransformation]
  hypers: dict[str, float]


def optax_adamw(learning_rate, b1, b2, eps, eps_root, weight_decay):
  return optax.chain(
    optax.scale_by_adam(b1, b2, eps, eps_root),
    optax.add_decayed_weights(weight_decay),
    optax.scale(-learning_rate),
  )


def optax_rmsprop(learning_rate, decay, momentum, eps, eps_in_sqrt=True):
  return optax.chain(
    optax.scale_by_rms(decay, eps, eps_in_sqrt=eps_in_sqrt),
    optax.scale(-learning_rate),
    optax.trace(momentum),
  )


def optax_adagrad(learning_rate, momentum, initial_accumulator_value, eps):
  def init(params):
    fill = lambda p: jnp.broadcast_to(initial_accumulator_value, p.shape)
    return jax.tree.map(fill, params)

  def update(gradients, state, params=None):
    state = jax.tree.map(lambda s, g: s + g**2, state, gradients)
    scaled = jax.tree.map(lambda s, g: g / jnp.sqrt(s + eps), state, gradients)
    return scaled, state

  return optax.chain(
    optax.GradientTransformation(init, update),
    optax.scale(-learning_rate),
    optax.trace(momentum),
  )


def optax_signum(learning_rate, momentum, weight_decay):
  return optax.chain(
    optax.ema(momentum, debias=False),
    optax.scale_by_sign(),
    optax.add_decayed_weights(weight_decay),
    optax.scale(-learning_rate),
  )


def optax_muon(learning_rate, momentum, eps, weight_decay):
  return optax.contrib.muon(
    learning_rate,
    beta=momentum,
    eps=eps,
    weight_decay=weight_decay,
    nesterov=False,
  )


def optax_sgd(learning_rate, momentum, weight_decay):
  return optax.chain(
    optax.trace(momentum),
    optax.add_decayed_weights(weight_decay),
    optax.scale(-learning_rate),
  )


CASES = {
  "sgd": Case(
    functools.partial(revmom.sgd, form="trace"),
    optax_sgd,
    {"learning_rate": 0.02, "momentum": 0.9, "weight_decay": 0.01},
  ),
  "adamw": Case(
    revmom.adamw,
    optax_adamw,
    {
      "learning_rate": 0.01,
      "b1": 0.9,
      "b2": 0.99,
      "eps": 1e-3,
      "eps_root": 1e-4,
      "weight_decay": 0.01,
    },
  ),
  "rmsprop": Case(
    revmom.rmsprop,
    optax_rmsprop,
    {"learning_rate": 0.003, "decay": 0.95, "momentum": 0.8, "eps": 1e-3},
  ),
  "rmsprop outside": Case(
    functools.partial(revmom.rmsprop, eps_in_sqrt=False),
    functools.partial(optax_rmsprop, eps_in_sqrt=False),
    {"learning_rate": 0.003, "decay": 0.95, "momentum": 0.8, "eps": 1e-2},
  ),
  "adagrad": Case(
    revmom.adagrad,
    optax_adagrad,
    {
      "learning_rate": 0.02,
      "momentum": 0.8,
      "initial_accumulator_value": 0.1,
      "eps": 1e-3,
    },
  ),
  "signum": Case(
    revmom.signum,
    optax_signum,
    {"learning_rate": 0.001, "momentum": 0.9, "weight_decay": 0.01},
  ),
  "muon": Case(
    revmom.muon,
    optax_muon,
    {
      "learning_rate": 0.01,
      "momentum": 0.9,
      "eps": 1e-6,
      "weight_decay": 0.01,
    },
  ),
}
REPRESENTATIVES = ("sgd", "adamw", "muon")


def every(*marks):
  """All cases, of which only the representatives lack the marks."""
  return pytest.mark.parametrize(
    "case",
    [
      pytest.param(
        case, marks=() if name in REPRESENTATIVES else marks, id=name
      )
      for name, case in CASES.items()
    ],
  )


slow, exhaustive = pytest.mark.slow, pytest.mark.exhaustive


def problem(dtype="float32", seed=0):
  """Parameters, and a loss of them and a batch whose gradients never settle."""
  rng = np.random.default_rng(seed)
  draw = lambda *shape: jnp.asarray(rng.normal(size=shape), dtype)
  params = {"b": 0.3 * draw(*BIASES), "w": 0.5 * draw(*WEIGHTS)}
  x, y = draw(64, 6, 5), draw(64, 6, 4)

  def loss(params, batch):
    x, y = batch
    predicted = jnp.tanh(x @ params["w"] + params["b"])
    return jnp.mean((predicted - jnp.tanh(y)) ** 2)

  return params, loss, (x, y)


def batch_at(data, step):
  return jax.tree.map(lambda a: a[step % 64], data)


def optax_run(transformation, params, loss, data, steps):
  """Plain optax; autodiff stores and differentiates it."""

  def step(carry, t):
    params, state = carry
    gradients = jax.grad(loss)(params, batch_at(data, t))
    updates, state = transformation.update(gradients, state, params)
    return (optax.apply_updates(params, updates), state), None

  with jax.numpy_dtype_promotion("standard"):
    start = params, transformation.init(params)
    return lax.scan(step, start, jnp.arange(steps))[0][0]


@every(slow)
def test_follows_optax(case):
  """Over 1000 steps, to 2e-4 of the way that the parameters went."""
  params, loss, data = problem()
  optimizer = case.ours(**case.hypers)
  run = jax.jit(
    lambda p: revmom.train(
      loss, optimizer, p, lambda t: batch_at(data, t), num_steps=1000
    )
  )(params)
  optimizer.check(run.state)
  theirs = jax.jit(
    lambda p: optax_run(case.theirs(**case.hypers), p, loss, data, 1000)
  )(params)
  tolerance = 2e-2 if "signum" in str(case.theirs) else 2e-4
  for name, start in params.items():
    way = np.linalg.norm(theirs[name] - start)
    assert way > 0.1
    difference = np.linalg.norm(run.params[name] - theirs[name])
    assert difference <= tolerance * way


STEPS = 2000


@slow
@every()
def test_two_thousand_steps_and_back(case):
  params, loss, data = problem()
  hypers = case.hypers
  first = next(name for name in hypers if name in ("momentum", "b1"))
  hypers = {
    **hypers,
    "learning_rate": {"b": 2e-3, "w": optax.cosine_decay_schedule(5e-3, STEPS)},
    first: {"b": 0.9, "w": np.linspace(0.6, 0.95, STEPS, dtype=np.float32)},
  }
  batches = lambda t: batch_at(data, t)
  with jax.numpy_dtype_promotion("standard"):  # for the schedule
    optimizer = revmom.clipped(case.ours(**hypers), 1.0)
    run = jax.jit(
      lambda p: revmom.train(loss, optimizer, p, batches, num_steps=STEPS)
    )(params)
    rewound = jax.jit(lambda s: revmom.rewind(loss, optimizer, s, batches))(
      run.state
    )
    optimizer.check(run.state)
  assert bool(rewound.receipt.ok)
  snapped = jax.tree.map(fixed, params)
  chex.assert_trees_all_equal(rewound.params, snapped)
  moved = jnp.abs(run.params["w"] - params["w"])
  assert float(jnp.max(moved)) > 0.01


def fixed(values):
  return jnp.round(values * 2.0**24) * 2.0**-24


@pytest.mark.sharded
@slow
@every(exhaustive)
def test_vmapped_and_sharded(case):
  params, loss, data = problem()
  optimizer = case.ours(**case.hypers)
  batches = lambda t: batch_at(data, t)
  train = lambda p: revmom.train(loss, optimizer, p, batches, num_steps=40)
  rewind = lambda s: revmom.rewind(loss, optimizer, s, batches)
  many = jax.tree.map(
    lambda p: p * jnp.linspace(0.5, 1.5, 8).reshape(8, *[1] * p.ndim), params
  )
  runs = jax.jit(jax.vmap(train))(many)
  back = jax.jit(jax.vmap(rewind))(runs.state)
  assert bool(jnp.all(back.receipt.ok))
  chex.assert_trees_all_equal(back.params, jax.tree.map(fixed, many))

  auto = (jax.sharding.AxisType.Auto,)
  mesh = jax.make_mesh((8,), ("seed",), axis_types=auto)
  spread = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec("seed"))
  sharded = jax.device_put(many, spread)
  runs = jax.jit(jax.vmap(train))(sharded)
  assert len(runs.params["w"].sharding.device_set) == 8
  back = jax.jit(jax.vmap(rewind))(runs.state)
  assert bool(jnp.all(back.receipt.ok))


@every(slow, exhaustive)
def test_log_det_is_that_of_the_dense_jacobian(case, x64):
  """Of optax's step in float64, from a state that 3 steps led to."""
  params, loss, data = problem("float64")
  theirs, optimizer = (
    case.theirs(**case.hypers),
    case.ours(**case.hypers, grid=revmom.Grid(integer="int64")),
  )

  @jax.jit
  def of_both(params):
    state = theirs.init(params)
    for t in range(3):
      gradients = jax.grad(loss)(params, batch_at(data, t))
      updates, state = theirs.update(gradients, state, params)
      params = optax.apply_updates(params, updates)
    flat, unravel = jax.flatten_util.ravel_pytree((params, _floating(state)))

    def step(flat):
      params, floating = unravel(flat)
      inner = _with_floating(state, floating)
      gradients = jax.grad(loss)(params, batch_at(data, 3))
      updates, after = theirs.update(gradients, inner, params)
      params = optax.apply_updates(params, updates)
      return jax.flatten_util.ravel_pytree((params, _floating(after)))[0]

    own = optimizer.init(params, num_steps=4)
    one = optimizer.log_det(optimizer.forward(own, lambda p: p))
    return jax.jacobian(step)(flat), one

  with jax.numpy_dtype_promotion("standard"):
    jacobian, one = of_both(params)
  sign, dense = np.linalg.slogdet(jacobian)
  assert sign == 1
  np.testing.assert_allclose(one, dense, rtol=1e-9)


def _is_slot(leaf):
  shaped = leaf.shape in (WEIGHTS, BIASES)
  return shaped and jnp.issubdtype(leaf.dtype, jnp.floating)


def _floating(state):
  return [leaf for leaf in jax.tree.leaves(state) if _is_slot(leaf)]


def _with_floating(state, floating):
  leaves, structure = jax.tree.flatten(state)
  slots = iter(floating)
  return structure.unflatten(
    next(slots) if _is_slot(leaf) else leaf for leaf in leaves
  )


@every(slow, exhaustive)
@pytest.mark.parametrize("clip", [None, 0.05])
def test_hypergradients_are_those_of_autodiff(case, clip, x64):
  """Of every hyperparameter and the start, through optax's stored run."""
  params, loss, data = problem("float64")
  hypers = dict(case.hypers) | ({} if clip is None else {"clip": clip})
  held_out = batch_at(data, 63)

  def ours(hypers, params):
    template = case.ours(**case.hypers, grid=revmom.Grid(integer="int64"))
    if clip is not None:
      template = revmom.clipped(template, clip)
    optimizer = with_hypers(template, hypers)
    run = revmom.train(
      loss, optimizer, params, lambda t: batch_at(data, t), num_steps=25
    )
    return loss(run.params, held_out)

  def theirs(hypers, params):
    hypers = dict(hypers)
    threshold = hypers.pop("clip", None)
    transformation = case.theirs(**hypers)
    if threshold is not None:
      transformation = optax.chain(
        optax.clip_by_global_norm(threshold), transformation
      )
    params = optax_run(transformation, params, loss, data, 25)
    return loss(params, held_out)

  traced = jax.tree.map(lambda v: jnp.asarray(v, "float64"), hypers)
  with jax.numpy_dtype_promotion("standard"):
    value, bars = jax.jit(jax.value_and_grad(ours, (0, 1)))(traced, params)
    expected, expected_bars = jax.jit(jax.value_and_grad(theirs, (0, 1)))(
      traced, params
    )
  np.testing.assert_allclose(value, expected, rtol=1e-9)
  for name in hypers:
    np.testing.assert_allclose(
      bars[0][name], expected_bars[0][name], rtol=1e-6, atol=1e-12, err_msg=name
    )
  for name in params:
    scale = np.max(np.abs(expected_bars[1][name]))
    np.testing.assert_allclose(
      bars[1][name], expected_bars[1][name], rtol=0, atol=1e-6 * scale
    )


def with_hypers(optimizer, hypers):
  """The optimizer with traced hyperparameters, its buffers sized as before."""
  if not isinstance(optimizer, revmom.optimizers.Partition):
    return optimizer.replace(**hypers)
  matrices, others = (optimizer.optimizers[k] for k in ("matrices", "others"))
  own = {k: v for k, v in hypers.items() if k != "clip"}
  return optimizer.replace(
    clip=hypers.get("clip"),
    optimizers={
      "matrices": matrices.replace(**own),
      "others": others.replace(
        learning_rate=hypers["learning_rate"], eps=hypers["eps"]
      ),
    },
  )


PARABOLA = (
  lambda p, _: jnp.sum((p["x"] - jnp.array([1.0, -2.0, 0.5])) ** 2),
  [0.0, 0.0, 0.0],
  [1.0, -2.0, 0.5],
)
VALLEY = (  # of Rosenbrock, from near its usual start
  lambda p, _: (
    (1 - p["x"][0]) ** 2 + 5 * (p["x"][1] - p["x"][0] * p["x"][0]) ** 2
  ),
  [-1.0, 1.0],
  [1.0, 1.0],
)


@every(slow)
@pytest.mark.parametrize(
  "landscape", [PARABOLA, VALLEY], ids=["bowl", "valley"]
)
def test_finds_minima(case, landscape):
  function, start, end = landscape
  hypers = {k: v for k, v in case.hypers.items() if k != "weight_decay"}
  if case.ours is revmom.adamw:
    hypers["weight_decay"] = None
  hypers["learning_rate"] = optax.linear_schedule(0.02, 0.0, 3000)
  optimizer = revmom.clipped(case.ours(**hypers), 5.0)
  with jax.numpy_dtype_promotion("standard"):  # for the schedule
    run = jax.jit(
      lambda p: revmom.train(function, optimizer, p, jnp.zeros(3000))
    )({"x": jnp.array(start)})
    optimizer.check(run.state)
  np.testing.assert_allclose(run.params["x"], end, atol=0.05)


@pytest.mark.slow
def test_hypergradients_of_each_step_and_array(x64):
  """AdamW with all kinds of hyperparameters at once, through optax's run."""
  steps = 12
  params, loss, data = problem("float64")
  rng = np.random.default_rng(5)
  table = lambda low, high: jnp.asarray(rng.uniform(low, high, steps))
  hypers = {
    "learning_rate": {"b": table(0.005, 0.02), "w": jnp.asarray(0.01)},
    "b1": {"b": jnp.asarray(0.8), "w": jnp.asarray(0.95)},
    "b2": {"b": jnp.asarray(0.95), "w": jnp.asarray(0.99)},
    "eps": {"b": jnp.asarray(1e-3), "w": jnp.asarray(2e-3)},
    "weight_decay": {"b": jnp.asarray(0.0), "w": table(0.01, 0.1)},
    "clip": {"b": table(0.02, 0.2), "w": jnp.asarray(0.1)},
  }
  held_out = batch_at(data, 63)

  def ours(hypers):
    optimizer = revmom.adamw(
      0.01,
      b1=0.8,
      b2=0.95,
      grid=revmom.Grid(floors={"params": 0.99}, integer="int64"),
    ).replace(**hypers)
    run = revmom.train(
      loss, optimizer, params, lambda t: batch_at(data, t), num_steps=steps
    )
    return loss(run.params, held_out)

  def theirs(hypers):
    take = lambda value, t: value[t] if value.ndim else value
    slots = {
      name: optax.scale_by_adam(*(hypers[k][name] for k in ("b1", "b2", "eps")))
      for name in params
    }

    def step(carry, t):
      params, states = carry
      gradients = jax.grad(loss)(params, batch_at(data, t))
      moved, after = {}, {}
      for name, p in params.items():
        now = {k: take(hypers[k][name], t) for k in hypers}
        norm = jnp.linalg.norm(gradients[name])
        clipped = gradients[name] * jnp.minimum(1, now["clip"] / norm)
        update, after[name] = slots[name].update(clipped, states[name])
        update = update + now["weight_decay"] * p
        moved[name] = p - now["learning_rate"] * update
      return (moved, after), None

    start = params, {name: slots[name].init(p) for name, p in params.items()}
    final = lax.scan(step, start, jnp.arange(steps))[0][0]
    return loss(final, held_out)

  with jax.numpy_dtype_promotion("standard"):
    value, bars = jax.jit(jax.value_and_grad(ours))(hypers)
    expected, expected_bars = jax.jit(jax.value_and_grad(theirs))(hypers)
  np.testing.assert_allclose(value, expected, rtol=1e-9)
  assert jax.tree.structure(bars) == jax.tree.structure(expected_bars)
  for (path, bar), exact in zip(
    jax.tree.leaves_with_path(bars), jax.tree.leaves(expected_bars), strict=True
  ):
    assert np.any(exact != 0)
    scale = np.max(np.abs(exact))
    np.testing.assert_allclose(
      bar, exact, rtol=0, atol=1e-6 * scale, err_msg=jax.tree_util.keystr(path)
    )
