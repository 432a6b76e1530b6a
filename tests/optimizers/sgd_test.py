"""Momentum SGD: its equations, its inverse, its log-determinant, its errors."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import revmom

FORMS = ("heavy_ball", "ema", "trace")


def problem(dtype=jnp.float32):
  """A convex loss over a pytree with a scalar, and its gradient."""
  rng = np.random.default_rng(0)
  draw = lambda *shape: jnp.asarray(rng.normal(size=shape), dtype)
  params = {
    "w": draw(5, 3),
    "b": [jnp.asarray(0.5, dtype), jnp.asarray(np.linspace(-1, 1, 3), dtype)],
  }
  x, y = draw(20, 5), draw(20, 3)

  def loss(p):
    return jnp.mean((x @ p["w"] + p["b"][0] + p["b"][1] - y) ** 2)

  return params, jax.grad(loss)


def run(optimizer, state, gradient, steps, direction):
  """`steps` steps or inverse steps in one compiled loop."""
  step = getattr(optimizer, direction)
  body = lambda state, _: (step(state, gradient), None)
  return jax.jit(lambda s: jax.lax.scan(body, s, length=steps)[0])(state)


def even(first, last, count):
  """Without a compilation."""
  return jnp.asarray(np.linspace(first, last, count), jnp.float32)


OPTIONS = {
  "plain": {},
  "weight decay": {"weight_decay": 1e-3},
  "tiny weight decay": {"weight_decay": 1e-4},  # factor 1 - 1e-5
  "clipping": {"preprocess": optax.clip_by_global_norm(0.3)},
  "per step": {
    "learning_rate": even(0.2, 0.01, 300),
    "momentum": even(0.5, 0.99, 300),
  },
  "per leaf": {
    "learning_rate": {"w": 0.1, "b": [0.05, 0.2]},
    "momentum": {"w": 0.9, "b": 0.8},
  },
  "prefix of arrays": {
    "momentum": {"w": even(0.5, 0.9, 300), "b": [0.98, 0.6]},
  },
  "per element": {
    "learning_rate": {
      "w": even(0.01, 0.2, 15).reshape(1, 5, 3),
      "b": 0.1,
    }
  },
  "schedule": {
    "learning_rate": optax.linear_schedule(0.2, 0.01, 300),
    "weight_decay": 1e-3,
  },
}


@pytest.mark.sampled(3, rest="exhaustive")
@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS.keys())
def test_inverse_restores_every_integer(form, options):
  params, gradient = problem()
  options = {"learning_rate": 0.1, "momentum": 0.9, **options}
  optimizer = revmom.sgd(form=form, **options)
  start = jax.jit(lambda p: optimizer.init(p, num_steps=300))(params)
  end = run(optimizer, start, gradient, 300, "forward")
  optimizer.check(end)
  moved = jax.tree.map(
    lambda a, b: np.max(np.abs(a - b)), jax.jit(optimizer.params)(end), params
  )
  assert min(jax.tree.leaves(moved)) > 1e-3
  back = run(optimizer, end, gradient, 300, "inverse")
  chex.assert_trees_all_equal(back, start)


def test_float_momentum_is_not_restored():
  """The counter-test: the same dynamics in floats, run back the same way."""
  params, gradient = problem()
  beta, rate = 0.9, 0.1

  def forward(carry, _):
    params, velocity = carry
    velocity = jax.tree.map(
      lambda v, g: beta * v - rate * g, velocity, gradient(params)
    )
    return (jax.tree.map(jnp.add, params, velocity), velocity), None

  def inverse(carry, _):
    params, velocity = carry
    params = jax.tree.map(jnp.subtract, params, velocity)
    velocity = jax.tree.map(
      lambda v, g: (v + rate * g) / beta, velocity, gradient(params)
    )
    return (params, velocity), None

  start = params, jax.tree.map(jnp.zeros_like, params)
  end, _ = jax.lax.scan(forward, start, length=300)
  back, _ = jax.lax.scan(inverse, end, length=300)
  assert not np.array_equal(back[0]["w"], params["w"])


@pytest.mark.parametrize("form", FORMS)
def test_follows_optax(form):
  params, gradient = problem()
  rate = 0.05 if form != "ema" else 0.5
  ours = revmom.sgd(rate, 0.9, form=form)
  end = run(ours, ours.init(params, 1000), gradient, 1000, "forward")
  theirs = optax.sgd(rate * (0.1 if form == "ema" else 1.0), 0.9)

  def step(carry, _):
    params, state = carry
    updates, state = theirs.update(gradient(params), state, params)
    return (optax.apply_updates(params, updates), state), None

  (expected, _), _ = jax.lax.scan(
    step, (params, theirs.init(params)), length=1000
  )
  # A few steps of the grid, which is 2^-24 wide.
  chex.assert_trees_all_close(ours.params(end), expected, atol=64 * 2.0**-24)


@pytest.mark.slow
def test_trace_form_follows_optax_under_a_schedule():
  params, gradient = problem()
  schedule = optax.linear_schedule(0.2, 0.0, 200)
  ours = revmom.sgd(schedule, 0.9, form="trace")
  end = run(ours, ours.init(params, 200), gradient, 200, "forward")
  theirs = optax.sgd(schedule, 0.9)
  state, expected = theirs.init(params), params
  update = jax.jit(theirs.update)
  for _ in range(200):
    updates, state = update(gradient(expected), state, expected)
    expected = optax.apply_updates(expected, updates)
  chex.assert_trees_all_close(ours.params(end), expected, atol=64 * 2.0**-24)


def float_step(state, gradient, rate, beta, decay, form):
  """The equations of the docstring, on flat float64 vectors."""
  theta, velocity = jnp.split(state, 2)
  gain = {"heavy_ball": rate, "ema": 1 - beta, "trace": 1.0}[form]
  velocity = beta * velocity - gain * gradient(theta)
  update = velocity if form == "heavy_ball" else rate * velocity
  return jnp.concatenate([(1 - rate * decay) * theta + update, velocity])


@pytest.mark.sampled(2, rest="exhaustive")
@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("decay", [None, 0.3])
@pytest.mark.parametrize("steps", [1, 10])
def test_log_det_is_that_of_the_dense_jacobian(x64, form, decay, steps):
  size, rate, beta = 30, 0.1, 0.9
  matrix = 0.2 * jax.random.normal(jax.random.key(0), (size, size))
  loss = lambda theta: jnp.sum(jnp.cos(matrix @ theta))

  def steps_of(state):
    for _ in range(steps):
      state = float_step(state, jax.grad(loss), rate, beta, decay or 0.0, form)
    return state

  start = jnp.zeros(2 * size).at[:size].set(jnp.linspace(-1, 1, size))
  sign, dense = jnp.linalg.slogdet(jax.jit(jax.jacfwd(steps_of))(start))
  optimizer = revmom.sgd(
    rate,
    beta,
    weight_decay=decay,
    form=form,
    grid=revmom.Grid(integer="int64"),
  )
  state = optimizer.init(start[:size], num_steps=10)
  end = run(optimizer, state, jax.grad(loss), steps, "forward")
  np.testing.assert_allclose(optimizer.log_det(end), dense, rtol=1e-9)
  assert sign == 1
  factors = np.log(beta) + (np.log1p(-rate * decay) if decay else 0.0)
  np.testing.assert_allclose(dense, steps * size * factors, rtol=1e-9)
  # The library's own steps are those of the dense map.
  flat = jnp.concatenate([start[:size], jnp.zeros(size)])
  np.testing.assert_allclose(
    optimizer.params(end), steps_of(flat)[:size], atol=1e-8
  )


@pytest.mark.slow
def test_log_det_of_long_and_scheduled_runs():
  params = jnp.zeros(7)
  optimizer = revmom.sgd(0.1, 0.9)
  state = optimizer.init(params, 100_000)
  end = state.replace(count=jnp.asarray(100_000, jnp.int32))
  expected = 7 * 100_000 * np.log(np.float64(np.float32(0.9)))
  np.testing.assert_allclose(optimizer.log_det(end), expected, rtol=3e-7)
  betas = np.linspace(0.5, 0.99, 100_000, dtype=np.float32)
  optimizer = revmom.sgd(0.1, betas)
  end = optimizer.init(params).replace(count=jnp.asarray(60_000, jnp.int32))
  expected = 7 * np.sum(np.log(betas[:60_000].astype(np.float64)))
  np.testing.assert_allclose(optimizer.log_det(end), expected, rtol=2e-6)


@pytest.mark.slow
def test_vmap_over_seeds_and_momenta():
  _, gradient = problem()
  seeds = jax.random.normal(jax.random.key(3), (4, 5, 3))
  starts = {
    "w": seeds,
    "b": [jnp.zeros(4), jnp.zeros((4, 3))],
  }

  def there_and_back(params, momentum):
    optimizer = revmom.sgd(
      0.1, momentum, grid=revmom.Grid(floors={"velocity": 0.5})
    )
    start = optimizer.init(params, num_steps=100)
    step = lambda s, _: (optimizer.forward(s, gradient), None)
    unstep = lambda s, _: (optimizer.inverse(s, gradient), None)
    end, _ = jax.lax.scan(step, start, length=100)
    back, _ = jax.lax.scan(unstep, end, length=100)
    return start, optimizer.params(end), back

  momenta = jnp.array([0.6, 0.9, 0.99, 0.75])
  start, end, back = jax.jit(jax.vmap(there_and_back))(starts, momenta)
  chex.assert_trees_all_equal(start, back)
  assert bool(jnp.all(jnp.isfinite(end["w"])))


def test_steps_beyond_the_buffers_are_not_silent():
  params, gradient = problem()
  optimizer = revmom.sgd(0.1, 0.9)
  end = run(optimizer, optimizer.init(params, 10), gradient, 11, "forward")
  assert bool(jnp.all(jnp.isnan(optimizer.params(end)["w"])))
  with pytest.raises(ValueError, match=r"\['b'\]\[0\], shape \(\).*num_steps"):
    optimizer.check(end)


@pytest.mark.parametrize("momentum", [0.0, -0.1, 1.5, float("nan")])
def test_momentum_without_an_inverse(momentum):
  with pytest.raises(ValueError, match="no inverse exists"):
    revmom.sgd(0.1, momentum)
  with pytest.raises(ValueError, match="no inverse exists"):
    revmom.sgd(0.1, {"w": 0.9, "b": [jnp.array([0.9, momentum]), 0.5]})


def test_errors_say_what_to_do():
  params, gradient = problem()
  with pytest.raises(ValueError, match="choose one of"):
    revmom.sgd(0.1, 0.9, form="nesterov")
  with pytest.raises(ValueError, match="stateless"):
    revmom.preprocessed(revmom.sgd(0.1, 0.9), optax.scale_by_rms())
  with pytest.raises(ValueError, match="choose from"):
    revmom.sgd(0.1, 0.9, grid=revmom.Grid({"momentum": 20}))
  with pytest.raises(ValueError, match="floating point"):
    revmom.sgd(0.1, 0.9).init({"w": jnp.zeros(3, jnp.int32)})
  with pytest.raises(ValueError, match="fraction bits reach only"):
    revmom.sgd(0.1, 0.9).init({"w": jnp.full(3, 100.0)})
  with pytest.raises(ValueError, match="prefix"):
    revmom.sgd({"v": 0.1}, 0.9).init(params)
  with pytest.raises(ValueError, match="leading axis"):
    revmom.sgd(jnp.ones(7), jnp.full(9, 0.9)).init(params, 7)
  with pytest.raises(ValueError, match="one number for a whole array"):
    revmom.sgd(0.1, {"w": jnp.full((1, 5, 3), 0.9), "b": 0.9}).init(params)
  optimizer = revmom.sgd(0.1, 0.9)
  state = optimizer.init(params)
  with pytest.raises(ValueError, match="one array for every parameter"):
    optimizer.forward(state, lambda p: p["w"])
  with pytest.raises(ValueError, match=r"\(3, 5\).*\(5, 3\)"):
    optimizer.forward(state, lambda p: {**p, "w": p["w"].T})


def test_traced_factor_beyond_its_floor_is_not_silent():
  params, gradient = problem()

  @jax.jit
  def end(momentum):
    optimizer = revmom.sgd(
      0.1, momentum, grid=revmom.Grid(floors={"velocity": 0.8})
    )
    state = optimizer.init(params, num_steps=50)
    step = lambda s, _: (optimizer.forward(s, gradient), None)
    return optimizer.params(jax.lax.scan(step, state, length=50)[0])["w"]

  assert bool(jnp.all(jnp.isfinite(end(0.85))))
  assert bool(jnp.all(jnp.isnan(end(0.75))))


@pytest.mark.parametrize("integer", ["int16", "uint32", "float32"])
def test_integers_are_of_32_or_64_bits(integer):
  with pytest.raises(ValueError, match="choose int32 or int64"):
    revmom.sgd(0.1, 0.9, grid=revmom.Grid(integer=integer))


def test_int64_needs_x64():
  with pytest.raises(ValueError, match="JAX_ENABLE_X64"):
    revmom.sgd(0.1, 0.9, grid=revmom.Grid(integer="int64"))
