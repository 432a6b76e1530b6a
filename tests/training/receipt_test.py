"""A reversal that is not exact says so and returns no plausible number."""

import logging
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

import revmom
from revmom.exact.bit_buffer import BitBuffer
from revmom.steps.checksum import checksum
from revmom.steps.leaf import Leaf
from revmom.training import environment

STEPS = 100
START = np.array([0.3, -1.2, 0.8], np.float32)


def moved(leaf, position, name="params", by=1):
  """The leaf with another integer at a place."""
  integers = leaf.integers[name].at[position].add(by)
  return leaf.put(name, integers, None)


def loss_fn(params, batch, scale=1.0):
  return scale * jnp.sum(jnp.cos(params - batch))


def batches(changed_at=None):
  rows = np.linspace(0, 3, STEPS * 3, dtype=np.float32).reshape(STEPS, 3)
  if changed_at is not None:
    rows[changed_at, 1] += 0.1
  return jnp.asarray(rows)


def train(optimizer, start=START, data=None, **kwargs):
  data = batches() if data is None else data
  return revmom.train(loss_fn, optimizer, jnp.asarray(start), data, **kwargs)


@pytest.fixture(scope="module")
def optimizer():
  return revmom.sgd(0.05, 0.9)


@pytest.fixture(scope="module")
def run(optimizer):
  return train(optimizer)


def rewind(optimizer, state, data=None, loss=loss_fn):
  data = batches() if data is None else data
  return revmom.rewind(loss, optimizer, state, data)


def test_an_exact_reversal_has_a_receipt(optimizer, run):
  rewound = rewind(optimizer, run.state)
  receipt = rewound.receipt
  assert bool(receipt.ok)
  assert bool(receipt.params_restored) and bool(receipt.slots_restored)
  assert bool(receipt.buffers_empty) and bool(receipt.in_range)
  assert int(receipt.diverged_at) == -1
  snapped = np.round(START.astype(np.float64) * 2**24).astype(np.int32)
  np.testing.assert_array_equal(
    rewound.state.leaves[0].integers["params"], snapped
  )
  assert int(rewound.state.count) == 0


def test_a_state_of_numpy_arrays(optimizer, run):
  rewound = rewind(optimizer, jax.device_get(run.state))
  expected = rewind(optimizer, run.state)
  assert bool(rewound.receipt.ok)
  np.testing.assert_array_equal(rewound.params, expected.params)


def test_another_loss_is_named_at_the_last_steps(optimizer, run):
  other = lambda params, batch: loss_fn(params, batch, 1.0001)
  with pytest.raises(RuntimeError, match="between steps 96 and 100"):
    rewind(optimizer, run.state, loss=other)


@pytest.mark.parametrize("step, window", [(50, "48 and 64"), (3, "0 and 16")])
def test_another_batch_is_named_by_its_steps(optimizer, run, step, window):
  with pytest.raises(RuntimeError, match=f"between steps {window}"):
    rewind(optimizer, run.state, batches(changed_at=step))


def test_checksums_can_be_denser(optimizer):
  run = train(optimizer, checksum_every=1)
  assert run.state.checksums.shape == (1 + STEPS, 2)
  with pytest.raises(RuntimeError, match="between steps 50 and 51"):
    rewind(optimizer, run.state, batches(changed_at=50))


def test_damage_is_seen(optimizer, run):
  """Under jit nothing raises: the receipt tells."""
  undo = jax.jit(lambda state: rewind(optimizer, state).receipt)
  assert bool(undo(run.state).ok)
  leaf = run.state.leaves[0]
  buffer = leaf.buffers["velocity"]
  number = buffer.number.at[1].add(1)
  words = buffer.words.at[0, 0].set(buffer.words[0, 0] ^ 1)
  # By one, the number beside it would tell what it must have been.
  damaged = [
    moved(leaf, 0),
    moved(leaf, 2, "velocity", -4),
    leaf._replace(buffers={"velocity": buffer._replace(number=number)}),
    leaf._replace(buffers={"velocity": buffer._replace(words=words)}),
  ]
  for other in damaged:
    receipt = undo(run.state.replace(leaves=[other]))
    assert not bool(receipt.ok)
    assert int(receipt.diverged_at) >= 0


def test_another_environment_is_an_error(optimizer, run):
  threads = run.state.fingerprint._replace(threads=1234, jax="0.0")
  with pytest.raises(ValueError, match="threads: 1234 then") as caught:
    rewind(optimizer, run.state.replace(fingerprint=threads))
  assert "jax: '0.0' then" in str(caught.value)


def test_another_length_is_an_error(optimizer, run):
  with pytest.raises(ValueError, match=r"give all of them, or at least the"):
    rewind(optimizer, run.state, batches()[:-1])


def test_a_run_that_left_its_grid(optimizer):
  huge = revmom.sgd(1e4, 0.9)
  state = jax.jit(lambda: train(huge).state)()
  with pytest.raises(RuntimeError, match="left its grid"):
    rewind(huge, state)
  receipt = jax.jit(lambda state: rewind(huge, state).receipt)(state)
  assert not bool(receipt.ok) and not bool(receipt.in_range)


@pytest.mark.parametrize("under_jit", [False, True])
def test_a_gradient_whose_reversal_fails_is_nan(
  optimizer, under_jit, monkeypatch, caplog
):
  """The reverse pass is given another batch than the run had."""
  from revmom.training import reverse

  honest = reverse.backward

  def backward(problem, inputs, *args):
    data = inputs.data
    stacked = [array.at[50].add(0.1) for array in data.stacked]
    data = data._replace(stacked=stacked)
    return honest(problem, inputs._replace(data=data), *args)

  objective = lambda optimizer, start: jnp.sum(train(optimizer, start).params)
  gradient = jax.grad(objective, (0, 1))
  gradient = jax.jit(gradient) if under_jit else gradient
  monkeypatch.setattr(reverse, "backward", backward)
  # absl's logger does not propagate to the one that pytest listens to.
  with caplog.at_level(logging.ERROR, logger="absl"):
    logger = logging.getLogger("absl")
    logger.addHandler(caplog.handler)
    try:
      by_optimizer, by_start = gradient(optimizer, jnp.asarray(START))
      jax.effects_barrier()
    finally:
      logger.removeHandler(caplog.handler)
  for leaf in jax.tree.leaves((by_optimizer, by_start)):
    assert bool(jnp.all(jnp.isnan(leaf)))
    assert "after step 48" in revmom.explain(2 * leaf)
  assert under_jit or "between steps 48 and 64" in caplog.text


def test_a_gradient_of_a_run_that_left_its_grid_says_so():
  objective = lambda optimizer: jnp.sum(train(optimizer).params)
  gradient = jax.jit(jax.grad(objective))(revmom.sgd(1e4, 0.9))
  assert "left its grid" in revmom.explain(gradient)
  assert revmom.explain(gradient.replace(learning_rate=jnp.nan)) is not None
  assert revmom.explain(jnp.array([1.0, jnp.nan])) is None


_TWICE = """
import sys, jax, jax.numpy as jnp, revmom
from jax import monitoring
jax.config.update("jax_compilation_cache_dir", sys.argv[1])
jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
jax.config.update("jax_persistent_cache_min_entry_size_bytes", 0)
events = []
monitoring.register_event_listener(lambda event, **_: events.append(event))
loss = lambda x, batch: jnp.sum(jnp.cos(x - batch))
run = lambda o: revmom.train(loss, o, jnp.ones(3), jnp.ones([5, 3]))
gradient = jax.jit(jax.grad(lambda o: jnp.sum(run(o).params)))
program = gradient.lower(revmom.sgd(0.1, 0.9))
events.clear()
program.compile()
print(events.count("/jax/compilation_cache/cache_hits"))
"""


def test_hypergradients_are_found_in_a_persistent_cache(tmp_path):
  found = [
    subprocess.run(
      [sys.executable, "-c", _TWICE, str(tmp_path)],
      capture_output=True,
      text=True,
      check=True,
    ).stdout.split()
    for _ in range(2)
  ]
  assert found == [["0"], ["1"]]


def test_checksum_depends_on_every_integer_and_its_array(run):
  leaf = run.state.leaves[0]
  twice = [leaf, leaf]
  seen = {tuple(np.asarray(checksum(twice)))}
  for i, position in np.ndindex(2, 3):
    changed = list(twice)
    changed[i] = moved(leaf, position)
    seen.add(tuple(np.asarray(checksum(changed))))
  assert len(seen) == 7
  first = moved(leaf, 0)
  a, b = (checksum(x) for x in ([first, leaf], [leaf, first]))
  assert (a != b).all()


def test_checksum_of_two_top_bits():
  """Flipped in the last array of two elements: never a sum that is the same."""
  number = np.random.default_rng(0).integers(-(2**31), 2**31, (2000, 64))
  number = number.astype(np.int32)
  changed = number.copy()
  changed[:, :2] ^= np.int32(-(2**31))
  zeros = jnp.zeros(64, jnp.int32)
  buffer = lambda number: {"velocity": BitBuffer(number, zeros[None])}
  leaf = lambda number: Leaf(
    {"params": zeros, "velocity": zeros}, buffer(number)
  )
  checksums = jax.jit(jax.vmap(lambda n: checksum([leaf(n)])))
  assert (checksums(number) != checksums(changed)).any(axis=1).all()


def test_checksum_of_changes_that_undo_each_other():
  """Of an element: such that the difference of one step is that of the next.

  Bits 31 and 15 become bit 31 in a step, and so on: with bit 31 of the next
  integer, or with bit 15 of it and bit 31 of the one after that.
  """
  random = np.random.default_rng(0)
  integers = random.integers(-(2**31), 2**31, (3, 500), np.int64)
  integers = integers.astype(np.uint32).view(np.int32)
  leaf = lambda a, b, c: Leaf(
    {"params": a, "velocity": b}, {"velocity": BitBuffer(c, c[None])}
  )
  checksums = jax.jit(jax.vmap(lambda *integers: checksum([leaf(*integers)])))
  one = lambda arrays: checksums(*arrays[:, :, None])
  high, low = np.uint32(1 << 31), np.uint32(1 << 15)
  for changes in (
    (high | low, high, 0),
    (0, high | low, high),
    (high | low, low, high),
  ):
    changed = integers ^ np.array(changes, np.uint32).view(np.int32)[:, None]
    assert (one(changed) != one(integers)).any(axis=1).all()


def test_checksum_of_64_bits(x64):
  """Of one element, whose bits are flipped one by one and two by two."""
  bits = np.array([0, *(2**i for i in range(64))], np.uint64)
  masks = np.unique(bits[:, None] ^ bits).view(np.int64)
  assert len(masks) == 1 + 64 + 64 * 63 // 2
  one = lambda mask: checksum([Leaf({"params": -(2**40) ^ mask[None]}, {})])
  checksums = jax.jit(jax.vmap(one))(jnp.asarray(masks))
  unchanged = (checksums == checksums[masks == 0]).all(axis=1)
  np.testing.assert_array_equal(unchanged, masks == 0)


@pytest.mark.sharded
def test_checksum_does_not_depend_on_sharding():
  mesh = jax.make_mesh((8,), ("x",), axis_types=(AxisType.Auto,))
  whole = jnp.arange(64 * 3, dtype=jnp.int32).reshape(64, 3)
  spread = jax.device_put(whole, NamedSharding(mesh, P("x")))
  assert len(spread.sharding.device_set) == 8
  a, b = (jax.jit(checksum)([Leaf({"params": x}, {})]) for x in (whole, spread))
  np.testing.assert_array_equal(a, b)


PLANTED_STEPS, EVERY = 40, 8


def planted(count, seed):
  """`count` faults of all kinds, and where each is: (state, batches, step)."""
  random = np.random.default_rng(seed)
  rows = random.normal(size=(PLANTED_STEPS, 7)).astype(np.float32)
  start = {"a": jnp.asarray(rows[0]), "b": jnp.asarray(rows[1])}
  loss = lambda params, row: sum(
    jnp.sum(jnp.cos((i + 1) * params[name] - row))
    for i, name in enumerate("ab")
  )
  # One forgets faster, so that it isn't packed with the other.
  optimizer = lambda rate: revmom.sgd(rate, {"a": 0.6, "b": 0.5})
  rate = np.float32(0.05)
  run = jax.jit(
    lambda rows, rate: (
      revmom.train(
        loss, optimizer(rate), start, rows, checksum_every=EVERY
      ).state
    )
  )
  undo = jax.jit(
    lambda state, rows, rate: (
      revmom.rewind(loss, optimizer(rate), state, rows).receipt
    )
  )
  state = run(rows, rate)
  leaves = jax.tree.map(np.array, state.leaves)
  # What row of words each step wrote, by leaf.
  written = []
  for i in range(len(leaves)):
    schedule = state.schedules[0]["velocity"]
    at = min(i, schedule.spill.shape[1] - 1)
    spill, row = np.asarray(schedule.spill)[:, at], np.asarray(schedule.row)
    written.append({int(row[t, at]): t for t in np.flatnonzero(spill)})

  def receipt_of(leaves, rows, rate=rate):
    return jax.device_get(undo(state.replace(leaves=leaves), rows, rate))

  assert receipt_of(leaves, rows).ok

  def arrays(leaf):
    return [
      leaf.integers["params"],
      leaf.integers["velocity"],
      leaf.buffers["velocity"].number,
    ]

  for fault in range(count):
    changed, changed_rows = jax.tree.map(np.copy, leaves), rows.copy()
    kind, step, changed_rate = fault % 8, PLANTED_STEPS, rate
    i = int(random.integers(len(leaves)))
    array = arrays(changed[i])[random.integers(3)]
    flat = array.reshape(-1)
    if kind == 0:  # one bit
      at, bit = random.integers(flat.size), random.integers(32)
      flat.view(np.uint32)[at] ^= np.uint32(1 << bit)
    elif kind == 1:  # the same bit twice
      at = random.choice(flat.size, 2, replace=False)
      flat.view(np.uint32)[at] ^= np.uint32(1 << random.integers(32))
    elif kind == 2:  # two elements exchanged
      at = random.choice(flat.size, 2, replace=False)
      flat[at] = flat[at[::-1]]
    elif kind == 3:  # two arrays exchanged
      one, two = random.choice(3, 2, replace=False)
      one, two = arrays(changed[i])[one], arrays(changed[i])[two]
      one[...], two[...] = two.copy(), one.copy()
    elif kind == 4:  # a bit of a spilled word
      words = changed[i].buffers["velocity"].words
      row = random.choice(list(written[i]))
      step = written[i][row]
      at = random.integers(words[row].size)
      words[row].reshape(-1)[at] ^= np.uint8(1 << random.integers(8))
    elif kind == 5:  # a learning rate that is the next or the one before
      step = PLANTED_STEPS - 1
      changed_rate = np.nextafter(rate, np.float32(random.integers(2)))
    elif kind == 6:  # what undoes itself in one step of a hash
      first, at = random.integers(2), random.integers(flat.size)
      one, two = (
        array.reshape(-1).view(np.uint32)
        for array in arrays(changed[i])[first : first + 2]
      )
      one[at] ^= np.uint32(1 << 31 | 1 << 15)
      two[at] ^= np.uint32(1 << 31)
    else:  # a value of a batch
      step = int(random.integers(PLANTED_STEPS))
      changed_rows[step, random.integers(rows.shape[1])] += 1e-2
    same = all(
      np.array_equal(a, b)
      for a, b in zip(
        jax.tree.leaves((changed, changed_rows, changed_rate)),
        jax.tree.leaves((leaves, rows, rate)),
        strict=True,
      )
    )
    if not same:
      yield kind, step, receipt_of(changed, changed_rows, changed_rate)


@pytest.mark.parametrize(
  "count", [200, pytest.param(10_000, marks=pytest.mark.slow)]
)
def test_planted_faults_are_all_found_where_they_are(count):
  found = 0
  for kind, step, receipt in planted(count, seed=count):
    assert not receipt.ok, (kind, step)
    first = step // EVERY * EVERY
    assert receipt.diverged_at == first, (kind, step, receipt)
    found += 1
  assert found > 0.99 * count


def test_fingerprint():
  fingerprint = environment.fingerprint()
  assert fingerprint == environment.fingerprint()
  assert fingerprint.jax == jax.__version__
  assert fingerprint.device_count == len(jax.devices())
  assert environment.differences(fingerprint, fingerprint) == []
  other = fingerprint._replace(x64=not fingerprint.x64)
  (line,) = environment.differences(fingerprint, other)
  assert line.startswith("x64")
