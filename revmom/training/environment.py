"""What gradients are computed on, and whether that is what it was."""

import os
from typing import NamedTuple

import jax
import jax.numpy as jnp
import jaxlib
from absl import logging


class Fingerprint(NamedTuple):
  """What must not change between a run and its reversal."""

  jax: str
  jaxlib: str
  backend: str
  device_kind: str
  device_count: int
  process_count: int
  threads: int
  x64: bool
  matmul_precision: str
  xla_flags: str


def fingerprint() -> Fingerprint:
  """The fingerprint of this process.

  Batching is not in it, being invisible from inside `vmap`: reverse vmapped
  what ran vmapped.
  """
  device = jax.devices()[0]
  return Fingerprint(
    jax=jax.__version__,
    jaxlib=jaxlib.__version__,
    backend=device.platform,
    device_kind=device.device_kind,
    device_count=jax.device_count(),
    process_count=jax.process_count(),
    threads=len(os.sched_getaffinity(0))
    if hasattr(os, "sched_getaffinity")
    else os.cpu_count() or 1,
    x64=jnp.result_type(float) == jnp.float64,
    matmul_precision=str(jax.config.values["jax_default_matmul_precision"]),
    xla_flags=os.environ.get("XLA_FLAGS", ""),
  )


def check_environment(then: Fingerprint, forgives: bool) -> None:
  """That of a run is the one of this process, unless it kept residues.

  Raises:
    ValueError: it is another one, and gradients may differ in their last bits.
  """
  changed = "; ".join(differences(then, fingerprint()))
  if changed and not forgives:
    raise ValueError(
      "the run was made in another environment, whose gradients may differ in "
      f"their last bits: {changed}"
    )
  if changed:
    logging.warning(
      "revmom: the run was made in another environment (%s); its residues "
      "forgive other rounding, and the receipt says how much was needed.",
      changed,
    )


def differences(before: Fingerprint, now: Fingerprint) -> list[str]:
  """One line for every field that changed."""
  return [
    f"{name}: {old!r} then, {new!r} now"
    for name, old, new in zip(before._fields, before, now, strict=True)
    if old != new
  ]
