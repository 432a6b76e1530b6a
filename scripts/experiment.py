"""What every experiment has: settings, checkpoints, and errors for people."""

import csv
import dataclasses
import io
import json
import os
import pathlib
import sys
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import orbax.checkpoint as ocp
from absl import app, flags, logging

import revmom


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


class Checkpoints:
  """The states of an experiment.

  A save is a rename, so a process that is killed leaves all of it or none,
  and what is saved is on disk before the experiment goes on.
  """

  def __init__(
    self, workdir: pathlib.Path, config: Any, local: Sequence[str] = ()
  ):
    """`local` settings may differ between a run and its resumption."""
    self.workdir, self.config, self.local = workdir, config, local
    self.manager = ocp.CheckpointManager(
      workdir / "checkpoint",
      options=ocp.CheckpointManagerOptions(
        max_to_keep=2, enable_async_checkpointing=False
      ),
    )

  def save(self, number: int, tree: Any, about: Any) -> None:
    """Saves the arrays of a tree, and anything that JSON can hold."""
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
    number = self.manager.latest_step()
    if number is None:
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

  def restore(self, number: int, like: Any) -> Any:
    """A saved tree, in the structure, shapes and types of `like`."""
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
    self.manager.close()
