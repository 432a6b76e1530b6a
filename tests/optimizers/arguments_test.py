"""Arguments that can't be meant are refused, by name."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import revmom


@pytest.mark.parametrize(
  "arguments",
  [
    {"momentum": "0.9"},
    {"momentum": None},
    {"momentum": lambda: 0.9},
    {"momentum": True},
    {"learning_rate": None},
    {"learning_rate": "0.1"},
    {"learning_rate": {}},
    {"learning_rate": {"w": 0.1, "b": None}},
    {"learning_rate": lambda step: {"w": step}},
    {"learning_rate": 0.1 + 1j},
    {"weight_decay": "no"},
  ],
  ids=range(11),
)
def test_of_sgd(arguments):
  (name,) = arguments
  with pytest.raises(ValueError, match=name):
    revmom.sgd(**{"learning_rate": 0.1, "momentum": 0.9} | arguments)


@pytest.mark.parametrize(
  "value",
  [
    "1",
    -1.0,
    0,
    None,
    float("nan"),
    {"w": 1.0, "b": np.array([1.0, -1.0])},
  ],
  ids=range(6),
)
def test_of_clipped(value):
  with pytest.raises(ValueError, match="clip|max_norm"):
    revmom.clipped(revmom.sgd(0.1, 0.9), value)


def test_clips_and_preprocesses_once():
  twice = lambda change: change(change(revmom.sgd(0.1, 0.9)))
  with pytest.raises(ValueError, match="clip them once"):
    twice(lambda optimizer: revmom.clipped(optimizer, 1.0))
  with pytest.raises(ValueError, match=r"optax\.chain"):
    twice(lambda o: revmom.preprocessed(o, optax.scale(2.0)))


@pytest.mark.parametrize(
  "arguments",
  [
    {"fraction_bits": {"params": "20"}},
    {"floors": {"velocity": 0.0}},
    {"integer": "int16"},
    {"integer": "int64"},
  ],
)
def test_of_a_grid(arguments):
  (name,) = arguments
  with pytest.raises(ValueError, match=name):
    revmom.Grid(**arguments)


def test_of_a_grid_and_a_plan_of_another_kind():
  with pytest.raises(ValueError, match=r"pass revmom\.Grid"):
    revmom.sgd(0.1, 0.9, grid={"params": 20})
  with pytest.raises(ValueError, match=r"pass revmom\.plans\.recompute"):
    revmom.train(
      _loss,
      revmom.sgd(0.1, 0.9),
      jnp.zeros(2),
      jnp.ones((3, 2)),
      plan="recompute",
    )


def test_update_names_what_to_call():
  with pytest.raises(ValueError, match=r"optimizer\.forward.*as_optax"):
    revmom.sgd(0.1, 0.9).update(jnp.ones(2), None, jnp.ones(2))


@pytest.mark.parametrize("value", [-1e-8, float("nan"), None, "small"])
@pytest.mark.parametrize(
  "factory", [revmom.adam, revmom.rmsprop, revmom.adagrad, revmom.muon]
)
def test_of_eps(factory, value):
  with pytest.raises(ValueError, match="eps"):
    factory(0.1, eps=value)


def test_a_function_whose_values_are_out_of_range():
  optimizer = revmom.clipped(
    revmom.sgd(0.1, 0.9), lambda step: 2.0 - jnp.float32(step)
  )
  with pytest.raises(ValueError, match="clip=0"):
    optimizer.init(jnp.zeros(2), 5)
  assert optimizer.init(jnp.zeros(2), 2).steps == 2


def test_what_was_changed_later_is_checked_too():
  optimizer = revmom.adam(0.1).replace(eps=-1e-3)
  with pytest.raises(ValueError, match="eps=-0.001"):
    optimizer.init(jnp.zeros(2))


def _loss(params, batch):
  return jnp.sum((params - batch) ** 2)


@pytest.mark.parametrize(
  "use",
  [
    lambda o: revmom.train(_loss, o, jnp.zeros(2), jnp.ones((3, 2))),
    lambda o: revmom.rewind(_loss, o, None, jnp.ones((3, 2))),
    lambda o: revmom.Stepper(_loss, o),
    revmom.as_optax,
    lambda o: revmom.averaged(o, 0.9),
    lambda o: revmom.clipped(o, 0.9),
    lambda o: revmom.preprocessed(o, optax.scale(2.0)),
    lambda o: revmom.partition({"all": o}, lambda params: "all"),
  ],
)
def test_another_kind_of_optimizer(use):
  with pytest.raises(ValueError, match=r"revmom\.adamw for optax\.adamw"):
    use(optax.adamw(1e-3))
  with pytest.raises(ValueError, match="pass the optimizer itself"):
    use(revmom.as_optax(revmom.adam(1e-3)))
  with pytest.raises(ValueError, match="'adamw' as its optimizer"):
    use("adamw")


@pytest.mark.parametrize("every", [0, -7])
def test_checksums(every):
  with pytest.raises(ValueError, match="checksum_every"):
    revmom.train(
      _loss,
      revmom.sgd(0.1, 0.9),
      jnp.zeros(2),
      jnp.ones((3, 2)),
      checksum_every=every,
    )


@pytest.mark.parametrize(
  "batches",
  [
    (jnp.ones(2) for _ in range(3)),
    [(jnp.ones(2), 1.0)] * 3,
    [(jnp.ones(2), jnp.ones(3))] * 3,
    iter([1.0]),
  ],
  ids=["generator", "scalars", "lengths", "iterator"],
)
def test_batches_one_after_the_other(batches):
  with pytest.raises(ValueError, match=r"(?s)jax\.tree\.map.*stack.*Stepper"):
    revmom.train(_loss, revmom.sgd(0.1, 0.9), jnp.zeros(2), batches)


def test_no_decay_where_the_learning_rate_is_per_element():
  """A factor of 1 is one number for the whole array."""
  params = {"w": jnp.ones(3), "b": jnp.ones(2)}
  rates = {"w": 0.125, "b": jnp.array([[0.25, 0.5]])}
  batches = jnp.array([1.0, 2.0])
  loss = lambda p, batch: batch * jnp.sum(p["w"]) + jnp.sum(p["b"] ** 2)

  def train(rates):
    optimizer = revmom.sgd(rates, 0.5, weight_decay={"w": 0.05, "b": 0.0})
    return optimizer, revmom.train(loss, optimizer, params, batches)

  def objective(rates):
    return jnp.sum(train(rates)[1].params["b"])

  optimizer, run = jax.jit(train)(rates)
  p, v = np.ones(2), np.zeros(2)
  rate = np.array([0.25, 0.5])
  for _ in range(2):
    v = 0.5 * v - rate * 2 * p
    p = p + v
  np.testing.assert_allclose(run.params["b"], p, atol=1e-6)
  decay = np.log(1 - 0.125 * 0.05) + np.log(0.5)
  np.testing.assert_allclose(
    optimizer.log_det(run.state), 2 * (3 * decay + 2 * np.log(0.5)), rtol=1e-5
  )
  # b1 = 1 - 2a, b2 = b1 - a - 2 a b1 = 1 - 5a + 4 a^2.
  gradient = jax.jit(jax.grad(objective))(rates)
  np.testing.assert_allclose(gradient["b"][0], -5 + 8 * rate, atol=1e-5)


def test_rewind_with_another_optimizer():
  batches = jnp.ones((3, 2))
  made_by = revmom.sgd(0.1, 0.9, weight_decay=0.1)
  state = jax.jit(
    lambda: revmom.train(_loss, made_by, jnp.zeros(2), batches).state
  )()
  rewind = lambda o, s=state: revmom.rewind(_loss, o, s, batches)
  for other, name in [
    (revmom.sgd(0.1, 0.8, weight_decay=0.1), r"'velocity' by 0\.\d+ in step"),
    (revmom.sgd(0.1, 0.9, weight_decay=0.2), "'params'.*weight_decay"),
    (revmom.sgd(0.1, 0.9), "weight_decay"),
    (revmom.adamw(0.1), "velocity.*first_moment"),
    (revmom.averaged(made_by, 0.9), "average"),
  ]:
    with pytest.raises(ValueError, match=name):
      rewind(other)
    with pytest.raises(ValueError, match=name):
      other.inverse(state, jnp.ones_like)
  with pytest.raises(ValueError, match="State.*state.*revmom.train"):
    rewind(made_by, made_by.init(jnp.zeros(2), 3))
  assert bool(rewind(made_by).receipt.ok)
