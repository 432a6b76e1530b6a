"""The coordinate check tells muP from the standard parametrisation."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import revmom
from revmom.analysis import Problem, coordinate_check

WIDTHS = 32, 256
STEPS, INPUTS = 3, 8


def adam(learning_rates):
  """Adam with a rate for each array."""
  return optax.chain(
    optax.scale_by_adam(),
    optax.stateless(
      lambda updates, _: {
        name: -learning_rates[name] * updates[name] for name in updates
      }
    ),
  )


def perceptron(mup):
  """Two hidden layers; muP by table 8 of Yang et al. 2022."""

  def problem_of(width):
    def init(key):
      keys = jax.random.split(key, 3)
      normal = jax.random.normal
      return {
        "input": normal(keys[0], (INPUTS, width)) / INPUTS**0.5,
        "hidden": normal(keys[1], (width, width)) / width**0.5,
        "output": normal(keys[2], (width, 1)) / (width if mup else width**0.5),
      }

    def apply(params, batch):
      x, _ = batch
      first = x @ params["input"]
      second = jnp.tanh(first) @ params["hidden"]
      return {
        "input": first,
        "hidden": second,
        "output": jnp.tanh(second) @ params["output"],
      }

    def loss(params, batch):
      return jnp.mean((apply(params, batch)["output"] - batch[1]) ** 2)

    rate = 0.01 * 32 / width if mup else 0.01
    rates = {"input": 0.01, "hidden": rate, "output": rate}
    return Problem(init, apply, loss, adam(rates))

  return problem_of


def batches():
  keys = jax.random.split(jax.random.key(0))
  x = jax.random.normal(keys[0], (STEPS, 16, INPUTS))
  return x, jnp.sin(x.sum(-1, keepdims=True))


def check(mup):
  # Optax raises a float to an integer's power in Adam.
  with jax.numpy_dtype_promotion("standard"):
    return coordinate_check(
      perceptron(mup), WIDTHS, batches(), jax.random.key(1), num_seeds=6
    )


@pytest.fixture(scope="module")
def standard():
  return check(mup=False)


@pytest.fixture(scope="module")
def mup():
  return check(mup=True)


@pytest.mark.slow
def test_order_and_shapes(standard):
  assert standard.names == ("input", "hidden", "output")  # as the user has it
  assert standard.rms.shape == (2, 6, STEPS + 1, 3)
  assert (standard.l1 <= standard.rms * (1 + 1e-6)).all()
  assert not standard.change[:, :, 0].any()
  assert "hidden" in str(standard)


@pytest.mark.slow
def test_initial_sizes(standard, mup):
  """Of order 1, but for muP's output, of width^(-1/2); 4 standard errors."""
  for result, output in ((standard, 0.0), (mup, -0.5)):
    value, stderr = result.exponents()
    # tanh of a finite sum of pre-activations adds of the order of 1 / width.
    assert (np.abs(value[0] - [0, 0, output]) < 4 * stderr[0] + 0.02).all()


@pytest.mark.slow
def test_only_mup_keeps_changes_at_their_size(standard, mup):
  value, stderr = standard.exponents("change")
  # By a rate that does not fall with width, h changes like width^(1/2 to 1).
  assert (value[-1, 1:] - 4 * stderr[-1, 1:] > 0.3).all()
  value, stderr = mup.exponents("change")
  assert (np.abs(value[-1]) < 4 * stderr[-1] + 0.1).all()


@pytest.mark.slow
def test_figures_are_those_of_a_plain_loop():
  """Sizes of one seed and width, step by step, and exponents by lstsq."""
  key, data = jax.random.key(1), batches()
  with jax.numpy_dtype_promotion("standard"):
    got = coordinate_check(perceptron(True), (4, 9), data, key, num_seeds=2)
    problem = perceptron(True)(9)
    params = problem.init(jax.random.split(key, 2)[1])
    state = problem.optimizer.init(params)
    probe = jax.tree.map(lambda leaf: leaf[0], data)
    start = problem.apply(params, probe)
    step = jax.jit(
      lambda params, state, batch: problem.optimizer.update(
        jax.grad(problem.loss)(params, batch), state, params
      )
    )
    for number in range(STEPS + 1):
      now = problem.apply(params, probe)
      for layer, name in enumerate(got.names):
        h, h0 = now[name], start[name]
        for figures, expected in (
          (got.l1, jnp.abs(h).mean()),
          (got.rms, jnp.sqrt((h**2).mean())),
          (got.change, jnp.sqrt(((h - h0) ** 2).mean())),
        ):
          np.testing.assert_allclose(
            figures[1, 1, number, layer], expected, rtol=1e-4, atol=1e-6
          )
      if number < STEPS:
        batch = jax.tree.map(lambda leaf, n=number: leaf[n], data)
        updates, state = step(params, state, batch)
        params = optax.apply_updates(params, updates)
  slopes = [
    np.polyfit(np.log([4, 9]), np.log(got.rms[:, seed, 2, 1]), 1)[0]
    for seed in range(2)
  ]
  value, stderr = got.exponents()
  np.testing.assert_allclose(value[2, 1], np.mean(slopes), rtol=1e-5)
  np.testing.assert_allclose(
    stderr[2, 1], abs(slopes[0] - slopes[1]) / 2, rtol=1e-4
  )


def linear(width, rate=0.1, name="sum"):
  apply = lambda w, x: {name: x @ w}
  loss = lambda w, x: jnp.mean(apply(w, x)[name] ** 2)
  init = lambda key: jax.random.normal(key, (3, width))
  return Problem(init, apply, loss, optax.sgd(rate))


@pytest.mark.slow
def test_wrong_input():
  x, key = jnp.ones((2, 4, 3)), jax.random.key(0)
  with pytest.raises(ValueError, match="two different widths or more"):
    coordinate_check(linear, [8, 8], x, key)
  with pytest.raises(ValueError, match="two seeds or more"):
    coordinate_check(linear, [8, 9], x, key, num_seeds=1)
  with pytest.raises(ValueError, match="one number of steps"):
    coordinate_check(linear, [8, 9], (x, x[:1]), key)
  with pytest.raises(ValueError, match="other names at other widths"):
    coordinate_check(
      lambda width: linear(width, name=f"sum{width}"), [4, 5], x, key
    )
  with pytest.raises(FloatingPointError, match="sum at width .* not finite"):
    coordinate_check(lambda width: linear(width, 1e38), [4, 5], x, key)
  result = coordinate_check(linear, [4, 5], x, key)
  with pytest.raises(ValueError, match="choose l1, rms or change"):
    result.exponents("l2")


@pytest.mark.parametrize(
  ("ours", "theirs"),
  [
    pytest.param(
      revmom.sgd(0.1, 0.5), optax.sgd(0.1, 0.5), marks=pytest.mark.slow
    ),
    (revmom.adam(0.1), optax.adam(0.1)),
  ],
)
def test_a_reversible_optimizer(ours, theirs):
  """Sizes are those of the same training with optax, to the grid."""
  x, key = jnp.ones((2, 4, 3)), jax.random.key(0)
  with jax.numpy_dtype_promotion("standard"):
    got, expected = (
      coordinate_check(
        lambda width, o=optimizer: linear(width)._replace(optimizer=o),
        [4, 5],
        x,
        key,
        num_seeds=2,
      )
      for optimizer in (ours, theirs)
    )
  np.testing.assert_allclose(got.rms, expected.rms, rtol=1e-3)
