"""Contenders timed in turn, in one process, and what they ran on."""

import contextlib
import math
import os
import platform
import statistics
import time
from collections.abc import Callable, Iterable
from importlib import metadata
from typing import Any, NamedTuple

import jax

# Seconds that one timing should take at least.
_SHORT = 0.2


class Program(NamedTuple):
  """A compiled contender and its arguments."""

  run: Callable[[], Any]
  memory: dict[str, int]  # bytes
  compile_s: float


def compile(function: Callable, *args: Any) -> Program:
  """Compiles ahead of time, which also tells how much memory is needed."""
  begin = time.perf_counter()
  compiled = jax.jit(function).lower(*args).compile()
  spent = time.perf_counter() - begin
  analysis = compiled.memory_analysis()
  memory = {
    name: int(getattr(analysis, f"{name}_size_in_bytes"))
    for name in ("temp", "output", "argument")
  }
  return Program(
    lambda: jax.block_until_ready(compiled(*args)), memory, round(spent, 2)
  )


def time_rounds(
  programs: dict[str, Program], rounds: int, seconds: float
) -> dict[str, list[float]]:
  """Seconds of each program in each round.

  Every round runs all programs, each starting with another one, so that what
  drifts or is left over hits all alike.  Short programs are run several times
  in a round.  No round but the first is begun if it would pass the time limit.
  """
  names = list(programs)
  times: dict[str, list[float]] = {name: [] for name in names}
  begin = time.perf_counter()
  for number in range(rounds):
    for name in _rotated(names, number):
      times[name].append(_timing(programs[name].run))
    spent = time.perf_counter() - begin
    if spent * (number + 2) / (number + 1) > seconds:
      break
  return times


def _timing(run: Callable[[], Any]) -> float:
  once = _seconds(run, 1)
  return once if once >= _SHORT else _seconds(run, math.ceil(_SHORT / once))


def _seconds(run: Callable[[], Any], repeats: int) -> float:
  begin = time.perf_counter()
  for _ in range(repeats):
    run()
  return (time.perf_counter() - begin) / repeats


def _rotated(names: list[str], by: int) -> list[str]:
  by %= len(names)
  return names[by:] + names[:by]


class Spread(NamedTuple):
  """A median, and how far single rounds are from it."""

  median: float
  low: float
  high: float


def spread(values: Iterable[float]) -> Spread:
  """Median, minimum and maximum."""
  values = list(values)
  return Spread(statistics.median(values), min(values), max(values))


def ratio(times: list[float], reference: list[float]) -> Spread:
  """Of two contenders, round by round."""
  return spread(a / b for a, b in zip(times, reference, strict=True))


PACKAGES = (
  *("jax", "jaxlib", "flax", "optax", "numpy"),
  *("equinox", "dm-haiku", "distrax", "flowjax", "matfree", "torch"),
)


def environment() -> dict[str, Any]:
  """What numbers depend on."""
  device = jax.devices()[0]
  versions = {"python": platform.python_version()}
  for package in PACKAGES:
    with contextlib.suppress(metadata.PackageNotFoundError):
      versions[package] = metadata.version(package)
  load = os.getloadavg()[0] if hasattr(os, "getloadavg") else None
  return {
    "backend": device.platform,
    "device": device.device_kind,
    "devices": jax.device_count(),
    "processor": _processor(),
    "cores": len(os.sched_getaffinity(0))
    if hasattr(os, "sched_getaffinity")
    else os.cpu_count(),
    "load_before": load,
    "xla_flags": os.environ.get("XLA_FLAGS", ""),
    "versions": versions,
  }


def _processor() -> str:
  try:
    with open("/proc/cpuinfo") as lines:
      for line in lines:
        if line.startswith("model name"):
          return line.split(":", 1)[1].strip()
  except OSError:
    pass
  return platform.processor() or platform.machine()
