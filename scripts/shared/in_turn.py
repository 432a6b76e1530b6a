"""Runs that are done one after the other, and saved after each."""

import pathlib
from collections.abc import Callable, Iterable
from typing import Any

import jax.numpy as jnp

from shared.checkpointing import Checkpoints
from shared.progress_bar import progress

Results = dict[str, Any]  # by the name of what is done, as JSON holds it


def in_turn(
  runs: Iterable[tuple[str, Callable[[], Any]]],
  path: pathlib.Path | None,
  config: Any,
  data: Any,
) -> tuple[Results, int]:
  """Does what is not done yet, and saves it.

  Args:
    runs: what each is called, and what gives a result that JSON can hold.
    path: of `output.folder`; None saves nothing.
    config: the settings.
    data: what the runs depend on besides.

  Returns:
    All results, and how many were done before.

  Raises:
    ValueError: what was saved belongs to other flags or data.
  """
  with Checkpoints(path, config, data) as checkpoints:
    latest = checkpoints.latest()
    results: Results = dict(latest[1]["about"]) if latest else {}
    done_before = len(results)
    bar = progress([(name, run) for name, run in runs if name not in results])
    for name, run in bar:
      bar.set_description(name)
      results[name] = run()
      number = len(results)
      checkpoints.save(number, jnp.asarray(number), results)
  return results, done_before
