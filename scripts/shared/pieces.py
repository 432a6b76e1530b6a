"""An experiment in pieces, each of which is done once and saved."""

import pathlib
from collections.abc import Callable, Iterable
from typing import Any

import jax.numpy as jnp

from shared.checkpointing import Checkpoints
from shared.progress_bar import progress

Results = dict[str, Any]  # by the name of a piece, as JSON holds it


def work(
  pieces: Iterable[tuple[str, Callable[[], Any]]],
  workdir: pathlib.Path | None,
  config: Any,
  data: Any = (),
) -> tuple[Results, int]:
  """Does what is not done yet, and saves after each.

  Args:
    pieces: names, and functions that give what JSON can hold.
    workdir: of `output.folder`.
    config: the settings.
    data: that the pieces depend on besides.

  Returns:
    The results, and how many of them were done before.

  Raises:
    ValueError: the checkpoints belong to other flags or data.
  """
  with Checkpoints(workdir, config, data) as checkpoints:
    latest = checkpoints.latest()
    results: Results = dict(latest[1]["about"]) if latest else {}
    before = len(results)
    bar = progress([piece for piece in pieces if piece[0] not in results])
    for name, piece in bar:
      bar.set_description(name)
      results[name] = piece()
      number = len(results)
      checkpoints.save(number, jnp.asarray(number), results)
  return results, before
