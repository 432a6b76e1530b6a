"""Settings shared by all tests: strict dtypes, programs compiled once."""

import collections
import os
import pathlib
import random
import resource
import sys
from collections.abc import Iterator

import jax
import pytest

# A silent change of dtype is a bug in exact code. Some of
# optax (Adam's bias correction, cosine and piecewise schedules) raises a float
# to an integer power: call it under jax.numpy_dtype_promotion("standard").
jax.config.update("jax_numpy_dtype_promotion", "strict")

_EIGHT_DEVICES = "--xla_force_host_platform_device_count=8"
_MATHEMATICS = ("analysis", "cells", "jacobian", "models", "numerics")
_MUCH_MEMORY = 2 * 2**30  # bytes


def pytest_configure(config: pytest.Config) -> None:
  """Keeps what was compiled for other processes and for the next time.

  What an unchanged program was compiled to is loaded from pytest's cache;
  `pytest --cache-clear` forgets it.  Scripts compile for themselves, as their
  users' do: what is loaded makes XLA talk.
  """
  rooms = {_room(pathlib.Path(argument)) for argument in config.args}
  if rooms <= set(_MATHEMATICS) and jax.__version_info__ < (0, 11):
    # Compiles in half the time; later versions have no such flag.
    flags = os.environ.get("XLA_FLAGS", "")
    os.environ["XLA_FLAGS"] = f"{flags} --xla_cpu_use_fusion_emitters=false"
  cache = getattr(config, "cache", None)
  if cache is None:  # -p no:cacheprovider
    return
  directory = str(cache.mkdir("compiled"))
  jax.config.update("jax_compilation_cache_dir", directory)
  jax.config.update("jax_persistent_cache_min_compile_time_secs", 0)


def _room(path: pathlib.Path) -> str | None:
  """The folder of tests/ that a path lies in."""
  own = pathlib.Path(__file__).parent
  within = path.resolve().is_relative_to(own)
  return (*path.resolve().relative_to(own).parts, "")[0] if within else None


@pytest.fixture
def x64() -> Iterator[None]:
  """Turns 64-bit types on for one test."""
  with jax.enable_x64(True):
    yield


@pytest.fixture
def eight_devices() -> dict[str, str]:
  """An environment with eight virtual devices, for subprocesses."""
  flags = os.environ.get("XLA_FLAGS", "")
  return {**os.environ, "XLA_FLAGS": f"{flags} {_EIGHT_DEVICES}"}


@pytest.fixture(autouse=True, scope="module")
def optimizations(request: pytest.FixtureRequest) -> Iterator[None]:
  """Compiles in less time what need not be the program that users run.

  Whether a reversal is exact depends on every choice that a compiler makes;
  whether an equation is right does not.
  """
  quickly = _room(request.path) in _MATHEMATICS
  jax.config.update("jax_disable_most_optimizations", quickly)
  yield
  jax.config.update("jax_disable_most_optimizations", False)


@pytest.fixture(autouse=True, scope="module")
def compiled_programs() -> Iterator[None]:
  """Forgets what was compiled once thousands of programs fill gigabytes."""
  yield
  unit = 1 if sys.platform == "darwin" else 1024
  if resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit > _MUCH_MEMORY:
    jax.clear_caches()


def pytest_collection_modifyitems(
  config: pytest.Config, items: list[pytest.Item]
) -> None:
  """Leaves out what needs more devices, or runs in a longer run.

  Tests marked `sharded` need eight devices; `sharded_test.py` runs them in a
  process that has as many.

  Of a test marked `sampled(n)` the same n cases, drawn at random once and for
  all, are as the others; the rest are `slow`, and `exhaustive` if `rest` says
  so.
  """
  families = collections.defaultdict(list)
  for item in items:
    if marker := item.get_closest_marker("sampled"):
      name = item.nodeid.split("[", 1)[0]
      rest = marker.kwargs.get("rest", "slow")
      families[name, marker.args[0], rest].append(item)
  for (name, size, rest), family in families.items():
    drawn = random.Random(name).sample(family, min(size, len(family)))
    kept = {item.nodeid for item in drawn}
    for item in family:
      if item.nodeid not in kept:
        item.add_marker("slow")
        item.add_marker(rest)
  sharded = [item for item in items if item.get_closest_marker("sharded")]
  if sharded and jax.device_count() < 8:
    config.hook.pytest_deselected(items=sharded)
    items[:] = [item for item in items if item not in sharded]
