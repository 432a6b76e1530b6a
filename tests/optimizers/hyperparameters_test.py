"""Hyperparameters over steps and parameters, however they are given."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import revmom
from revmom.optimizers import hyperparameters
from revmom.optimizers.hyperparameters import PerStep, StepFunction

STEPS = 4
PARAMS = {"w": jnp.zeros((2, 3)), "b": [jnp.zeros(3), jnp.zeros(())]}


def resolve(value, params=PARAMS, steps=STEPS):
  return hyperparameters.per_leaf(
    "rate", hyperparameters.wrap("rate", value), params, steps
  )


def table(values):
  """Every leaf's value at every step, in the order of the leaves."""
  leaves = len(jax.tree.leaves(PARAMS))
  return [
    [
      np.asarray(hyperparameters.at(values, leaf, step, jnp.float32)).tolist()
      for step in range(STEPS)
    ]
    for leaf in range(leaves)
  ]


def test_a_number_is_shared():
  values = resolve(0.5)
  assert len(values) == 1
  assert table(values) == [[0.5] * STEPS] * 3


def test_an_integer_becomes_a_float():
  (value,) = resolve(1)
  assert value.dtype == jnp.float32
  assert hyperparameters.at((value,), 0, 0, jnp.float32) == 1


def test_an_array_counts_steps():
  array = np.array([0.5, 0.25, 2.0, 1.0], np.float32)
  values = resolve(array)
  assert len(values) == 1 and isinstance(values[0], PerStep)
  assert table(values) == [array.tolist()] * 3


def test_an_optax_schedule_is_evaluated_at_every_step():
  schedule = optax.linear_schedule(1.0, 0.0, STEPS)
  assert table(resolve(schedule)) == [[1.0, 0.75, 0.5, 0.25]] * 3


def test_a_prefix_holds_for_all_below():
  values = resolve({"w": 2.0, "b": np.arange(4, dtype=np.float32)})
  # Leaves are in the order of sorted keys: b[0], b[1], w.
  assert table(values) == [[0, 1, 2, 3], [0, 1, 2, 3], [2] * STEPS]


def test_a_tree_may_mix_all_kinds():
  element = np.arange(6, dtype=np.float32).reshape(1, 2, 3)
  rise = lambda step: 0.5 * jnp.asarray(step, jnp.float32)
  values = resolve({"w": element, "b": [rise, 3.0]})
  assert table(values) == [
    [0, 0.5, 1, 1.5],
    [3] * STEPS,
    [element[0].tolist()] * STEPS,
  ]


def test_a_value_per_step_and_element():
  array = np.arange(24, dtype=np.float32).reshape(STEPS, 2, 3)
  values = resolve({"w": array, "b": 0.0})
  assert table(values)[2] == array.tolist()


def test_functions_are_pytrees_without_leaves():
  wrapped = hyperparameters.wrap("rate", {"w": lambda step: 0.1, "b": 0.5})
  assert isinstance(wrapped["w"], StepFunction)
  assert jax.tree.leaves(wrapped) == [0.5]
  assert hyperparameters.wrap("clip", None) is None


@pytest.mark.parametrize(
  "value,expected",
  [
    (0.1, None),
    (np.ones((1, 2, 3)), None),
    (lambda step: 0.1, None),
    (np.ones(7), 7),
    ({"w": 0.1, "b": np.ones((5, 3))}, 5),
  ],
)
def test_num_steps(value, expected):
  wrapped = hyperparameters.wrap("rate", value)
  assert hyperparameters.num_steps(wrapped) == expected


@pytest.mark.parametrize("value", [np.ones(3), {"w": np.ones(5), "b": 1.0}])
def test_a_wrong_length_is_an_error(value):
  with pytest.raises(ValueError, match="rate has shape .* the run has 4 steps"):
    resolve(value)


@pytest.mark.parametrize(
  "value",
  [
    np.ones((STEPS, 3)),
    {"w": np.ones((1, 3, 2)), "b": 1.0},
    {"w": np.ones((STEPS, 2)), "b": 1.0},
    {"w": 1.0, "b": lambda step: np.ones(2)},
  ],
)
def test_a_wrong_shape_of_elements_is_an_error(value):
  with pytest.raises(ValueError, match="rate has shape .* a parameter array"):
    resolve(value)


@pytest.mark.parametrize("value", [{"v": 1.0}, [1.0, 2.0], {"w": 1.0}])
def test_a_tree_that_is_no_prefix_is_an_error(value):
  with pytest.raises(ValueError, match="rate is a pytree .*prefix"):
    resolve(value)


def test_accumulate_is_the_transpose_of_at():
  values = resolve({"w": 2.0, "b": np.arange(4, dtype=np.float32)})
  bars = jnp.array([1.0, 10.0, 100.0])

  def weighted(values):
    return sum(
      bars[leaf] * (1 + step) * hyperparameters.at(values, leaf, step, "f4")
      for leaf in range(3)
      for step in range(STEPS)
    )

  totals = jax.tree.map(jnp.zeros_like, values)
  for leaf in range(3):
    for step in range(STEPS):
      totals = hyperparameters.accumulate(
        totals, leaf, step, bars[leaf] * (1 + step)
      )
  expected = jax.grad(weighted)(values)
  for total, exact in zip(
    jax.tree.leaves(totals), jax.tree.leaves(expected), strict=True
  ):
    np.testing.assert_array_equal(total, exact)


def test_extremes_of_known_numbers():
  value = {"w": np.array([0.5, 0.9]), "b": [0.25, 0.75]}
  assert hyperparameters.extreme(value, np.min) == 0.25
  assert hyperparameters.extreme(value, np.max) == np.float64(0.9)
  assert hyperparameters.extreme(lambda step: 0.1, np.min) is None
  wrapped = hyperparameters.wrap("rate", {"w": lambda step: 0.1, "b": 0.5})
  assert hyperparameters.extreme(wrapped, np.min) is None
  assert hyperparameters.extreme(None, np.min) is None


def test_traced_numbers_are_not_known():
  seen = []

  @jax.jit
  def function(value):
    seen.append(hyperparameters.extreme({"w": value, "b": 0.5}, np.max))
    return value

  function(0.9)
  assert seen == [None]


def test_a_function_has_no_derivative_and_says_how_to_get_one():
  optimizer = revmom.sgd(optax.linear_schedule(0.1, 0.0, 3), 0.9)
  loss = lambda params, batch: jnp.sum(params * batch)
  objective = lambda optimizer: jnp.sum(
    revmom.train(loss, optimizer, jnp.ones(2), jnp.ones(3)).params
  )
  rate = jax.jit(jax.grad(objective))(optimizer).learning_rate
  assert "tabulate it" in repr(rate)
  for convert in float, np.asarray, jnp.asarray, lambda rate: jnp.add(rate, 1):
    with pytest.raises(ValueError, match="tabulate it"):
      convert(rate)
