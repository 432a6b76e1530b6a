"""Plans fit their budget, and change no bit of any result."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import revmom
from revmom.training import plans
from revmom.training.plans import Costs, Plan, Policy

STEPS = 300
START = np.array([0.3, -1.2, 0.8], np.float32)


def loss_fn(params, batch):
  return jnp.sum(jnp.cos(params["a"] - batch)) + jnp.sum(params["b"] ** 2)


def batches():
  return jnp.linspace(0, 3, STEPS * 3, dtype=jnp.float32).reshape(STEPS, 3)


def start():
  return {"a": jnp.asarray(START), "b": jnp.asarray(START[:2])}


def everything(plan=None):
  """Run, gradients and what a rewind brings back, in one compilation."""

  @jax.jit
  def compute(optimizer, params):
    def objective(optimizer, params):
      run = revmom.train(loss_fn, optimizer, params, batches(), plan=plan)
      return jnp.sum(run.params["a"] ** 2) + jnp.sum(run.losses), run

    value, pullback, run = jax.vjp(objective, optimizer, params, has_aux=True)
    gradients = pullback(jnp.ones_like(value))
    rewound = revmom.rewind(loss_fn, optimizer, run.state, batches())
    return run.losses, run.params, gradients, rewound, run.state

  rates = np.linspace(0.01, 0.05, STEPS, dtype=np.float32)
  optimizer = revmom.sgd(jnp.asarray(rates), 0.5)
  *result, state = compute(optimizer, start())
  assert bool(result[-1].receipt.ok)
  return result, state.plan


@pytest.fixture(scope="module")
def unlimited():
  result, plan = everything()
  assert plan == Plan(STEPS)
  return result


def assert_same_bits(a, b):
  """Of all but the gradients: a linearisation is rounded as its loop has it."""
  (*ours, gradients, rewound), (*theirs, expected, start) = a, b
  chex.assert_trees_all_equal((ours, rewound), (theirs, start))
  chex.assert_trees_all_close(gradients, expected, rtol=2e-5)


# 5 parameters of 12 bytes, which spill 0.25 bytes a step at the floor.
@pytest.mark.parametrize(
  "plan, depth",
  [
    (plans.offload(), 0),
    pytest.param(plans.offload(100), 0, marks=pytest.mark.slow),
    (plans.recompute(350), 1),
  ],
)
def test_plans_change_no_bit(unlimited, plan, depth):
  result, plan = everything(plan)
  assert plan.segments and plan.depth == depth, plan.describe()
  assert_same_bits(result, unlimited)


@pytest.mark.slow
def test_deep_plans_change_no_bit(unlimited, monkeypatch):
  """A depth of two is chosen for long runs only, so it is forced here."""
  deep = plans._split(STEPS, 3, "recompute", 2)
  assert deep.depth == 2
  monkeypatch.setattr(Policy, "make", lambda *args: deep)
  result, plan = everything()
  assert plan == deep
  assert_same_bits(result, unlimited)


def leaf_lengths(plan):
  """The lengths of the segments that keep their words, in order."""
  if not plan.segments:
    return [plan.steps]
  leading = leaf_lengths(plan.leading) * plan.segments
  return leading + leaf_lengths(plan.final)


def starts(plan):
  """The largest number of states kept at a time."""
  if not plan.segments or plan.words == "host":
    return 0
  return plan.segments + max(starts(plan.leading), starts(plan.final))


@pytest.mark.parametrize("words", ["host", "recompute"])
@pytest.mark.parametrize("steps", [0, 1, 2, 7, 1000, 99_991])
@pytest.mark.parametrize("share", [0.05, 0.3, 0.99])
def test_every_plan_fits_and_covers_its_run(words, steps, share):
  costs = Costs(state=100, words_per_step=1.9)
  budget = costs.state + int(share * steps * costs.words_per_step)
  try:
    plan = Policy(words, budget).make(steps, costs)
  except ValueError:
    assert words == "recompute" or steps < 100
    return
  lengths = leaf_lengths(plan)
  assert sum(lengths) == steps == plan.steps
  size = costs.state * (1 + starts(plan)) + max(lengths) * costs.words_per_step
  assert size <= plan.size(costs) <= budget


def test_the_fastest_plan_that_fits_is_chosen():
  costs = Costs(state=120, words_per_step=0.2)
  all_words = plans.keep().make(10_000, costs)
  assert all_words == Plan(10_000) and all_words.depth == 0
  needed = all_words.size(costs)
  assert needed == 120 + 2000
  assert plans.recompute(needed).make(10_000, costs) == Plan(10_000)
  assert plans.recompute(needed - 1).make(10_000, costs).depth == 1
  depths = [
    plans.recompute(budget).make(100_000, Costs(120, 2.0)).depth
    for budget in (300_000, 20_000, 8_000)
  ]
  assert depths == [0, 1, 2]


def test_describe():
  costs = Costs(120, 0.2)
  assert plans.keep().make(50, costs).describe() == "all words of 50 steps kept"
  again = plans.recompute(1000).make(10_000, costs).describe()
  assert "run again (all words of" in again
  host = plans.offload(1000).make(10_000, costs).describe()
  assert "words in host memory" in host


def test_a_run_describes_its_plan():
  run = revmom.train(loss_fn, revmom.sgd(0.02, 0.9), start(), batches())
  assert run.state.plan.describe() == f"all words of {STEPS} steps kept"


def test_nothing_fits():
  with pytest.raises(ValueError, match=r"budget=40.*at least \d+"):
    plans.recompute(40).make(1000, Costs(120, 0.2))
  with pytest.raises(ValueError, match=r"budget=10 .*raise the budget"):
    revmom.train(
      loss_fn,
      revmom.sgd(0.02, 0.9),
      start(),
      batches(),
      plan=plans.recompute(10),
    )


def test_the_smallest_budget_named_is_enough():
  costs = Costs(120, 0.2)
  with pytest.raises(ValueError) as caught:
    plans.recompute(130).make(10_000, costs)
  least = int(str(caught.value).split("at least ")[1].split()[0])
  assert plans.recompute(least).make(10_000, costs).size(costs) == least
  with pytest.raises(ValueError):
    plans.recompute(least - 1).make(10_000, costs)


@pytest.mark.parametrize("budget", [0, -1, None, "1GB", 0.5])
def test_a_budget_is_a_number_of_bytes(budget):
  with pytest.raises(ValueError, match="give a number of bytes"):
    plans.recompute(budget)
