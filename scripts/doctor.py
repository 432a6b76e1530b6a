"""Reports what on this machine threatens exactness, and tests reversals.

  python scripts/doctor.py --workdir=out/doctor

Two to three minutes on 2 cores.  Expect OK in all twelve lines of the
self-test, and exit status 0; it is 1 if a reversal fails or jit returns wrong
numbers.

An exact reversal recomputes every gradient and needs the same bits.  First the
settings that decide about them are listed, each with a remedy; then short
runs, in float32 and bfloat16, are trained and rewound, hypergradients are taken
through them, and the cheapest mode in which all are numbers is recommended.
--workdir receives result.json; a second visit says what has changed since the
first one, and whether another process computes the same bits.
"""

import dataclasses
import hashlib
import json
import pathlib
import platform
import sys
import time
from collections.abc import Iterable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

import revmom
from diagnosis.cases import CASES, Case
from shared import output
from shared.progress_bar import progress
from shared.settings import flag, launch
from shared.user_files import blamed

_YNN_OFF = "--xla_cpu_experimental_ynn_fusion_type="
_MARK = {True: "ok  ", False: "WARN", None: "    "}


@dataclasses.dataclass(frozen=True)
class Config:
  """Of the self-test."""

  steps: int = flag(50, "SGD steps of each run of the self-test.", at_least=1)
  seed: int = flag(0, "Of weights and data.")


class Finding(NamedTuple):
  """One line of the report."""

  name: str
  value: str
  ok: bool | None  # None is information
  remedy: str = ""


class Outcome(NamedTuple):
  """What became of a case."""

  verdict: str  # OK, DIVERGED, NO KERNEL, FAILED
  detail: str
  digest: str  # of the final integers
  seconds: float

  @property
  def ok(self) -> bool:
    return self.verdict in ("OK", "NO KERNEL")


# The environment.


def findings() -> Iterable[Finding]:
  """What decides whether gradients are recomputed bit for bit."""
  here = revmom.fingerprint()
  yield from versions(here)
  kinds = sorted({device.device_kind for device in jax.devices()})
  yield Finding(
    "devices",
    f"{here.device_count} x {here.backend} ({', '.join(kinds)})",
    None,
  )
  if here.device_count > 1:
    yield Finding(
      "sharding",
      "sums across devices depend on it",
      None,
      "reverse with the mesh and shardings of the run",
    )
  yield Finding(
    "threads",
    str(here.threads),
    None,
    "reverse with as many: some models round differently with another number",
  )
  yield Finding("XLA_FLAGS", here.xla_flags or "(none)", None)
  yield Finding("jax_enable_x64", str(here.x64), None)
  yield from precision(here)
  if here.backend in ("gpu", "cuda", "rocm"):
    yield from gpu(here.xla_flags)


def versions(here: Any) -> Iterable[Finding]:
  """Releases known to compute wrong numbers."""
  agree = here.jax == here.jaxlib
  yield Finding(
    "jax",
    here.jax,
    agree or None,
    "" if agree else f"jaxlib is {here.jaxlib}",
  )
  flagged = _YNN_OFF in here.xla_flags.split()
  remedy = {
    ("0.10.2", "cpu"): "wrong numbers (jax#39103): install another release",
    ("0.11.0", "cpu"): f"may crash (jax#39257): set XLA_FLAGS={_YNN_OFF}",
    ("0.11.0", "gpu"): "wrong values (jax#40633, jax#36958): update",
    ("0.11.1", "gpu"): "wrong values on some cards (jax#40633): update",
  }.get((here.jaxlib, here.backend))
  if here.backend == "cpu" and flagged:
    remedy = None
  if here.backend == "gpu" and here.jaxlib.startswith(("0.10.", "0.9.")):
    remedy = "scans under vmap may be miscompiled (jax#36958): use >= 0.11.2"
  yield Finding("jaxlib", here.jaxlib, remedy is None, remedy or "")
  wrong = miscompiled()
  yield Finding(
    "jax#39103 reproduced",
    f"{wrong} wrong elements",
    wrong == 0,
    "" if wrong == 0 else f"update jaxlib, or set XLA_FLAGS={_YNN_OFF}",
  )


def miscompiled() -> int:
  """Elements that a jitted, vmapped matrix-vector product gets wrong."""

  def norms(x):  # [n, 3] -> [n], of integers, so that any order is exact
    eye = jnp.eye(3, dtype=x.dtype)
    return jax.vmap(lambda row: jnp.sum((eye @ row) ** 2))(x)

  wrong = 0
  with jax.enable_x64(True):
    for dtype, n in ((jnp.float64, 16385), (jnp.float32, 32769)):
      if dtype == jnp.float64 and jax.default_backend() == "tpu":
        continue
      numbers = np.zeros((n, 3), dtype)
      numbers[:, 0] = np.arange(n) % 1024
      expected = numbers[:, 0] ** 2
      wrong += int(np.sum(np.asarray(jax.jit(norms)(numbers)) != expected))
  return wrong


def precision(here: Any) -> Iterable[Finding]:
  """How products are rounded."""
  pinned = here.matmul_precision != "None" or here.backend == "cpu"
  yield Finding(
    "matmul precision",
    here.matmul_precision,
    pinned,
    "" if pinned else "pin it (TF32): JAX_DEFAULT_MATMUL_PRECISION=highest",
  )
  fixed = _flag(here.xla_flags, "xla_allow_excess_precision") == "false"
  yield Finding(
    "excess precision",
    "off" if fixed else "allowed",
    True if fixed else None,
    ""
    if fixed
    else "if bfloat16 diverges: XLA_FLAGS=--xla_allow_excess_precision=false",
  )


def gpu(xla_flags: str) -> Iterable[Finding]:
  """Kernels that add in any order, or are chosen by their speed."""
  deterministic = _flag(xla_flags, "xla_gpu_deterministic_ops") == "true"
  excluded = (
    deterministic
    or _flag(xla_flags, "xla_gpu_exclude_nondeterministic_ops") == "true"
  )
  tuned = not (
    deterministic
    or _flag(xla_flags, "xla_gpu_autotune_level") == "0"
    or _flag(xla_flags, "xla_gpu_load_autotune_results_from")
  )
  yield Finding(
    "nondeterministic ops",
    "excluded" if excluded else "allowed",
    excluded,
    "" if excluded else "XLA_FLAGS=--xla_gpu_deterministic_ops=true",
  )
  yield Finding(
    "autotuning",
    "by measured speed" if tuned else "off or loaded",
    not tuned,
    "XLA_FLAGS=--xla_gpu_autotune_level=0, or deterministic ops"
    if tuned
    else "",
  )


def _flag(xla_flags: str, name: str) -> str | None:
  """The last value of an XLA flag; one without a value is true."""
  value = None
  for word in xla_flags.split():
    key, _, text = word.lstrip("-").partition("=")
    if key == name:
      value = text or "true"
  return value


# The self-test.


DTYPES = ("float32", "bfloat16")
_MODES = ("auto", "reverse_over_reverse")  # in the order of their cost


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
  for leaf in jax.tree.leaves(state.leaves):
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


# The visit.


def last_visit(workdir: str | None) -> dict[str, Any] | None:
  """The result of the last visit, if there was one.

  Raises:
    ValueError: it can't be read.
  """
  path = pathlib.Path(workdir or ".") / "result.json"
  if not workdir or not path.exists():
    return None
  with blamed(str(path)):
    return dict(json.loads(path.read_text()))


def since(before: dict[str, Any] | None, result: dict[str, Any]) -> list[str]:
  """What has changed since the last visit with the same steps and seed."""
  if before is None:
    return ["this is the first visit; the next one compares with it"]
  same = lambda name: before.get(name) == result[name]
  lines = [
    f"{name}: {before.get(name)!r} then, {value!r} now"
    for name, value in result.items()
    if name.startswith("fingerprint_") and not same(name)
  ]
  digests = [name for name in result if name.startswith("digest_")]
  if not (same("steps") and same("seed")):
    return [*lines, "other --steps or --seed: bits can't be compared"]
  other = [name.removeprefix("digest_") for name in digests if not same(name)]
  if not other:
    return [*lines, "same bits: a saved run can be rewound by another process"]
  return [
    *lines,
    f"other bits in {', '.join(other)}: "
    + (
      "to be expected after such a change"
      if lines
      else "rewind in the process that trained"
    ),
  ]


def visit(steps: int, seed: int, workdir: str | None) -> dict[str, Any]:
  """Prints the report and returns its figures.

  Raises:
    FloatingPointError: a loss of the self-test is not finite.
  """
  before = last_visit(workdir)
  path = output.folder(workdir)
  found = list(findings())
  print("\nWhat decides whether gradients are recomputed bit for bit")
  for finding in found:
    remedy = f"  <- {finding.remedy}" if finding.remedy else ""
    print(f"  {_MARK[finding.ok]} {finding.name:22}{finding.value}{remedy}")
  outcomes = examine(steps, seed)
  print(f"\nSelf-test: {steps} steps trained, then rewound")
  for name, outcome in outcomes.items():
    line = f"  {name:22}{outcome.verdict:10}{outcome.seconds:5.1f} s"
    print(f"{line}  {outcome.detail}".rstrip())
  mode = recommended(outcomes, steps, seed)
  print(
    f'\nHypergradients: second_order_mode="{mode}" is recommended'
    if mode
    else "\nHypergradients: no mode is exact here.  On a CPU set XLA_FLAGS="
    "--xla_cpu_enable_concurrency_optimized_scheduler=false (BUILD.md)"
  )
  wrong = [f.name for f in found if f.name.startswith("jax#") and not f.ok]
  result = {
    "ok": not wrong and all(outcome.ok for outcome in outcomes.values()),
    "warnings": sum(finding.ok is False for finding in found),
    "steps": steps,
    "seed": seed,
    "second_order_mode": mode,
    **{
      f"fingerprint_{k}": v for k, v in revmom.fingerprint()._asdict().items()
    },
    **{f"verdict_{name}": o.verdict for name, o in outcomes.items()},
    **{f"digest_{name}": o.digest for name, o in outcomes.items()},
  }
  if path is not None:
    print("\nSince the last visit")
    for line in since(before, result):
      print(f"  {line}")
    output.write_json(path / "result.json", result)
  return result


def main(config: Config, workdir: str | None) -> str:
  print(f"python {sys.version.split()[0]}, {platform.machine()}")
  result = visit(config.steps, config.seed, workdir)
  if not result["ok"]:
    sys.exit("\nNOT OK")
  return "\nOK"


if __name__ == "__main__":
  launch(Config, main)
