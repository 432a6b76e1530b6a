"""What in the environment decides whether gradients keep their bits."""

from collections.abc import Iterable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

import revmom

_YNN_OFF = "--xla_cpu_experimental_ynn_fusion_type="


class Finding(NamedTuple):
  """One line of the report."""

  name: str
  value: str
  ok: bool | None  # None is information
  remedy: str = ""


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
