"""Log-determinants of maps beside closed forms and dense matrices."""

import math
import pathlib
import time
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.flatten_util import ravel_pytree

import revmom
from determinants.maps import MAPS, Map
from shared import user_files

DENSE_LIMIT = 4096  # floats of the largest dense check
_TOLERANCE = 1e-9  # of differences, relative to log|det| above 1
_STANDARD_ERRORS = 6  # that an estimate may be off


class Timed(NamedTuple):
  """The result of a compiled function."""

  value: Any
  compile_s: float  # tracing included
  seconds: float  # the least of three calls


def timed(function: Callable, *args: Any) -> Timed:
  """Compiles and runs."""
  begin = time.perf_counter()
  compiled = jax.jit(function).lower(*args).compile()
  compile_s = time.perf_counter() - begin
  seconds = math.inf
  for _ in range(3):
    begin = time.perf_counter()
    value = jax.block_until_ready(compiled(*args))
    seconds = min(seconds, time.perf_counter() - begin)
  return Timed(value, compile_s, seconds)


def dense(function: Callable, args: tuple) -> Timed:
  """(sign, log|det J|) of the whole matrix."""
  flat, unravel = ravel_pytree(args)

  def slogdet(flat):
    image = lambda z: ravel_pytree(function(*unravel(z)))[0]
    return tuple(jnp.linalg.slogdet(jax.jacfwd(image)(flat)))

  return timed(slogdet, flat)


def measure(name: str, size: int, seed: int) -> dict[str, Any]:
  """One row: a map's log-determinant, its closed form and the dense check."""
  key = jax.random.key(seed)
  found = named(name)(key, size)
  key = jax.random.fold_in(key, 1)
  got = timed(revmom.log_det(found.function, key=key), *found.arguments)
  result: revmom.LogDet = got.value
  floats = sum(leaf.size for leaf in jax.tree.leaves(found.arguments))
  whole = None
  if floats <= DENSE_LIMIT:
    whole = dense(found.function, found.arguments)
  closed = found.closed_form
  return {
    "map": name,
    "size": size,
    "floats": floats,
    "log_det": float(result.value),
    "sign": float(result.sign),
    "stderr": float(result.stderr),
    "bias_bound": float(result.bias_bound),
    "method": result.method,
    "blocks": [block._asdict() for block in result.report],
    "formula": found.formula,
    "closed_form": None if closed is None else float(closed),
    "dense": None if whole is None else float(whole.value[1]),
    "dense_sign": None if whole is None else float(whole.value[0]),
    "compile_s": got.compile_s,
    "seconds": got.seconds,
    "dense_seconds": None if whole is None else whole.seconds,
  }


def named(name: str) -> Callable[[jax.Array, int], Map]:
  """A map by its name, or from a user's file.

  Raises:
    ValueError: there is none of that name.
    FileNotFoundError: there is no such file.
  """
  if name in MAPS:
    return MAPS[name]
  file, _, function = name.rpartition(":")
  if not file.endswith(".py"):
    raise ValueError(
      f"--map={name}; choose one of {', '.join(MAPS)}, or FILE.py:NAME."
    )
  path = pathlib.Path(file)
  if not path.is_file():
    raise FileNotFoundError(f"--map={name}: {file} is not a file.")
  flag = f"--map={name}"
  module = user_files.load("log_det_map", path, flag)
  if not callable(getattr(module, function, None)):
    raise ValueError(f"--map={name}: {file} has no function {function!r}.")

  def build(key: jax.Array, size: int) -> Map:
    with user_files.blamed(flag, path):
      built = getattr(module, function)(key, size)
    if not isinstance(built, tuple) or not isinstance(built[-1], tuple):
      raise ValueError(
        f"--map={name}: {function}(key, size) returned {built!r}; it must "
        "return a function and a tuple of its arguments."
      )
    return Map(*built)

  return build


def difference(row: dict[str, Any], other: str) -> float | None:
  """Of log|det| from the closed form or the dense one."""
  return None if row[other] is None else abs(row["log_det"] - row[other])


def check(row: dict[str, Any]) -> None:
  """That log_det is right.

  Raises:
    RuntimeError: it is not.
  """
  allowed = _TOLERANCE * max(1, abs(row["log_det"]))
  if row["method"] == "stochastic":
    allowed += _STANDARD_ERRORS * row["stderr"] + row["bias_bound"]
  for other in ("closed_form", "dense"):
    apart = difference(row, other)
    if apart is not None and not apart <= allowed:
      raise RuntimeError(
        f"{row['map']}: log_det says {row['log_det']}, {other} says "
        f"{row[other]}, farther apart than {allowed:.1e}."
      )
  signs = row["sign"], row["dense_sign"]
  if row["method"] != "stochastic" and None not in signs:
    if signs[0] != signs[1]:
      raise RuntimeError(f"{row['map']}: signs differ, {signs}.")


def headlines(rows: list[dict[str, Any]]) -> dict[str, float | None]:
  """The largest differences of exact answers from what they should be."""
  exact = [row for row in rows if row["method"] != "stochastic"]
  result = {}
  for other in ("closed_form", "dense"):
    apart = [
      size for row in exact if (size := difference(row, other)) is not None
    ]
    result[f"largest_difference_from_{other}"] = max(apart, default=None)
  return result
