"""Runs that go on, and runs that are rolled back to any step."""

import functools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import revmom
from revmom.training import plans

STEPS = 50


class Again(plans.Policy):
  """Segments that are run again, though there is room for all words."""

  def make(self, steps, costs):
    return plans._split(steps, 3, "recompute", 2)


class Streamed(plans.Policy):
  """Words of leading segments in host memory."""

  def make(self, steps, costs):
    return plans._split(steps, 3, "host", 1)


def loss_fn(x, batch, scale):
  return scale * jnp.sum(jnp.cos(x - batch))


@functools.cache
def problem():
  rng = np.random.default_rng(0)
  draw = lambda *shape: rng.normal(size=shape).astype(np.float32)
  return draw(3), draw(STEPS, 3)


def sgd(steps=STEPS):
  """Half a bit a step, by a schedule, with weight decay."""
  rates = np.linspace(0.1, 0.02, STEPS, dtype=np.float32)
  return revmom.sgd(rates[:steps], 0.7, weight_decay=0.01)


def adamw(steps=STEPS):
  return revmom.averaged(revmom.adamw(0.01, b1=0.6), 0.8)


def same_integers(state, expected, all_words=True):
  """Whether two runs left the same, beside where their words are."""
  fields = ("count", "schedules", "checksums", "residues")
  for field in fields:
    chex.assert_trees_all_equal(getattr(state, field), getattr(expected, field))
  bare = lambda state: [leaf.bare() for leaf in state.leaves]
  chex.assert_trees_all_equal(bare(state), bare(expected))
  if all_words:
    assert state.plan == expected.plan
    chex.assert_trees_all_equal(state.leaves, expected.leaves)


def train_of(optimizer, plan=None, **kwargs):
  return jax.jit(
    lambda start, batches: revmom.train(
      loss_fn, optimizer, start, batches, 1.3, plan=plan, **kwargs
    )
  )


def rewind_of(optimizer, to):
  return jax.jit(
    lambda state, batches: revmom.rewind(
      loss_fn, optimizer, state, batches, 1.3, to=to
    )
  )


slow = lambda *values: pytest.param(*values, marks=pytest.mark.slow)


@pytest.mark.parametrize(
  ("make", "first", "second"),
  [
    (sgd, None, None),
    slow(adamw, None, None),
    slow(sgd, None, Again()),
    slow(sgd, Again(), None),
    slow(sgd, Streamed(), Streamed()),
  ],
  ids=["keep", "adamw", "then-again", "again-then", "streamed"],
)
def test_two_parts_are_one_run(make, first, second):
  """They end in the integers of one run, and come back as one."""
  start, batches = problem()
  cut, keeps = 21, first is second is None
  whole = train_of(make())(start, batches)
  begun = train_of(make(cut), first)(start, batches[:cut])
  run = train_of(make(), second)(begun.state, batches[cut:])
  same_integers(run.state, whole.state, keeps)
  chex.assert_trees_all_equal(run.params, whole.params)
  chex.assert_trees_all_equal(run.average, whole.average)
  np.testing.assert_array_equal(run.losses, whole.losses[cut:])
  chex.assert_trees_all_equal(run.initial_params, begun.params)
  back = rewind_of(make(), 0)(run.state, batches)
  assert bool(back.receipt.ok)
  chex.assert_trees_all_equal(back.params, whole.initial_params)
  # The second part alone; there is a checksum after 16 steps.
  there = rewind_of(make(), cut)(run.state, batches[16:])
  assert bool(there.receipt.ok)
  same_integers(there.state, begun.state, keeps)


@pytest.mark.parametrize(
  ("plan", "to"),
  [
    (None, 37),
    slow(None, 16),
    slow(Again(), 16),
    slow(Again(), 37),
    slow(Streamed(), 16),
    slow(Streamed(), 37),
  ],
)
def test_rolled_back_to_any_step_and_on(plan, to):
  start, batches = problem()
  bits = 2 if to == 16 else 0
  run = train_of(sgd(), plan, residue_bits=bits)(start, batches)
  there = rewind_of(sgd(), to)(run.state, batches)
  assert bool(there.receipt.ok)
  begun = train_of(sgd(to), residue_bits=bits)(start, batches[:to])
  same_integers(there.state, begun.state, plan is None)
  chex.assert_trees_all_equal(there.params, begun.params)
  again = train_of(sgd())(there.state, batches[to:])
  same_integers(again.state, run.state, plan is None)
  back = rewind_of(sgd(), 0)(again.state, batches)
  assert bool(back.receipt.ok)


@pytest.mark.parametrize(
  "of",
  [
    lambda rates: revmom.sgd(rates, 0.7),
    slow(lambda rates: revmom.adamw(rates, b1=0.6)),
  ],
  ids=["sgd", "adamw"],
)
def test_parts_with_residues_come_back_by_another_program(of):
  """Whose gradients and schedules are others in their last bits."""
  start, batches = problem()
  cut, to = 21, 30
  rates = np.full(STEPS, 0.01, np.float32)
  rates[cut:] = np.linspace(0.01, 0.002, STEPS - cut)
  begun = train_of(of(0.01), residue_bits=2)(start, batches[:cut])
  run = train_of(of(rates))(begun.state, batches[cut:])
  whole = train_of(of(rates), residue_bits=2)(start, batches)
  same_integers(run.state, whole.state)
  assert {name: len(t) for name, t in run.state.tables.items()} == {
    name: STEPS for name in whole.state.tables
  }

  def back(state, batches, to):
    # A rate that was a number is given exactly.
    other = rates * np.where(rates < 0.01, np.float32(1 + 1e-6), 1)
    optimizer = of(other.astype(np.float32))
    return jax.jit(
      lambda state, batches: revmom.rewind(
        loss_fn, optimizer, state, batches, 1.3 * (1 + 1e-6), to=to
      )
    )(state, batches)

  there = back(run.state, batches[16:], to)
  first = back(there.state, batches[:to], 0)
  for rewound in there, first:
    assert bool(rewound.receipt.ok), rewound.receipt.describe()
    assert 0.1 < float(rewound.receipt.margin.distance) < 1.5
  assert int(there.receipt.margin.step) >= 16
  assert all(len(table) == to for table in there.state.tables.values())
  chex.assert_trees_all_equal(first.params, whole.initial_params)


def test_a_part_has_the_gradients_of_its_steps(x64):
  """They are those of the whole run, at the steps of the part."""
  start, batches = problem()
  cut, grid = 20, revmom.Grid(integer="int64")
  start, batches = jnp.asarray(start, float), jnp.asarray(batches, float)
  rates = jnp.linspace(0.1, 0.02, STEPS)
  optimizer = lambda rates: revmom.sgd(rates, 0.7, grid=grid)
  train = lambda rates, start, batches: revmom.train(
    loss_fn, optimizer(rates), start, batches, 1.3
  )

  @jax.jit
  def both(rates, batches):
    final = lambda rates, start, batches: jnp.sum(
      train(rates, start, batches).params ** 2
    )
    state = train(rates[:cut], start, batches[:cut]).state
    whole = jax.grad(final, (0, 2))(rates, start, batches)
    return whole, jax.grad(final, (0, 2))(rates, state, batches[cut:])

  (rates_bar, batches_bar), (own_rates_bar, own_batches_bar) = both(
    rates, batches
  )
  np.testing.assert_array_equal(own_rates_bar[:cut], 0)
  np.testing.assert_allclose(own_rates_bar[cut:], rates_bar[cut:], rtol=1e-9)
  np.testing.assert_allclose(own_batches_bar, batches_bar[cut:], rtol=1e-9)
  with pytest.raises(ValueError, match="the state of a revmom.train computes"):
    jax.grad(
      lambda start: jnp.sum(
        train(
          rates, train(rates[:cut], start, batches[:cut]).state, batches[cut:]
        ).params
      )
    )(start)


def test_a_part_with_another_batch_has_no_receipt():
  start, batches = problem()
  run = train_of(sgd())(start, batches)
  other = batches.copy()
  other[40] += 1e-3
  part = rewind_of(sgd(), 37)(run.state, other[30:])
  receipt = part.receipt
  # Under `jit`, where nothing is raised, there is no state to go on from.
  assert all(jnp.all(jnp.isnan(a)) for a in jax.tree.leaves(part.params))
  assert not bool(receipt.ok) and not bool(receipt.params_restored)
  # Behind the last checksum of the part: 32.
  assert int(receipt.diverged_at) == 32
  with pytest.raises(RuntimeError, match="between steps 32 and 48"):
    revmom.rewind(loss_fn, sgd(), run.state, other, 1.3, to=33)


def test_what_can_not_go_on_or_back():
  start, batches = problem()
  run = jax.eval_shape(
    lambda: revmom.train(loss_fn, sgd(), start, batches, 1.3)
  )
  zeros = lambda tree: jax.tree.map(lambda a: jnp.zeros(a.shape, a.dtype), tree)
  state = zeros(run.state)
  on = functools.partial(revmom.train, loss_fn)
  for arguments, options, message in (
    ((sgd(), state, batches, 1.3), {"checksum_every": 8}, "every=16; leave"),
    (
      (sgd(), state, batches, 1.3),
      {"residue_bits": 2},
      "residue_bits=0; leave",
    ),
    ((sgd(), state, batches, 1.3), {}, "after 50 steps: 0"),
    ((revmom.adamw(0.1), state, batches, 1.3), {}, "it keeps .'velocity'."),
    (
      (sgd(), sgd().init(start), batches, 1.3),
      {},
      "not from a State of optimizer.init",
    ),
  ):
    with pytest.raises(ValueError, match=message):
      on(*arguments, **options)
  with pytest.raises(ValueError, match="at least the last 18: there is a che"):
    revmom.rewind(loss_fn, sgd(), state, batches[37:], 1.3, to=37)
  with pytest.raises(ValueError, match="to=51, but the run has 50 steps"):
    revmom.rewind(loss_fn, sgd(), state, batches, 1.3, to=51)
