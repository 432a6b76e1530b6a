"""What is asked of a run: its seconds, its bytes, and whether it is finite."""

import time
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import numpy as np

import revmom


def timed(program: Callable, *args: Any) -> tuple[Any, float]:
  """A program's result, and its seconds."""
  begin = time.perf_counter()
  result = jax.block_until_ready(program(*args))
  return result, time.perf_counter() - begin


def megabytes(compiled: Any) -> float:
  """Temporary memory of a compiled program, as the compiler counts it."""
  return compiled.memory_analysis().temp_size_in_bytes / 1e6


class Held(NamedTuple):
  """Bytes that a run keeps for its reversal."""

  spilled: int  # rows of bits that were pushed out
  heads: int  # of the buffers
  kept: int  # by the plan
  residues: int  # of gradients

  @property
  def total(self) -> int:
    """Of all of them."""
    return sum(self)


def held(state: Any) -> Held:
  """What the state of a run keeps for its reversal, or what its shapes say."""
  buffers = [b for leaf in state.leaves for b in leaf.buffers.values()]
  size = lambda tree: sum(
    array.size * array.dtype.itemsize for array in jax.tree.leaves(tree)
  )
  return Held(
    spilled=size([buffer.words for buffer in buffers]),
    heads=size([buffer.number for buffer in buffers]),
    kept=size(state.kept),
    residues=size(state.residues),
  )


def check_run(run: revmom.Run, optimizer: Any, remedy: str) -> None:
  """Raises FloatingPointError, naming the step, if a loss was not finite.

  Likewise if the optimizer says that the training failed, and why.
  """
  bad = np.flatnonzero(~np.isfinite(run.losses))
  try:
    optimizer.check(run.state)
  except ValueError as error:
    where = f"; the loss of step {bad[0]} is not finite" if bad.size else ""
    raise FloatingPointError(f"the training failed{where}: {error}") from error
  if bad.size:
    raise FloatingPointError(
      f"the loss of step {bad[0]} is {run.losses[bad[0]]}; {remedy}."
    )


def check_finite(name: str, values: Any, remedy: str) -> None:
  """Raises FloatingPointError unless all numbers of a tree are finite."""
  for leaf in jax.tree.leaves(values):
    if not np.isfinite(np.asarray(leaf)).all():
      raise FloatingPointError(f"{name} is not finite: {remedy}")
