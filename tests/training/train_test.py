"""Hypergradients equal autodiff through the stored run; failures are loud."""

import functools
import math
from typing import Any

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax import lax

import revmom

BITS, STEPS, FEATURES, EXAMPLES = 48, 12, 3, 5


@functools.partial(jax.jit, static_argnums=1)
def _quantise(x, bits):
  """Rounds to the grid; differentiates as the identity."""
  rounded = jnp.round(x * 2.0**bits) * 2.0**-bits
  return x + lax.stop_gradient(rounded - x)


def reference(
  loss_fn, hypers, params, batches, *args, form="heavy_ball", preprocess=None
):
  """A run that autodiff stores; params is a dict, hypers full-sized.

  Only increments are rounded: the library's buffers hold what a product with
  the momentum drops, so that its velocity differs from this one by less than
  the grid's resolution a step.
  """
  steps = jax.tree.leaves(batches)[0].shape[0]

  def take(value, name, t):
    value = value[name] if isinstance(value, dict) else value
    value = jnp.asarray(value)
    if value.ndim == 0:
      return value
    return value[t] if value.shape[0] == steps else value[0]

  def step(carry, xs):
    params, velocity = carry
    t, batch = xs
    value, grads = jax.value_and_grad(loss_fn)(params, batch, *args)
    if preprocess is not None:
      grads, _ = preprocess.update(grads, preprocess.init(params), params)
    new_params, new_velocity = {}, {}
    for name, x in params.items():
      rate = take(hypers["learning_rate"], name, t)
      beta = take(hypers["momentum"], name, t)
      decay = take(hypers.get("weight_decay", 0.0), name, t)
      gain = {"heavy_ball": rate, "ema": 1 - beta, "trace": 1.0}[form]
      v = beta * velocity[name] + _quantise(-gain * grads[name], BITS)
      move = v if form == "heavy_ball" else rate * v
      new_params[name] = (1 - rate * decay) * x + _quantise(move, BITS)
      new_velocity[name] = v
    return (new_params, new_velocity), value

  start = {name: _quantise(x, BITS) for name, x in params.items()}
  carry = start, jax.tree.map(jnp.zeros_like, start)
  xs = jnp.arange(steps), batches
  (params, _), losses = lax.scan(step, carry, xs)
  return params, losses


def normal(seed, *shape, scale=0.5):
  draws = np.random.default_rng(seed).normal(size=shape) * scale
  return jnp.asarray(draws)


def initial():
  return {"b": normal(0, 2), "w": normal(1, FEATURES, 2)}


def batches(steps=STEPS):
  labels = np.random.default_rng(3).integers(0, 2, (steps, EXAMPLES))
  return {
    "x": normal(2, steps, EXAMPLES, FEATURES, scale=1.0),
    "y": jnp.asarray(labels),
  }


def loss_fn(params, batch, l2=0.0, weights=None):
  logits = jnp.tanh(batch["x"] @ params["w"] + params["b"][None])
  logs = jax.nn.log_softmax(2 * logits)
  each = -jnp.take_along_axis(logs, batch["y"][:, None], 1)[:, 0]
  each = each if weights is None else each * weights
  return jnp.mean(each) + l2 * jnp.sum(params["w"] ** 2)


PROBE = {"b": np.array([1.0, -0.5]), "w": np.linspace(-1, 1, 6).reshape(3, 2)}


def outcome(params, losses):
  """A smooth function of the whole result of a run."""
  total = sum(
    jnp.sum(jnp.sin(params[name] + jnp.asarray(PROBE[name]))) for name in params
  )
  return total + jnp.sum(jnp.cos(losses))


def assert_same_gradients(ours, theirs, rtol=1e-6):
  """Equal to `rtol` of each array's largest element, and none is zero."""
  chex.assert_trees_all_equal_structs(ours, theirs)
  for (path, a), b in zip(
    jax.tree.leaves_with_path(ours), jax.tree.leaves(theirs), strict=True
  ):
    name = jax.tree_util.keystr(path)
    largest = float(jnp.max(jnp.abs(b)))
    assert largest > 1e-6, name
    assert a.dtype == b.dtype, name
    np.testing.assert_allclose(
      a, b, rtol=0, atol=rtol * largest, err_msg=name, strict=True
    )


def both(hypers, params, data, args=(), *, static=None, loss=loss_fn, **kwargs):
  """(our gradients, autodiff's) of everything given."""
  static = static or {}

  def ours(hypers, params, x, args):
    own = {k: v for k, v in static.items() if k != "preprocess"}
    optimizer = revmom.sgd(**hypers, **own, grid=revmom.Grid(integer="int64"))
    if "preprocess" in static:
      optimizer = revmom.preprocessed(optimizer, static["preprocess"])
    run = revmom.train(
      loss, optimizer, params, {**data, "x": x}, *args, **kwargs
    )
    return outcome(run.params, run.losses)

  def theirs(hypers, params, x, args):
    result = reference(loss, hypers, params, {**data, "x": x}, *args, **static)
    return outcome(*result)

  inputs = hypers, params, data["x"], args
  both_ = jax.jit(
    lambda inputs: [jax.grad(f, (0, 1, 2, 3))(*inputs) for f in (ours, theirs)]
  )
  return both_(inputs)


def extra_arguments():
  return jnp.asarray(0.1), jnp.asarray(np.linspace(0.5, 1.5, EXAMPLES))


HYPERS: dict[str, Any] = {
  "scalars": lambda: {"learning_rate": 0.3, "momentum": 0.8},
  "with decay": lambda: {
    "learning_rate": np.float64(0.3),
    "momentum": np.float64(0.8),
    "weight_decay": np.float64(0.02),
  },
  "per step": lambda: {
    "learning_rate": np.linspace(0.1, 0.4, STEPS),
    "momentum": np.linspace(0.6, 0.95, STEPS),
    "weight_decay": np.linspace(0.01, 0.02, STEPS),
  },
  "per leaf": lambda: {
    "learning_rate": {"b": 0.2, "w": np.linspace(0.1, 0.4, STEPS)},
    "momentum": {"b": np.linspace(0.6, 0.95, STEPS), "w": 0.7},
    "weight_decay": {"b": 0.01, "w": 0.02},
  },
  "per element": lambda: {
    "learning_rate": {
      "b": np.array([[0.1, 0.3]]),
      "w": 0.2 + 0.01 * normal(5, STEPS, FEATURES, 2),
    },
    "momentum": 0.9,
  },
}


@pytest.mark.parametrize(
  "kind",
  [
    pytest.param("scalars", marks=pytest.mark.slow),
    pytest.param("per step", marks=pytest.mark.slow),
    pytest.param("per leaf", marks=pytest.mark.slow),
    "per element",
  ],
)
def test_every_differentiable_argument(x64, kind):
  hypers = jax.tree.map(jnp.asarray, HYPERS[kind]())
  ours, theirs = both(hypers, initial(), batches(), extra_arguments())
  assert_same_gradients(ours, theirs)


@pytest.mark.parametrize(
  "form", ["ema", pytest.param("trace", marks=pytest.mark.slow)]
)
def test_other_forms(x64, form):
  hypers = jax.tree.map(jnp.asarray, HYPERS["per step"]())
  ours, theirs = both(hypers, initial(), batches(), static={"form": form})
  assert_same_gradients(ours, theirs)


def test_through_clipping(x64):
  clip = optax.clip_by_global_norm(0.1)
  hypers = jax.tree.map(jnp.asarray, HYPERS["with decay"]())
  ours, theirs = both(hypers, initial(), batches(), static={"preprocess": clip})
  assert_same_gradients(ours, theirs)


def decayed():
  """What the tests below differentiate by: hyperparameters to arguments."""
  hypers = jax.tree.map(jnp.asarray, HYPERS["with decay"]())
  return hypers, initial(), batches()["x"], extra_arguments()


def decayed_run(hypers, params, x, args, **kwargs):
  optimizer = revmom.sgd(**hypers, grid=revmom.Grid(integer="int64"))
  run = revmom.train(
    loss_fn, optimizer, params, {**batches(), "x": x}, *args, **kwargs
  )
  return run.params, run.losses


@pytest.fixture(scope="module")
def stored_run():
  """The reference's parameters and losses, and gradients of its outcome."""

  def objective(hypers, params, x, args):
    data = {**batches(), "x": x}
    result = reference(loss_fn, hypers, params, data, *args)
    return outcome(*result), result

  with jax.enable_x64(True):
    gradients, result = jax.jit(
      jax.grad(objective, (0, 1, 2, 3), has_aux=True)
    )(*decayed())
  return result, gradients


@pytest.mark.parametrize(
  "mode", ["forward_over_reverse", "reverse_over_reverse"]
)
def test_second_order_modes(x64, stored_run, mode):
  def objective(*inputs):
    result = decayed_run(*inputs, second_order_mode=mode)
    return outcome(*result), result

  gradients, (params, losses) = jax.jit(
    jax.grad(objective, (0, 1, 2, 3), has_aux=True)
  )(*decayed())
  (stored_params, stored_losses), stored_gradients = stored_run
  assert_same_gradients(gradients, stored_gradients)
  # A capacity has 30 bits at first, so a factor is right to about 1e-9.
  chex.assert_trees_all_close(params, stored_params, rtol=0, atol=1e-8)
  chex.assert_trees_all_close(losses, stored_losses, rtol=0, atol=1e-8)


@pytest.mark.slow
def test_a_model_without_forward_mode(x64):
  @jax.custom_vjp
  def tanh(x):
    return jnp.tanh(x)

  tanh.defvjp(lambda x: (tanh(x), tanh(x)), lambda y, bar: (bar * (1 - y**2),))

  def by_hand(params, batch):
    logits = tanh(batch["x"] @ params["w"] + params["b"][None])
    logs = jax.nn.log_softmax(2 * logits)
    return -jnp.mean(jnp.take_along_axis(logs, batch["y"][:, None], 1))

  hypers = jax.tree.map(jnp.asarray, HYPERS["scalars"]())
  ours, _ = both(hypers, initial(), batches(), loss=by_hand)
  _, theirs = both(hypers, initial(), batches())
  assert_same_gradients(ours, theirs)


def test_closed_over_arrays(x64):
  """In the loss and in a batches function, with random keys replayed."""
  key = jax.random.key(0)
  hypers = {"learning_rate": 0.3, "momentum": 0.8}

  def dropout(params, batch, mask, scale, l2):
    batch = {**batch, "x": scale * batch["x"] * mask}
    return loss_fn(params, batch, l2)

  def mask_at(t):
    key_t = jax.random.fold_in(key, t)
    mask = jax.random.bernoulli(key_t, 0.7, (EXAMPLES, FEATURES))
    return mask.astype(jnp.float64)

  def ours(scale, l2, x):
    data = batches()
    loss = lambda params, batch: dropout(
      params, batch[0], mask_at(batch[1]), scale, l2
    )
    at = lambda t: ({"x": x[t], "y": data["y"][t]}, t)
    run = revmom.train(
      loss,
      revmom.sgd(**hypers, grid=revmom.Grid(integer="int64")),
      initial(),
      at,
      num_steps=STEPS,
    )
    return outcome(run.params, run.losses)

  def theirs(scale, l2, x):
    data = {**batches(), "x": x, "t": jnp.arange(STEPS)}
    loss = lambda params, batch: dropout(
      params, batch, mask_at(batch["t"]), scale, l2
    )
    return outcome(*reference(loss, hypers, initial(), data))

  inputs = jnp.asarray(1.2), jnp.asarray(0.1), batches()["x"]
  ours, theirs = (
    jax.jit(jax.grad(f, (0, 1, 2)))(*inputs) for f in (ours, theirs)
  )
  assert_same_gradients(ours, theirs)


def test_central_differences(x64):
  data, params = batches(), initial()

  @jax.jit
  @jax.value_and_grad
  def objective(hypers):
    optimizer = revmom.sgd(
      **hypers,
      grid=revmom.Grid(floors={"velocity": 0.5}, integer="int64"),
    )
    run = revmom.train(loss_fn, optimizer, params, data)
    return outcome(run.params, run.losses)

  hypers = jax.tree.map(jnp.asarray, {"learning_rate": 0.3, "momentum": 0.8})
  _, gradient = objective(hypers)
  for name, value in hypers.items():
    step = 1e-3  # well above 1e-9, to which a capacity holds a momentum
    above, below = (
      objective({**hypers, name: value + sign * step})[0] for sign in (1, -1)
    )
    difference = float(above - below) / (2 * step)
    assert math.isclose(difference, float(gradient[name]), rel_tol=1e-4)


def test_float32_gradients_are_close(x64, stored_run):
  """The default integers, against the same run in float64."""
  narrow = lambda tree: jax.tree.map(
    lambda a: a.astype(jnp.float32) if a.dtype == jnp.float64 else a, tree
  )

  def objective(hypers, params, x, args):
    data = {**narrow(batches()), "x": x}
    probe = {name: jnp.asarray(PROBE[name], jnp.float32) for name in PROBE}
    run = revmom.train(
      lambda params, batch, *args: narrow(loss_fn(params, batch, *args)),
      revmom.sgd(**hypers),
      params,
      data,
      *args,
    )
    total = sum(jnp.sum(jnp.sin(run.params[n] + probe[n])) for n in probe)
    return total + jnp.sum(jnp.cos(run.losses))

  ours = jax.jit(jax.grad(objective, (0, 1, 2, 3)))(*narrow(decayed()))
  assert_same_gradients(ours, narrow(stored_run[1]), rtol=1e-4)


# Below: float32, as most people run.


def cosine(params, batch):
  return jnp.sum(jnp.cos(params - batch))


def cosine_batches(steps=20):
  return jnp.linspace(0, 1, 2 * steps, dtype=jnp.float32).reshape(steps, 2)


START = np.array([0.3, -1.2], np.float32)


def train_cosine(optimizer, steps=20, start=None, **kwargs):
  start = jnp.asarray(START) if start is None else start
  return revmom.train(cosine, optimizer, start, cosine_batches(steps), **kwargs)


def test_vmap_over_hyperparameters():
  rates = jnp.array([0.01, 0.05, 0.1], jnp.float32)

  def objective(rate, momentum):
    optimizer = revmom.sgd(
      rate, momentum, grid=revmom.Grid(floors={"velocity": 0.5})
    )
    return jnp.sum(train_cosine(optimizer).params ** 2)

  one = jax.jit(jax.value_and_grad(objective, (0, 1)))
  momenta = jnp.array([0.6, 0.9, 0.95], jnp.float32)
  values, gradients = jax.jit(jax.vmap(one))(rates, momenta)
  singles = [one(*pair) for pair in zip(rates, momenta, strict=True)]
  expected = jax.tree.map(lambda *a: jnp.stack(a), *singles)
  chex.assert_trees_all_close((values, gradients), expected, rtol=1e-4)
  assert bool(jnp.all(jnp.isfinite(gradients[1])))


OUTSIDE = {
  "grad of jit": lambda f: jax.grad(jax.jit(f)),
  "grad of checkpoint": lambda f: jax.grad(jax.checkpoint(f)),
  "grad of vmap": lambda f: jax.grad(
    lambda m: jnp.mean(jax.vmap(f)(jnp.stack([m, m])))
  ),
  "grad of scan": lambda f: jax.grad(
    lambda m: lax.scan(lambda c, _: (c, f(c)), m, None, length=2)[1][1]
  ),
}


@pytest.mark.parametrize(
  "name",
  [
    "grad of jit",
    pytest.param("grad of checkpoint", marks=pytest.mark.slow),
    pytest.param("grad of vmap", marks=pytest.mark.slow),
    pytest.param("grad of scan", marks=pytest.mark.slow),
  ],
)
def test_other_transformations_between(name):
  """The gradient of a compiled run, not only the compiled gradient."""

  def objective(momentum):
    optimizer = revmom.sgd(0.1, momentum, weight_decay=0.01)
    return jnp.sum(train_cosine(optimizer).params)

  momentum = jnp.asarray(0.8, jnp.float32)
  ours = OUTSIDE[name](objective)(momentum)
  expected = jax.jit(jax.grad(objective))(momentum)
  np.testing.assert_allclose(ours, expected, rtol=1e-3)


@pytest.mark.parametrize("steps", [0, 1])
def test_shortest_runs(steps):
  optimizer = revmom.sgd(0.1, 0.9)

  def objective(optimizer, start):
    run = train_cosine(optimizer, steps, start)
    return jnp.sum(run.params), run

  def there_and_back(start):
    bars, run = jax.grad(objective, (0, 1), has_aux=True)(optimizer, start)
    return (
      bars,
      run.losses,
      revmom.rewind(cosine, optimizer, run.state, cosine_batches(steps)),
    )

  (by_rate, by_start), losses, rewound = jax.jit(there_and_back)(
    jnp.asarray(START)
  )
  assert losses.shape == (steps,)
  assert bool(rewound.receipt.ok)
  chex.assert_trees_all_close(rewound.params, START, atol=2.0**-24)
  if steps == 0:
    assert float(by_rate.learning_rate) == 0
    chex.assert_trees_all_equal(by_start, jnp.ones(2, jnp.float32))
  else:
    expected = -jnp.sum(jax.grad(cosine)(START, cosine_batches(1)[0]))
    np.testing.assert_allclose(by_rate.learning_rate, expected, rtol=1e-5)


def test_the_second_call_does_not_trace_again():
  @jax.jit
  @chex.assert_max_traces(n=1)
  def gradient(optimizer, start):
    objective = lambda o: jnp.sum(train_cosine(o, start=start).params)
    return jax.grad(objective)(optimizer)

  start = jnp.asarray(START)
  first = gradient(revmom.sgd(0.1, 0.9), start)
  second = gradient(revmom.sgd(0.2, 0.9), start + 1)
  third = gradient(revmom.sgd(0.2, 0.895), start)  # shares a floor
  rates = {float(g.learning_rate) for g in (first, second, third)}
  assert len(rates) == 3


def test_overflow_outside_jit_names_the_array():
  optimizer = revmom.sgd(1e4, 0.9)
  start = {"layer": {"w": jnp.asarray(START)}}
  loss = lambda params, batch: cosine(params["layer"]["w"], batch)
  with pytest.raises(ValueError, match=r"\['layer'\]\['w'\].*left the grid"):
    revmom.train(loss, optimizer, start, cosine_batches())


def test_overflow_inside_jit_gives_nan():
  optimizer = revmom.sgd(1e4, 0.9)
  run = jax.jit(lambda: train_cosine(optimizer))()
  assert bool(jnp.all(jnp.isnan(run.params)))
  with pytest.raises(ValueError, match="left the grid"):
    optimizer.check(run.state)
  objective = lambda o: jnp.sum(train_cosine(o).losses)
  gradient = jax.jit(jax.grad(objective))(optimizer)
  assert bool(jnp.isnan(gradient.learning_rate))
  assert bool(jnp.isnan(gradient.momentum))


def test_one_overflowed_element_spoils_all_gradients():
  rate = jnp.array([[0.1, 1e4]], jnp.float32)
  objective = lambda r: train_cosine(revmom.sgd(r, 0.9)).params[0]
  gradient = jax.jit(jax.grad(objective))(rate)
  assert bool(jnp.all(jnp.isnan(gradient)))


def test_a_loss_that_turns_nan():
  def loss(params, batch):
    return jnp.where(batch[0] > 0.5, jnp.nan, 1.0) * cosine(params, batch)

  optimizer = revmom.sgd(0.1, 0.9)
  train = lambda o: revmom.train(loss, o, jnp.asarray(START), cosine_batches())
  with pytest.raises(ValueError, match="NaN"):
    train(optimizer)
  run = jax.jit(train)(optimizer)
  assert bool(jnp.all(jnp.isnan(run.params)))
  gradient = jax.jit(jax.grad(lambda o: jnp.sum(train(o).params)))(optimizer)
  assert bool(jnp.isnan(gradient.momentum))


def test_momentum_below_its_floor():
  def objective(momentum, **kwargs):
    run = train_cosine(revmom.sgd(0.1, momentum, **kwargs))
    return jnp.sum(run.params)

  low = jnp.asarray(0.1, jnp.float32)
  value, gradient = jax.jit(jax.value_and_grad(objective))(low)
  assert bool(jnp.isnan(value)) and bool(jnp.isnan(gradient))
  with_floor = functools.partial(
    objective, grid=revmom.Grid(floors={"velocity": 0.05})
  )
  value, gradient = jax.jit(jax.value_and_grad(with_floor))(low)
  assert bool(jnp.isfinite(value)) and float(gradient) != 0


def test_float_momentum_does_not_come_back():
  """The check of a reversal can fail: floats lose what buffers keep."""
  data, beta, rate = cosine_batches(200), np.float32(0.9), np.float32(0.1)

  def forward(carry, batch):
    x, v = carry
    v = beta * v - rate * jax.grad(cosine)(x, batch)
    return (x + v, v), None

  def backward(carry, batch):
    x, v = carry
    x = x - v
    return (x, (v + rate * jax.grad(cosine)(x, batch)) / beta), None

  start = jnp.asarray(START), jnp.zeros(2, jnp.float32)
  end, _ = jax.jit(lambda s: lax.scan(forward, s, data))(start)
  back, _ = jax.jit(lambda s: lax.scan(backward, s, data, reverse=True))(end)
  assert not bool(jnp.array_equal(back[0], start[0]))
  optimizer = revmom.sgd(0.1, 0.9)
  run = jax.jit(lambda x: revmom.train(cosine, optimizer, x, data))(start[0])
  rewound = jax.jit(lambda s: revmom.rewind(cosine, optimizer, s, data))(
    run.state
  )
  assert bool(jnp.array_equal(rewound.params, run.initial_params))
  chex.assert_trees_all_close(rewound.params, START, atol=2.0**-24)


BAD: dict[str, Any] = {
  "a loss with an axis": (
    lambda: revmom.train(
      lambda p, b: p, revmom.sgd(0.1, 0.9), jnp.ones(2), cosine_batches()
    ),
    "scalar",
  ),
  "a loss with company": (
    lambda: revmom.train(
      lambda p, b: (jnp.sum(p), p),
      revmom.sgd(0.1, 0.9),
      jnp.ones(2),
      cosine_batches(),
    ),
    "scalar",
  ),
  "an integer loss": (
    lambda: revmom.train(
      lambda p, b: jnp.asarray(1),
      revmom.sgd(0.1, 0.9),
      jnp.ones(2),
      jnp.ones(3),
    ),
    "floating-point scalar",
  ),
  "batches of two lengths": (
    lambda: revmom.train(
      cosine,
      revmom.sgd(0.1, 0.9),
      jnp.ones(2),
      {"a": jnp.ones((3, 2)), "b": jnp.ones((4, 2))},
    ),
    r"disagree.*'a'\]: 3.*'b'\]: 4",
  ),
  "a batch without steps": (
    lambda: revmom.train(
      cosine, revmom.sgd(0.1, 0.9), jnp.ones(2), jnp.ones(())
    ),
    "leading step axis",
  ),
  "another num_steps": (
    lambda: train_cosine(revmom.sgd(0.1, 0.9), num_steps=3),
    "num_steps: 3",
  ),
  "a function without num_steps": (
    lambda: revmom.train(
      cosine, revmom.sgd(0.1, 0.9), jnp.ones(2), lambda t: jnp.ones(2)
    ),
    "pass num_steps",
  ),
  "a schedule of another length": (
    lambda: train_cosine(revmom.sgd(jnp.full(7, 0.1), 0.9)),
    "hyperparameters: 7",
  ),
  "hyperparameters of another tree": (
    lambda: train_cosine(revmom.sgd({"a": 0.1}, 0.9)),
    "learning_rate is a pytree",
  ),
  "integer parameters": (
    lambda: train_cosine(revmom.sgd(0.1, 0.9), start=jnp.ones(2, jnp.int32)),
    "must be floating point",
  ),
  "large parameters": (
    lambda: train_cosine(revmom.sgd(0.1, 0.9), start=jnp.array([1.0, 65.0])),
    "magnitude of 65",
  ),
  "an unknown mode": (
    lambda: train_cosine(revmom.sgd(0.1, 0.9), second_order_mode="forward"),
    "second_order",
  ),
}


@pytest.mark.parametrize("name", BAD)
def test_errors(name):
  function, match = BAD[name]
  with pytest.raises(ValueError, match=match):
    function()


def test_parameter_of_another_shape_than_the_batch():
  with pytest.raises(TypeError):
    revmom.train(cosine, revmom.sgd(0.1, 0.9), jnp.ones(3), cosine_batches())


@pytest.mark.slow
def test_clipped_gradients_of_a_transformer():
  """Norms of gradients that compilers like to fuse with what makes them."""
  rng = np.random.default_rng(0)
  draw = lambda *shape: jnp.asarray(rng.normal(size=shape), jnp.float32)
  params = {
    "qkv": draw(3, 32, 32) / 6,
    "out": draw(32, 32) / 6,
    "up": draw(32, 128) / 6,
    "down": draw(128, 32) / 11,
    "scale": jnp.ones(32),
  }
  sequences = draw(16, 16, 32, 32)

  def norm(x):
    centred = x - x.mean(-1, keepdims=True)
    return centred * lax.rsqrt((centred**2).mean(-1, keepdims=True) + 1e-5)

  def loss_fn(params, x):
    scaled = norm(x) * params["scale"]
    q, k, v = jnp.einsum("bld,cdk->cblk", scaled, params["qkv"])
    attention = jax.nn.softmax(jnp.einsum("bqk,bpk->bqp", q, k) / 5)
    x = x + jnp.einsum("bqp,bpk->bqk", attention, v) @ params["out"]
    x = x + jax.nn.relu(norm(x) @ params["up"]) @ params["down"]
    return (norm(x) ** 3).mean() * 100

  def objective(optimizer):
    run = revmom.train(loss_fn, optimizer, params, sequences, checksum_every=1)
    return sum(jnp.sum(leaf**2) for leaf in jax.tree.leaves(run.params))

  bars = jax.jit(jax.grad(objective))(
    revmom.clipped(revmom.sgd(1e-2, 0.9), 1.0)
  )
  assert all(np.isfinite(leaf) for leaf in jax.tree.leaves(bars))


@pytest.mark.parametrize(
  ("batches", "args", "message"),
  [
    ({"x": np.ones(5), "name": np.array(["a"] * 5)}, (), "batches.'name'.*<U1"),
    ({"x": np.ones(5), "name": "abcde"}, (), "is the string 'abcde'"),
    (np.array([None] * 5), (), "batches is an array of object"),
    (lambda step: {"name": "a"}, (), r"batches\(step\)..name.. is the string"),
    (np.ones(5), ("mean",), r"args.0. is the string 'mean'"),
  ],
)
def test_strings_are_no_data(batches, args, message):
  loss = lambda x, batch, *args: jnp.sum(x**2)
  steps = 5 if callable(batches) else None
  with pytest.raises(ValueError, match=message):
    revmom.train(
      loss, revmom.sgd(0.1, 0.9), jnp.ones(2), batches, *args, num_steps=steps
    )
