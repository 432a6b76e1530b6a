"""Parameters that all processes must hold alike."""

from typing import Any
from zlib import crc32

import jax
import numpy as np


def check_copies(params: Any) -> None:
  """Raises ValueError where copies of a parameter differ between processes.

  Every process keeps its own copy of what is replicated, and nothing compares
  them: other random numbers or another checkpoint on one host would make runs
  of their own.  All processes must call this; parameters that are traced, or
  a single process, cost nothing.
  """
  if jax.process_count() == 1:
    return
  from jax.experimental.multihost_utils import process_allgather

  leaves = jax.tree.leaves_with_path(params)
  contents = lambda shard: np.asarray(shard.data).tobytes()
  # Of every part that is here: its array, where it lies in that, its bytes.
  parts = [
    (number, crc32(repr(shard.index).encode()), crc32(contents(shard)))
    for number, (_, leaf) in enumerate(leaves)
    if isinstance(leaf, jax.Array)
    and not isinstance(leaf, jax.core.Tracer)
    and not leaf.is_fully_addressable
    for shard in leaf.addressable_shards
  ]
  if not parts:
    return
  everywhere = np.asarray(process_allgather(np.asarray(parts, np.uint32)))
  found: dict[tuple[int, int], int] = {}
  for number, place, content in everywhere.reshape(-1, 3).tolist():
    if found.setdefault((number, place), content) != content:
      name = jax.tree_util.keystr(leaves[number][0]) or "params"
      raise ValueError(
        f"the parameter array {name} is replicated, but processes hold other "
        "numbers in it: start all of them from the same random key or "
        "checkpoint, or send the first one's by "
        "jax.experimental.multihost_utils.broadcast_one_to_all."
      )
