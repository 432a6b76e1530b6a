"""What every reversible optimizer derives from its three equations."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import revmom
from revmom.exact import bit_buffer
from revmom.optimizers import build, reversible

STEPS = 5000
BETAS = (0.5, 0.9, 0.98, 0.999, 58983 / 65536)


def params_and_gradient():
  """Of a nonlinear loss, whose gradients never settle on the grid."""
  rng = np.random.default_rng(0)
  draw = lambda *shape: jnp.asarray(rng.normal(size=shape), jnp.float32)
  params = {
    "w": 0.5 * draw(4, 3),
    "b": [jnp.asarray([-1.0, 0.0, 1.0]), jnp.asarray(0.25)],
  }
  x, y = draw(6, 4), draw(6, 3)

  def loss(p):
    return jnp.mean((jnp.tanh(x @ p["w"] + p["b"][0]) - p["b"][1] * y) ** 2)

  return params, jax.grad(loss)


def long_run(optimizer, start, gradient, steps):
  """The states after all steps, after half of the way back, and at its end."""

  @jax.jit
  def there_and_back(start):
    forward = lambda s, _: (optimizer.forward(s, gradient), None)
    inverse = lambda s, _: (optimizer.inverse(s, gradient), None)
    first, _ = jax.lax.scan(forward, start, length=steps // 2)
    end, _ = jax.lax.scan(forward, first, length=steps - steps // 2)
    again, _ = jax.lax.scan(inverse, end, length=steps - steps // 2)
    back, _ = jax.lax.scan(inverse, again, length=steps // 2)
    return first, end, again, back

  return there_and_back(start)


def varying(low, high, seed):
  draws = np.random.default_rng(seed).uniform(low, high, STEPS)
  return jnp.asarray(draws, jnp.float32)


MOMENTA = {
  **{str(beta): beta for beta in BETAS},
  "per step": varying(0.5, 0.999, 1),
  "per leaf": {"w": 0.5, "b": [0.9, 58983 / 65536]},
  "per leaf and step": {"w": varying(0.4, 1, 2), "b": [varying(0.9, 1, 3), 1]},
}


@pytest.mark.sampled(3)
@pytest.mark.parametrize("momentum", MOMENTA.values(), ids=MOMENTA.keys())
def test_five_thousand_steps_and_back(momentum):
  params, gradient = params_and_gradient()
  optimizer = revmom.sgd(1e-3, momentum, weight_decay=1e-2)  # 1 - 1e-5
  start = jax.jit(lambda p: optimizer.init(p, num_steps=STEPS))(params)
  first, end, again, back = long_run(optimizer, start, gradient, STEPS)
  optimizer.check(end)
  assert int(end.count) == STEPS
  chex.assert_trees_all_equal(again, first)
  chex.assert_trees_all_equal(back, start)
  for leaf in back.leaves:
    for role, buffer in leaf.buffers.items():
      assert bool(bit_buffer.is_empty(leaf.integers[role], buffer))
      assert not np.any(buffer.words)
  moved = optimizer.params(end)["w"] - params["w"]
  assert float(jnp.max(jnp.abs(moved))) > 1e-2


def test_single_steps_from_python():
  params, gradient = params_and_gradient()
  gradient = jax.jit(gradient)
  optimizer = revmom.sgd(0.1, 0.7)
  states = [optimizer.init(params, num_steps=12)]
  for _ in range(12):
    states.append(optimizer.forward(states[-1], gradient))
  state = states[-1]
  for expected in reversed(states[:-1]):
    state = optimizer.inverse(state, gradient)
    chex.assert_trees_all_equal(state, expected)


def test_init_snaps_to_the_grid():
  values = jnp.array([0.1, -0.1, 63.9, 0.0])
  optimizer = revmom.sgd(0.1, 0.9, grid=revmom.Grid({"params": 20}))
  shown = optimizer.params(optimizer.init(values))
  np.testing.assert_array_equal(shown, jnp.round(values * 2**20) / 2**20)
  assert float(jnp.max(jnp.abs(shown - values))) <= 2.0**-21


def test_steps_of_init():
  params, _ = params_and_gradient()
  assert revmom.sgd(0.1, 0.9).init(params).steps == reversible.DEFAULT_STEPS
  assert revmom.sgd(np.full(7, 0.1), 0.9).init(params).steps == 7
  assert revmom.sgd(0.1, 0.9).init(params, num_steps=0).steps == 0


def test_the_optimizer_is_a_pytree_of_its_hyperparameters():
  optimizer = revmom.sgd(0.1, {"w": 0.9, "b": 0.8}, form="ema")
  assert sorted(jax.tree.leaves(optimizer)) == [0.1, 0.8, 0.9]
  doubled = jax.tree.map(lambda leaf: 0.5 * leaf, optimizer)
  assert doubled.learning_rate == 0.05 and doubled.form == "ema"


def test_preprocess_sees_the_whole_gradient():
  params = {"a": jnp.zeros(1), "b": jnp.zeros(1)}
  optimizer = revmom.preprocessed(
    revmom.sgd(1.0, 1.0), optax.clip_by_global_norm(1.0)
  )
  state = optimizer.init(params, num_steps=1)
  gradient = lambda _: {"a": jnp.array([3.0]), "b": jnp.array([-4.0])}
  shown = optimizer.params(optimizer.forward(state, gradient))
  np.testing.assert_allclose(shown["a"], -0.6, atol=2.0**-23)
  np.testing.assert_allclose(shown["b"], 0.8, atol=2.0**-23)


def test_dtypes_are_those_of_the_parameters():
  params = {"half": jnp.ones(3, jnp.bfloat16), "full": jnp.ones(2)}
  optimizer = revmom.sgd(0.1, 0.9)
  seen = []

  def gradient(p):
    seen.append({name: str(leaf.dtype) for name, leaf in p.items()})
    return p

  state = optimizer.forward(optimizer.init(params, 5), gradient)
  assert seen[0] == {"half": "bfloat16", "full": "float32"}
  assert optimizer.params(state)["half"].dtype == jnp.bfloat16
  assert optimizer.params(state)["full"].dtype == jnp.float32


def test_edges_of_pytrees():
  optimizer = revmom.sgd(0.1, 0.9)
  params = {"empty": jnp.zeros((0, 3)), "b": jnp.ones(2), "none": None}
  start = optimizer.init(params, num_steps=3)
  end = optimizer.forward(start, lambda p: p)
  assert optimizer.params(end)["empty"].shape == (0, 3)
  chex.assert_trees_all_equal(optimizer.inverse(end, lambda p: p), start)
  nothing = optimizer.forward(optimizer.init({}, 3), lambda p: p)
  assert float(optimizer.log_det(nothing)) == 0


@pytest.mark.parametrize("bad", [np.nan, np.inf, 1e9])
def test_a_bad_gradient_is_sticky_and_named(bad):
  params = {"good": jnp.ones(2), "bad": jnp.ones((2, 2))}
  poison = lambda p: {**p, "bad": p["bad"].at[0, 1].set(bad)}
  optimizer = revmom.sgd(0.1, 0.9)
  state = optimizer.forward(optimizer.init(params, 30), poison)
  for _ in range(6):
    state = optimizer.forward(state, lambda p: jax.tree.map(jnp.ones_like, p))
    shown = optimizer.params(state)
    assert np.isnan(shown["bad"]).tolist() == [[False, True], [False, False]]
    assert bool(jnp.all(jnp.isfinite(shown["good"])))
  with pytest.raises(ValueError) as error:
    optimizer.check(state)
  message = str(error.value)
  assert "1 of 4 elements of the parameter array ['bad']" in message
  assert "shape (2, 2)" in message and "Lower the learning rate" in message


def test_parameters_that_leave_their_grid():
  optimizer = revmom.sgd(1.0, 1.0)
  state = optimizer.init(jnp.array([63.0, -63.0, 0.0]), num_steps=9)
  gradient = lambda p: jnp.array([-2.0, 0.5, 0.5])
  state = optimizer.forward(state, gradient)
  shown = optimizer.params(state)
  assert np.isnan(shown).tolist() == [True, False, False]
  with pytest.raises(ValueError, match="left the grid of params .*at most 63"):
    optimizer.check(state)


@pytest.mark.parametrize("bad", [np.nan, 1e9])
def test_a_bad_gradient_stays_bad_on_the_way_back(bad):
  gradients = [lambda p: p, lambda p: p.at[0].set(bad), lambda p: p]
  optimizer = revmom.sgd(0.1, 0.9)
  state = optimizer.init(jnp.array([0.3, -1.2]), num_steps=10)
  for gradient in gradients:
    state = optimizer.forward(state, gradient)
  for gradient in reversed(gradients):
    state = optimizer.inverse(state, gradient)
  assert bool(jnp.isnan(optimizer.params(state)[0]))
  with pytest.raises(ValueError, match="left the grid"):
    optimizer.check(state)


def test_too_many_steps_stay_bad_on_the_way_back():
  optimizer = revmom.sgd(0.1, 0.9)
  state = optimizer.init(jnp.array([0.3, -1.2]), num_steps=3)
  for _ in range(5):
    state = optimizer.forward(state, lambda p: p)
  for _ in range(5):
    state = optimizer.inverse(state, lambda p: p)
  assert bool(jnp.all(jnp.isnan(optimizer.params(state))))


def test_there_is_nothing_before_the_first_step():
  optimizer = revmom.sgd(0.1, 0.9)
  state = optimizer.init(jnp.array([0.3, -1.2]), num_steps=3)
  state = optimizer.inverse(state, lambda p: p)
  assert bool(jnp.all(jnp.isnan(optimizer.params(state))))


def test_a_learning_rate_that_would_widen_the_parameters():
  optimizer = revmom.sgd({"b": jnp.full((1, 4, 3), 0.1)}, 0.9)
  with jax.numpy_rank_promotion("allow"):
    with pytest.raises(ValueError, match="shape"):
      state = optimizer.init({"b": jnp.ones(3)}, num_steps=2)
      optimizer.forward(state, lambda p: p)


def test_known_initial_values_must_fit():
  optimizer = revmom.sgd(0.1, 0.9)
  with pytest.raises(ValueError, match=r"\['w'\] holds a magnitude of 64.*63"):
    optimizer.init({"w": jnp.array([1.0, -64.0])})
  with pytest.raises(ValueError, match="magnitude of nan"):
    optimizer.init({"w": jnp.array([jnp.nan])})
  # What is traced can't be known; it shows as NaN.
  shown = jax.jit(lambda p: optimizer.params(optimizer.init(p, 3)))
  assert np.isnan(shown(jnp.array([1.0, -64.0]))).tolist() == [False, True]


@pytest.mark.parametrize("leaf", [jax.nn.relu, "gelu", object()])
def test_leaves_that_are_no_arrays_are_named(leaf):
  params = {"weights": jnp.ones(2), "layer": (leaf,)}
  match = rf"parameter \['layer'\]\[0\] is a {type(leaf).__name__}, which is no"
  with pytest.raises(ValueError, match=match):
    revmom.sgd(0.1, 0.9).init(params)
  with pytest.raises(ValueError, match=match):
    revmom.train(lambda p, b: 0.0, revmom.adam(0.1), params, jnp.ones(3))


def test_known_factors_must_have_an_inverse():
  params = jnp.ones(2)
  for momentum in (1e-3, lambda step: 0.0, lambda step: 1.5):
    with pytest.raises(ValueError, match="a factor must lie in"):
      revmom.sgd(0.1, momentum).init(params, num_steps=5)
  for decay in (20.0, -0.1):
    with pytest.raises(ValueError, match="'params' would be multiplied by"):
      revmom.sgd(0.1, 0.9, weight_decay=decay).init(params, num_steps=5)


def test_gradients_must_be_like_the_parameters():
  optimizer = revmom.sgd(0.1, 0.9)
  state = optimizer.init({"w": jnp.ones((2, 3))}, num_steps=3)
  for direction in optimizer.forward, optimizer.inverse:
    with pytest.raises(ValueError, match="one array for every parameter"):
      direction(state, lambda p: [p["w"]])
    with pytest.raises(ValueError, match=r"\['w'\] have shape \(3,\)"):
      direction(state, lambda p: {"w": jnp.ones(3)})


@pytest.mark.parametrize("stateful", [optax.adam(0.1), optax.trace(0.9)])
def test_preprocess_must_be_stateless(stateful):
  with pytest.raises(ValueError, match="keeps a state .*stateless"):
    revmom.preprocessed(revmom.sgd(0.1, 0.9), stateful)


@pytest.mark.parametrize("factor", [0.5, 0.9, 0.999, 1 - 1e-5])
def test_roomy_floor_doubles_the_bits(factor):
  bits = -np.log2(factor)
  room = -np.log2(build.roomy_floor(factor))
  assert 2 * bits * (1 - 1e-9) <= room <= 2 * bits * 2**0.25 * (1 + 1e-9)
  assert build.roomy_floor(1.0) == 1.0
