"""What each of several processes runs; it prints what it found, as JSON.

    python process_program.py RANK PROCESSES PORT OPTIMIZER SPREAD WHAT

One process with as many devices runs the same program, for comparison.
"""

import json
import sys

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

STEPS = 4


def loss_fn(params, batch):
  x, y = batch
  return jnp.mean((jnp.tanh(x @ params["w"]) @ params["v"] - y) ** 2)


def take(batches, step):
  return jax.tree.map(lambda a: a[step], batches)


def whole_runs(revmom, optimizer, params, batches, jit):
  """train, rewind and the gradient through train."""
  train = lambda params, batches: revmom.train(
    loss_fn, optimizer, params, batches
  )
  run = jit(train)(params, batches)
  rewind = lambda state, batches: revmom.rewind(
    loss_fn, optimizer, state, batches
  )
  back = jit(rewind)(run.state, batches)
  optimizer.check(run.state)
  gradient = jit(
    jax.grad(lambda params: jnp.sum(train(params, batches).params["w"] ** 2))
  )(params)
  return {
    "receipt": bool(back.receipt.ok),
    "start": digest((params, back.params)),
    "integers": digest([leaf.integers for leaf in run.state.leaves]),
    "gradient": digest(gradient),
    "numbers": np.asarray(run.losses).tolist(),
  }


def single_steps(revmom, optimizer, params, batches, jit):
  """The same steps one by one, and as a transformation of optax."""
  stepper = revmom.Stepper(loss_fn, optimizer)
  state = stepper.init(params, STEPS)
  pick = jax.jit(take)
  for t in range(STEPS):
    state, loss = stepper.forward(state, pick(batches, t))
  integers = digest([leaf.integers for leaf in state.leaves])
  for t in reversed(range(STEPS)):
    state, loss = stepper.inverse(state, pick(batches, t))
  transformation = revmom.as_optax(optimizer, num_steps=STEPS)
  own = jit(transformation.init)(params)
  now = jit(transformation.params)(own)
  for t in range(STEPS):
    gradients = jax.jit(jax.grad(loss_fn))(now, pick(batches, t))
    updates, own = jit(transformation.update)(gradients, own, now)
    now = jax.tree.map(jnp.add, now, updates)
  return {
    "start": digest((params, stepper.params(state))),
    "integers": integers,
    "optax": digest(now),
    "spread": [
      [str(z.sharding.spec) for z in leaf.integers.values()]
      for leaf in own.leaves
    ],
    "numbers": [float(loss)],
  }


def copies(revmom, optimizer, params, batches, jit):
  """Replicated parameters that are not the same on all processes."""
  own = jax.device_put(jnp.full((3,), jax.process_index(), jnp.float32))
  mesh = next(iter(params.values())).sharding.mesh
  params = jax.make_array_from_single_device_arrays(
    (3,), NamedSharding(mesh, P()), [own]
  )
  try:
    optimizer.init({"bias": params}, STEPS)
  except ValueError as error:
    return {"error": str(error)}
  return {"error": ""}


def digest(tree):
  """A number that any other bit changes."""
  total = jnp.zeros((), jnp.uint32)
  for leaf in jax.tree.leaves(tree):
    bits = jax.lax.bitcast_convert_type(leaf, jnp.uint32)
    places = jnp.arange(leaf.size, dtype=jnp.uint32).reshape(leaf.shape)
    total = 31 * total + jnp.sum((bits ^ places) * jnp.uint32(0x9E3779B1))
  return int(total)


def main(rank, processes, port, optimizer, spread, what):
  if port:
    jax.config.update("jax_cpu_collectives_implementation", "gloo")
    jax.distributed.initialize(f"localhost:{port}", processes, rank)
  import revmom

  optimizer = {
    "sgd": revmom.sgd(0.1, 0.9),
    "adamw": revmom.clipped(revmom.adamw(0.01), 1.0),
    "muon": revmom.muon(0.01),
  }[optimizer]
  rng = np.random.default_rng(0)
  normal = lambda *shape: rng.normal(size=shape).astype(np.float32)
  mesh = jax.make_mesh((processes,), ("data",), axis_types=(AxisType.Auto,))

  def put(array, *axes):
    sharding = NamedSharding(mesh, P(*axes))
    return jax.make_array_from_callback(
      array.shape, sharding, lambda index: array[index]
    )

  axes = ("data",) if spread == "sharded" else ()
  params = {"w": put(normal(8, 4), *axes), "v": put(normal(4, 2), *axes)}
  batches = tuple(
    put(array, None, "data")
    for array in (normal(STEPS, 8, 8), normal(STEPS, 8, 2))
  )
  jit = (lambda f: f) if what.startswith("eager_") else jax.jit
  part = globals()[what.removeprefix("eager_")]
  print(json.dumps(part(revmom, optimizer, params, batches, jit)))


if __name__ == "__main__":
  main(*map(int, sys.argv[1:4]), *sys.argv[4:])
