"""What experiments share: settings, files, checkpoints, errors for people."""

import csv
import dataclasses
import io
import json
import os
import pathlib
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp
from absl import app, flags, logging

import revmom

T = TypeVar("T")


def settings(config_class: type) -> Any:
  """A dataclass of the values of the flags that its fields are named after."""
  names = [field.name for field in dataclasses.fields(config_class)]
  return config_class(**{name: flags.FLAGS[name].value for name in names})


def start(experiment: Callable[[], str]) -> None:
  """Parses the flags, runs an experiment and prints its report.

  What a user can mend ends the script with one line and exit code 1; the
  traceback is shown at --verbosity=1.
  """

  def main(argv: list[str]) -> None:
    if len(argv) > 1:
      raise app.UsageError(f"Unexpected arguments {argv[1:]}; flags begin --.")
    # absl's default is INFO, at which orbax reports every file.
    if flags.FLAGS.verbosity == logging.INFO:
      logging.set_verbosity(logging.WARNING)
    try:
      print(experiment())
    except (OSError, ValueError, ArithmeticError, RuntimeError) as error:
      logging.debug("traceback:", exc_info=True)
      sys.exit(f"error: {error}")

  jax.config.config_with_absl()
  app.run(main)


def folder(workdir: str | None) -> pathlib.Path | None:
  """The folder of --workdir, made if it is missing."""
  if workdir is None:
    return None
  path = pathlib.Path(workdir).absolute()
  path.mkdir(parents=True, exist_ok=True)
  return path


def write_text(path: pathlib.Path, text: str) -> None:
  """Replaces a file, so that it is never half written."""
  temporary = path.with_name(path.name + ".tmp")
  temporary.write_text(text)
  os.replace(temporary, path)


def write_json(path: pathlib.Path, result: Any) -> None:
  """Replaces a file by what JSON makes of the result."""
  write_text(path, json.dumps(result, indent=2) + "\n")


def write_csv(path: pathlib.Path, rows: Sequence[Mapping[str, Any]]) -> None:
  """Replaces a file by a table of all rows; what one lacks stays empty."""
  names = list(dict.fromkeys(name for row in rows for name in row))
  text = io.StringIO()
  writer = csv.DictWriter(text, names, lineterminator="\n")
  writer.writeheader()
  writer.writerows(rows)
  write_text(path, text.getvalue())


def write_results(
  workdir: pathlib.Path,
  rows: Sequence[Mapping[str, Any]],
  figures: Mapping[str, Any],
  result: Mapping[str, Any],
) -> None:
  """metrics.csv, a PNG of each of matplotlib's figures, and result.json last.

  So there is no result.json unless all else is there.
  """
  write_csv(workdir / "metrics.csv", rows)
  for name, figure in figures.items():
    figure.savefig(workdir / f"{name}.png", dpi=150)
  write_json(workdir / "result.json", result)


def done_before(result: Mapping[str, Any]) -> str:
  """For people: how many steps were restored from a checkpoint."""
  resumed = result["resumed_from"]
  return f" ({resumed} of them done before)" if resumed else ""


def timed(program: Callable, *args: Any) -> tuple[Any, float]:
  """A program's result, and its seconds."""
  begin = time.perf_counter()
  result = jax.block_until_ready(program(*args))
  return result, time.perf_counter() - begin


def check_finite(run: revmom.Run, optimizer: Any, remedy: str) -> None:
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


class Checkpoints:
  """The states of an experiment; without a workdir none are kept.

  A save is a rename, so a process that is killed leaves all of it or none,
  and what is saved is on disk before the experiment goes on.
  """

  def __init__(
    self, workdir: pathlib.Path | None, config: Any, local: Sequence[str] = ()
  ):
    """`local` settings may differ between a run and its resumption."""
    self.workdir, self.config, self.local = workdir, config, local
    self.manager = None
    if workdir is not None:
      self.manager = ocp.CheckpointManager(
        workdir / "checkpoint",
        options=ocp.CheckpointManagerOptions(
          max_to_keep=2, enable_async_checkpointing=False
        ),
      )

  def save(self, number: int, tree: Any, about: Any) -> None:
    """Saves the arrays of a tree, and anything that JSON can hold."""
    if self.manager is None:
      return
    about = {
      "config": dataclasses.asdict(self.config),
      "fingerprint": revmom.fingerprint()._asdict(),
      "about": about,
    }
    arrays = {
      str(i): leaf for i, leaf in enumerate(jax.tree.leaves(tree)) if leaf.size
    }
    self.manager.save(
      number,
      args=ocp.args.Composite(
        arrays=ocp.args.StandardSave(arrays), about=ocp.args.JsonSave(about)
      ),
    )

  def latest(self) -> tuple[int, dict[str, Any]] | None:
    """The latest number, and its `config`, `fingerprint` and `about`.

    Warns if it was made where bits may differ from those made here.

    Raises:
      ValueError: it belongs to other flags.
    """
    number = None if self.manager is None else self.manager.latest_step()
    if self.manager is None or number is None:
      return None
    saved = self.manager.restore(
      number, args=ocp.args.Composite(about=ocp.args.JsonRestore())
    )["about"]
    changed = [
      f"--{name}={saved['config'].get(name)} there, --{name}={value} now"
      for name, value in dataclasses.asdict(self.config).items()
      if name not in self.local and saved["config"].get(name) != value
    ]
    if changed:
      raise ValueError(
        f"{self.workdir} holds a run with other flags ({'; '.join(changed)}); "
        "give the same ones, or another --workdir."
      )
    now = revmom.fingerprint()._asdict()
    if saved["fingerprint"] != json.loads(json.dumps(now)):
      logging.warning(
        "%s was begun in another environment (%s), so its bits may not be "
        "those of an uninterrupted run.",
        self.workdir,
        saved["fingerprint"],
      )
    return number, saved

  def resume(
    self,
    start: T,
    check: Callable[[int, Any], None] = lambda number, about: None,
  ) -> tuple[T, Any]:
    """The latest tree and what is known about it; `start` and None at first.

    Args:
      start: has the structure, shapes and types of what was saved.
      check: (number, about) -> None, or a ValueError if they are of another
        experiment.

    Raises:
      ValueError: they are of other flags, or `check` says so.
    """
    latest = self.latest()
    if latest is None:
      return start, None
    number, saved = latest
    check(number, saved["about"])
    return self.restore(number, start), saved["about"]

  def restore(self, number: int, like: Any) -> Any:
    """A saved tree, in the structure, shapes and types of `like`.

    Raises:
      RuntimeError: there is no workdir, so nothing was saved.
    """
    if self.manager is None:
      raise RuntimeError("nothing was saved: there is no workdir.")
    structure: Any
    leaves, structure = jax.tree.flatten(like)
    abstract = {
      str(i): jax.ShapeDtypeStruct(leaf.shape, leaf.dtype)
      for i, leaf in enumerate(leaves)
      if leaf.size
    }
    arrays = self.manager.restore(
      number,
      args=ocp.args.Composite(arrays=ocp.args.StandardRestore(abstract)),
    )["arrays"]
    return structure.unflatten(
      jnp.asarray(arrays[str(i)])
      if leaf.size
      else jnp.zeros(leaf.shape, leaf.dtype)
      for i, leaf in enumerate(leaves)
    )

  def close(self) -> None:
    """Nothing can be saved afterwards."""
    if self.manager is not None:
      self.manager.close()

  def __enter__(self) -> "Checkpoints":
    return self

  def __exit__(self, *_: object) -> None:
    self.close()
