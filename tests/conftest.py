"""Settings shared by all tests: eight virtual devices, strict dtypes."""

import collections
import os
import random
from collections.abc import Iterator

import pytest

# XLA reads its flags once, so this comes before anything that imports jax.
_FLAG = "--xla_force_host_platform_device_count"
_EIGHT_DEVICES = f"{_FLAG}=8"
if _FLAG not in os.environ.get("XLA_FLAGS", ""):
  os.environ["XLA_FLAGS"] = " ".join(
    [*os.environ.get("XLA_FLAGS", "").split(), _EIGHT_DEVICES]
  )

import jax  # noqa: E402

# A silent change of dtype is a bug in exact code. Some of
# optax (Adam's bias correction, cosine and piecewise schedules) raises a float
# to an integer power: call it under jax.numpy_dtype_promotion("standard").
jax.config.update("jax_numpy_dtype_promotion", "strict")


@pytest.fixture
def x64() -> Iterator[None]:
  """Turns 64-bit types on for one test."""
  with jax.enable_x64(True):
    yield


@pytest.fixture
def user_env() -> dict[str, str]:
  """The environment without the virtual devices, for scripts in subprocesses.

  A script then sees the devices that its user would see.
  """
  flags = os.environ["XLA_FLAGS"].split()
  flags = [flag for flag in flags if flag != _EIGHT_DEVICES]
  return {**os.environ, "XLA_FLAGS": " ".join(flags)}


@pytest.fixture(autouse=True, scope="module")
def compiled_programs() -> Iterator[None]:
  """Forgets what a module compiled: thousands of programs fill gigabytes."""
  yield
  jax.clear_caches()


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
  """Leaves all but a sample of some products of options to a longer run.

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
