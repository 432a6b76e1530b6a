"""Short runs that are trained, rewound and differentiated."""

import hashlib
import time
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

import revmom
from diagnosis.cases import CASES, Case
from shared.progress_bar import progress

DTYPES = ("float32", "bfloat16")
_MODES = ("auto", "reverse_over_reverse")  # in the order of their cost


class Outcome(NamedTuple):
  """What became of a case."""

  verdict: str  # OK, DIVERGED, NO KERNEL, FAILED
  detail: str
  digest: str  # of the final integers
  seconds: float

  @property
  def ok(self) -> bool:
    return self.verdict in ("OK", "NO KERNEL")


def reverse(
  case: Case, dtype: str, steps: int, seed: int, mode: str = _MODES[0]
) -> Outcome:
  """Trains and rewinds a case, and takes a hypergradient of it.

  In programs of their own, as a user would.
  """
  start = time.perf_counter()
  cast = lambda a: (
    a.astype(dtype) if jnp.issubdtype(a.dtype, jnp.floating) else a
  )
  params, batch = jax.tree.map(cast, (case.params, case.batch))
  optimizer = revmom.sgd(0.1, 0.9)
  key = jax.random.key(seed)

  def batches(step):  # the images in another order, with other noise
    order = jax.random.permutation(jax.random.fold_in(key, step), len(batch[1]))
    return jax.tree.map(lambda a: a[order[: len(order) // 2]], batch)

  train = jax.jit(
    lambda params: revmom.train(
      case.loss_fn, optimizer, params, batches, num_steps=steps
    )
  )
  rewind = jax.jit(
    lambda state: revmom.rewind(case.loss_fn, optimizer, state, batches)
  )

  def objective(optimizer: Any, params: Any) -> jax.Array:
    run = revmom.train(
      case.loss_fn,
      optimizer,
      params,
      batches,
      num_steps=steps,
      second_order_mode=mode,
    )
    floats = [a.astype(jnp.float32) for a in jax.tree.leaves(run.params)]
    return optax.global_norm(floats) ** 2

  hypergradient = jax.jit(jax.grad(objective))
  done = lambda verdict, detail="", digest="": Outcome(
    verdict, detail, digest, time.perf_counter() - start
  )
  try:
    run = train(params)
    receipt = jax.device_get(rewind(run.state).receipt)
    gradient = jax.device_get(hypergradient(optimizer, params))
  except jax.errors.JaxRuntimeError as error:
    # XLA refuses what has no deterministic kernel; a refusal is not a lie.
    refused = "deterministic" in str(error)
    return done(
      "NO KERNEL" if refused else "FAILED", str(error).splitlines()[0]
    )
  if not np.all(np.isfinite(run.losses)):
    raise FloatingPointError(f"the loss of {case.loss_fn} is not finite.")
  digest = _digest(run.state)
  if not receipt.ok:
    at = int(receipt.diverged_at)
    last = min(at + 16, steps)
    return done("DIVERGED", f"between steps {at} and {last}", digest)
  if not np.all(np.isfinite(jax.tree.leaves(gradient))):
    why = revmom.explain(gradient) or "a hypergradient is not a number"
    return done("DIVERGED", f"{mode}: {why.split(':')[0]}", digest)
  return done("OK", "", digest)


def _digest(state: Any) -> str:
  """A short name for the integers of a state."""
  hashed = hashlib.sha256()
  for leaf in jax.tree.leaves(state):
    hashed.update(np.asarray(leaf).tobytes())
  return hashed.hexdigest()[:12]


def examine(steps: int, seed: int) -> dict[str, Outcome]:
  """The self-test, by case and dtype.

  Raises:
    FloatingPointError: a loss is not finite.
  """
  outcomes = {}
  todo = [(make, dtype) for make in CASES for dtype in DTYPES]
  for make, dtype in progress(todo, desc="self-test"):
    case = make(jax.random.key(seed))
    name = f"{make.__name__}_{dtype}"
    outcomes[name] = reverse(case, dtype, steps, seed)
  return outcomes


def recommended(
  outcomes: dict[str, Outcome], steps: int, seed: int
) -> str | None:
  """The cheapest mode in which all hypergradients are numbers, if any is."""
  failed = [name for name, outcome in outcomes.items() if not outcome.ok]
  if not failed:
    return _MODES[0]
  again = [
    reverse(make(jax.random.key(seed)), dtype, steps, seed, _MODES[1])
    for make in CASES
    for dtype in DTYPES
    if f"{make.__name__}_{dtype}" in failed
  ]
  return _MODES[1] if all(outcome.ok for outcome in again) else None
