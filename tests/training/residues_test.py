"""Reversals whose gradients are computed otherwise than those of the run."""

import os
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

import revmom
from revmom.exact import residue
from revmom.training import plans, reverse

STEPS = 40
OPTIMIZERS = {
  "sgd": revmom.sgd(0.05, 0.9),
  "adamw": revmom.clipped(revmom.adamw(1e-2, weight_decay=0.1), 0.5),
  "muon": revmom.muon(1e-2),
}


def problem():
  rng = np.random.default_rng(0)
  normal = lambda *shape: jnp.asarray(rng.normal(size=shape), "float32")
  params = {"w": normal(16, 32) / 4, "b": normal(32), "v": normal(32, 8) / 5}
  return params, (normal(STEPS, 24, 16), normal(STEPS, 24, 8))


def loss_fn(params, batch, product=jnp.matmul):
  x, y = batch
  hidden = jnp.tanh(product(x, params["w"]) + params["b"][None])
  return jnp.mean((product(hidden, params["v"]) - y) ** 2)


def in_parts(params, batch, parts=4):
  """The same loss, of another order of rows and in some parts."""
  turned = jax.tree.map(
    lambda a: a[::-1].reshape(parts, 24 // parts, -1), batch
  )
  return jnp.mean(lax.map(lambda part: loss_fn(params, part), turned))


def trained(optimizer, bits, **options):
  params, batches = problem()
  train = lambda p: revmom.train(
    loss_fn, optimizer, p, batches, residue_bits=bits, **options
  )
  return jax.jit(train)(params)


def rewound(optimizer, state, loss=in_parts, batches=None):
  batches = problem()[1] if batches is None else batches
  undo = lambda state, batches: revmom.rewind(loss, optimizer, state, batches)
  return jax.jit(undo)(state, batches)


def assert_restored(run, back):
  assert bool(back.receipt.ok), back.receipt.describe()
  assert not bool(back.receipt.near_bound)
  jax.tree.map(np.testing.assert_array_equal, back.params, run.initial_params)


SLOW_MUON = pytest.param("muon", marks=pytest.mark.slow)


@pytest.mark.parametrize("name", ["sgd", "adamw", SLOW_MUON])
def test_other_microbatches_restore_every_bit(name):
  run = trained(OPTIMIZERS[name], 2)
  back = rewound(OPTIMIZERS[name], run.state)
  assert_restored(run, back)
  assert 0 < float(back.receipt.margin.distance) < 1
  assert float(back.receipt.margin.bound) == 2
  assert "up to 2 are forgiven" in back.receipt.describe()


@pytest.mark.slow
@pytest.mark.parametrize("bits", [1, 2, 4, 8, "syndromes"])
@pytest.mark.parametrize("parts", [1, 2, 8])
@pytest.mark.parametrize("name", OPTIMIZERS)
def test_any_microbatches_restore_every_bit(name, parts, bits):
  loss = lambda params, batch: in_parts(params, batch, parts)
  run = trained(OPTIMIZERS[name], bits)
  assert_restored(run, rewound(OPTIMIZERS[name], run.state, loss))


def test_syndromes_keep_an_eighth_of_a_bit():
  run = trained(OPTIMIZERS["sgd"], "syndromes")
  assert_restored(run, rewound(OPTIMIZERS["sgd"], run.state))
  size = sum(a.size for a in jax.tree.leaves(run.params))
  kept = sum(a.nbytes for a in jax.tree.leaves(run.state.residues))
  assert kept == STEPS * 4 * -(-size // 256)


class Again(plans.Policy):
  """Segments that are run again, though there is room for all words."""

  def make(self, steps, costs):
    return plans._split(steps, 3, "recompute", 1)


@pytest.mark.parametrize("name", ["sgd", SLOW_MUON])
def test_segments_that_are_run_again_in_other_microbatches(name):
  """The second pass computes other gradients, too."""
  run = trained(OPTIMIZERS[name], 2, plan=Again())
  assert run.state.plan.segments == 3
  assert_restored(run, rewound(OPTIMIZERS[name], run.state))


def test_without_residues_they_do_not():
  run = trained(OPTIMIZERS["sgd"], 0)
  receipt = rewound(OPTIMIZERS["sgd"], run.state).receipt
  assert not bool(receipt.ok) and receipt.margin is None
  assert not bool(receipt.near_bound)
  assert "NOT exact, first seen at step" in receipt.describe()


def noisy(monkeypatch):
  """Reverse passes get gradients with the relative errors that batches hold."""
  honest = reverse.backward

  def backward(problem, *args):
    def gradient(views, state, data, t):
      out, gradients = problem.gradient(views, state, data, t)
      return out, [g * (1 + data.stacked[2]) for g in gradients]

    return honest(problem._replace(gradient=gradient), *args)

  monkeypatch.setattr(reverse, "backward", backward)


@pytest.mark.parametrize(
  "bits", [2, pytest.param("syndromes", marks=pytest.mark.slow)]
)
def test_hypergradients_are_those_of_the_undisturbed_run(bits, monkeypatch):
  """With noise up to what is forgiven; beyond it there are none."""
  noisy(monkeypatch)
  params, (x, y) = problem()

  def objective(optimizer, params, noise, bits):
    loss = lambda params, batch: loss_fn(params, batch[:2])
    batches = x, y, noise * jnp.cos(jnp.arange(STEPS, dtype="float32"))
    run = revmom.train(loss, optimizer, params, batches, residue_bits=bits)
    return jnp.sum(run.losses[-5:])

  gradient = jax.value_and_grad(objective, (0, 1))
  of = jax.jit(lambda *args: gradient(*args, bits))
  inputs = OPTIMIZERS["sgd"], params
  value, undisturbed = of(*inputs, 0.0)
  # Half of 1.5 units of 2^-19 of the largest, and of what eight forgive.
  _, disturbed = of(*inputs, 1.4e-6 if bits == 2 else 2e-7)
  plain_value, plain = jax.jit(lambda *args: gradient(*args, 0))(*inputs, 0.0)
  np.testing.assert_allclose(value, plain_value, rtol=1e-4)
  for a, b, c in zip(
    *map(jax.tree.leaves, (undisturbed, disturbed, plain)), strict=True
  ):
    np.testing.assert_allclose(a, b, atol=2e-5 * np.abs(a).max())
    np.testing.assert_allclose(a, c, atol=2e-3 * np.abs(a).max())
  _, lost = of(*inputs, 1e-3)
  assert all(np.isnan(a).all() for a in jax.tree.leaves(lost))
  assert "diverged after step 32" in revmom.explain(lost)


def test_a_narrow_margin_is_a_warning():
  flag = jnp.ones((), bool)
  receipt = lambda *margin: revmom.Receipt(
    flag, flag, flag, flag, jnp.int32(-1), residue.margin(*margin)
  )
  wide, narrow = receipt(0.7, 1), receipt(0.95, 1)
  assert not bool(wide.near_bound) and bool(narrow.near_bound)
  narrow = narrow._replace(margin=narrow.margin._replace(step=jnp.int32(3)))
  assert bool(narrow.ok)
  assert "0.95 units of the grid" in narrow.describe()
  assert "in step 3" in narrow.describe()
  assert "near the bound" in narrow.describe()


def test_another_environment_is_forgiven(caplog):
  optimizer = OPTIMIZERS["sgd"]
  run = trained(optimizer, 2)
  other = run.state.replace(
    fingerprint=run.state.fingerprint._replace(jax="0.0", threads=99)
  )
  assert_restored(run, rewound(optimizer, other))


def test_schedules_and_corrections_of_another_program():
  """Numbers that all elements share are those of the run, if they are near."""
  schedule = lambda t: 0.01 * jnp.cos(jnp.float32(t) / 100)
  adamw = lambda rate: revmom.adamw(
    rate, b1=lambda t: jnp.float32(0.9), weight_decay=1e-3
  )
  run = trained(adamw(schedule), 2)
  assert len(run.state.tables) == 4
  _, batches = problem()

  @jax.jit
  def undo(state, scale):
    rates = scale * jax.vmap(schedule)(jnp.arange(STEPS))
    return revmom.rewind(loss_fn, adamw(rates), state, batches)

  assert_restored(run, undo(run.state, 1 + 1e-6))
  assert not bool(undo(run.state, 1 + 1e-4).receipt.ok)


def test_muons_update_of_another_program(monkeypatch):
  optimizer = OPTIMIZERS["muon"]
  run = trained(optimizer, 2)
  muons = sys.modules["revmom.optimizers.muon"]
  honest = muons.orthogonalise
  monkeypatch.setattr(
    muons, "orthogonalise", lambda m, *args: honest(m[::-1].T, *args).T[::-1]
  )
  assert_restored(run, rewound(optimizer, run.state))


def rounded_to(digits):
  """A product of numbers with few binary digits, as some hardware has it."""
  narrow = lambda a: lax.reduce_precision(a, 8, digits)
  return lambda a, b: narrow(a) @ narrow(b)


def in_bfloat16(a, b):
  """A product that is accumulated in bfloat16, too."""
  narrow = lambda a: a.astype(jnp.bfloat16)
  return (narrow(a) @ narrow(b)).astype(a.dtype)


@pytest.mark.parametrize(
  "product",
  [pytest.param(rounded_to(10), marks=pytest.mark.slow), in_bfloat16],
  ids=["tf32", "bfloat16"],
)
def test_another_precision_is_forgiven_by_eight_bits(product):
  optimizer = OPTIMIZERS["adamw"]
  run = trained(optimizer, 8)
  loss = lambda params, batch: loss_fn(params, batch, product)
  back = rewound(optimizer, run.state, loss)
  assert bool(back.receipt.ok), back.receipt.describe()
  jax.tree.map(np.testing.assert_array_equal, back.params, run.initial_params)


@pytest.mark.slow
def test_compiled_or_step_by_step_or_for_many():
  """Of a run that was compiled, one that is not, and two at once."""
  optimizer = OPTIMIZERS["sgd"]
  params, batches = problem()
  few = jax.tree.map(lambda a: a[:5], batches)
  train = lambda p: revmom.train(
    loss_fn, optimizer, p, few, residue_bits=2, checksum_every=1
  )
  run = jax.jit(train)(params)
  undo = lambda state: revmom.rewind(loss_fn, optimizer, state, few)
  with jax.disable_jit():
    assert_restored(run, undo(run.state))
  twice = jax.tree.map(lambda a: jnp.stack([a, a]), run.state)
  receipt = jax.jit(jax.vmap(lambda state: undo(state).receipt.ok))(twice)
  assert receipt.tolist() == [True, True]
  runs = jax.jit(jax.vmap(train))(
    jax.tree.map(lambda a: jnp.stack([a, -a]), params)
  )
  first = jax.tree.map(lambda a: a[0], runs)
  assert_restored(first, rewound(optimizer, first.state, loss_fn, few))


def test_what_is_kept_and_refused():
  params, batches = problem()
  run = lambda optimizer=OPTIMIZERS["sgd"], **options: jax.eval_shape(
    lambda p: revmom.train(loss_fn, optimizer, p, batches, **options),
    params,
  )
  kept = jax.tree.leaves(run(residue_bits=2).state.residues)
  size = sum(a.size for a in jax.tree.leaves(params))
  assert sum(a.size for a in kept) <= STEPS * (size / 4 + size / 512 + 1)
  matrices = size - params["b"].size
  more = jax.tree.leaves(run(revmom.muon(1e-2), residue_bits=2).state.residues)
  assert sum(a.size for a in more) <= STEPS * ((size + matrices) / 4 + 8)
  assert not run().state.residues and not run().state.tables
  with pytest.raises(ValueError, match="choose one of"):
    run(residue_bits=3)
  with pytest.raises(ValueError, match="choose one of"):
    run(residue_bits="syndrome")
  plan = revmom.plans.recompute(30_000)
  assert run(residue_bits=2, plan=plan).state.plan.steps == STEPS
  with pytest.raises(ValueError, match="raise the budget"):
    run(residue_bits=8, plan=plan)
  narrow = lambda a: a.astype(jnp.bfloat16)
  params, batches = jax.tree.map(narrow, (params, batches))
  with pytest.raises(ValueError, match="none to spare"):
    run(residue_bits="syndromes")


def spread(tree, specs, mesh):
  shardings = jax.tree.map(lambda spec: NamedSharding(mesh, spec), specs)
  return jax.device_put(tree, shardings)


@pytest.mark.sharded
@pytest.mark.slow
@pytest.mark.parametrize("bits", [2, "syndromes"])
@pytest.mark.parametrize("name", OPTIMIZERS)
@pytest.mark.parametrize("what", ["batches", "parameters"])
def test_one_device_and_eight(what, name, bits):
  mesh = jax.make_mesh((8,), ("x",), axis_types=(AxisType.Auto,))
  params, batches = problem()
  optimizer = OPTIMIZERS[name]
  everywhere = jax.tree.map(lambda _: P(), params)
  rows = jax.tree.map(lambda _: P(None, "x"), batches)
  if what == "parameters":
    everywhere = {"w": P(None, "x"), "b": P("x"), "v": P("x", None)}
    rows = jax.tree.map(lambda _: P(), batches)
  train = jax.jit(
    lambda p, batches: revmom.train(
      loss_fn, optimizer, p, batches, residue_bits=bits
    )
  )
  many = spread(params, everywhere, mesh), spread(batches, rows, mesh)
  one = jax.devices()[0]
  on_eight, on_one = train(*many), train(params, batches)
  assert len(on_eight.params["w"].sharding.device_set) == 8
  assert len(on_one.params["w"].sharding.device_set) == 1
  alone = jax.device_put(jax.device_get(on_eight.state), one)
  assert_restored(on_eight, rewound(optimizer, alone, loss_fn))
  states = jax.device_put(on_one.state, NamedSharding(mesh, P()))
  assert_restored(on_one, rewound(optimizer, states, loss_fn, many[1]))


_CHILD = """
import sys
import numpy as np, jax, jax.numpy as jnp
sys.path.insert(0, sys.argv[1])
import residues_test as here
import revmom
optimizer, path = here.OPTIMIZERS[sys.argv[2]], sys.argv[4]
bits = int(sys.argv[3]) if sys.argv[3].isdigit() else sys.argv[3]
shapes = jax.eval_shape(lambda: here.trained(optimizer, bits))
structure = jax.tree.structure(shapes)
if sys.argv[5] == "train":
  run = here.trained(optimizer, bits)
  np.savez(path, *map(np.asarray, jax.tree.leaves(run)))
else:
  saved = np.load(path)
  run = structure.unflatten([jnp.asarray(saved[name]) for name in saved])
  here.assert_restored(run, here.rewound(optimizer, run.state))
print(jax.__version__)
"""


def in_another_process(python, task, name, bits, path, threads=None):
  """The version of JAX of an interpreter that trained, or went back."""
  here = os.path.dirname(__file__)
  command = [python, "-c", _CHILD, here, name, str(bits), str(path), task]
  if threads == 1:
    one = min(os.sched_getaffinity(0))
    command = ["taskset", "--cpu-list", str(one), *command]
  root = os.path.dirname(os.path.dirname(revmom.__file__))
  run = subprocess.run(
    command,
    capture_output=True,
    text=True,
    env={**os.environ, "PYTHONPATH": root},
  )
  assert run.returncode == 0, run.stderr
  return run.stdout.strip()


@pytest.mark.slow
@pytest.mark.parametrize("bits", [2, "syndromes"])
@pytest.mark.parametrize("name", OPTIMIZERS)
def test_another_process_with_another_number_of_threads(name, bits, tmp_path):
  path = tmp_path / "run.npz"
  in_another_process(sys.executable, "train", name, bits, path)
  in_another_process(sys.executable, "rewind", name, bits, path, threads=1)


@pytest.mark.slow
@pytest.mark.skipif(
  "REVMOM_OTHER_PYTHON" not in os.environ,
  reason="needs REVMOM_OTHER_PYTHON, an interpreter with another JAX",
)
@pytest.mark.parametrize("bits", [2, "syndromes"])
@pytest.mark.parametrize("name", OPTIMIZERS)
def test_another_version_of_jax(name, bits, tmp_path):
  other = os.environ["REVMOM_OTHER_PYTHON"]
  for python, back in ((sys.executable, other), (other, sys.executable)):
    path = tmp_path / "run.npz"
    then = in_another_process(python, "train", name, bits, path)
    now = in_another_process(back, "rewind", name, bits, path)
    assert then != now
