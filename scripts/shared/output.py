"""What experiments share: settings, files, checkpoints, errors for people."""

import csv
import dataclasses
import fcntl
import hashlib
import io
import json
import math
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
  """A dataclass of the values of the flags that its fields are named after.

  Raises:
    ValueError: a value is NaN or infinite, which bounds of flags let pass.
  """
  names = [field.name for field in dataclasses.fields(config_class)]
  values = {name: flags.FLAGS[name].value for name in names}
  for name, value in values.items():
    if isinstance(value, float) and not math.isfinite(value):
      raise ValueError(f"--{name}={value}: it must be a finite number.")
  return config_class(**values)


def start(experiment: Callable[[], str]) -> None:
  """Parses the flags, runs an experiment and prints its report.

  What a user can mend ends the script with one line and exit code 1, Ctrl-C
  with one line and 130; the traceback is shown at --verbosity=1.
  """

  def main(argv: list[str]) -> None:
    if len(argv) > 1:
      raise app.UsageError(f"Unexpected arguments {argv[1:]}; flags begin --.")
    # absl's default is INFO, at which orbax reports every file.
    if flags.FLAGS.verbosity == logging.INFO:
      logging.set_verbosity(logging.WARNING)
    try:
      print(experiment())
    except KeyboardInterrupt:
      logging.debug("traceback:", exc_info=True)
      print("interrupted", file=sys.stderr)
      sys.exit(130)
    except MemoryError as error:
      logging.debug("traceback:", exc_info=True)
      sys.exit(f"error: out of memory {error}".rstrip())
    except (OSError, ValueError, ArithmeticError, RuntimeError) as error:
      logging.debug("traceback:", exc_info=True)
      sys.exit(f"error: {error}")

  jax.config.config_with_absl()
  app.run(main)


def folder(workdir: str | None) -> pathlib.Path | None:
  """The folder of --workdir, made if it is missing, for this process alone.

  The result of an earlier run is removed, unless there are checkpoints:
  `Checkpoints` removes it when it is known that they belong to this run.

  Raises:
    ValueError: the name is empty, or another process uses the folder.
  """
  if workdir is None:
    return None
  if not workdir:
    raise ValueError("--workdir= names no folder; give one, or leave it out.")
  path = pathlib.Path(workdir).absolute()
  path.mkdir(parents=True, exist_ok=True)
  _lock(path)
  if not (path / "checkpoint").exists():
    (path / "result.json").unlink(missing_ok=True)
  return path


_LOCKS: dict[pathlib.Path, int] = {}  # open files, until the process ends


def _lock(path: pathlib.Path) -> None:
  """Keeps other processes out; the system drops the lock of a dead one."""
  if path in _LOCKS:
    return
  file = os.open(path / ".lock", os.O_RDWR | os.O_CREAT)
  try:
    fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
  except BlockingIOError as error:
    os.close(file)
    raise ValueError(
      f"--workdir={path} is in use by another process; wait until it ends, or "
      "give another --workdir."
    ) from error
  _LOCKS[path] = file


def write_text(path: pathlib.Path, text: str) -> None:
  """Replaces a file, so that it is never half written."""
  temporary = path.with_name(path.name + ".tmp")
  temporary.write_text(text)
  os.replace(temporary, path)


def write_json(path: pathlib.Path, result: Any) -> None:
  """Replaces a file by what JSON makes of the result.

  Raises:
    ValueError: a number is not finite, which JSON can't hold.
  """
  write_text(path, _json(path, result))


def _json(path: pathlib.Path, result: Any) -> str:
  try:
    return json.dumps(result, indent=2, allow_nan=False) + "\n"
  except ValueError as error:
    raise ValueError(
      f"{path} is not written: {', '.join(_not_finite('', result)) or error} "
      "is not finite."
    ) from error


def _not_finite(name: str, value: Any) -> list[str]:
  """The places of numbers that are not."""
  if isinstance(value, Mapping):
    parts = [(f"{name}.{key}".lstrip("."), v) for key, v in value.items()]
  elif isinstance(value, list | tuple):
    parts = [(f"{name}[{i}]", v) for i, v in enumerate(value)]
  else:
    bad = isinstance(value, float) and not math.isfinite(value)
    return [f"{name}={value}"] if bad else []
  return [place for part in parts for place in _not_finite(*part)]


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

  Raises:
    ValueError: a number of the result is not finite; nothing is written.
  """
  text = _json(workdir / "result.json", result)
  (workdir / "result.json").unlink(missing_ok=True)
  write_csv(workdir / "metrics.csv", rows)
  for name, figure in figures.items():
    figure.savefig(workdir / f"{name}.png", dpi=150)
  write_text(workdir / "result.json", text)


def digest(tree: Any) -> str:
  """SHA-256 of the arrays, texts and numbers of a pytree."""
  found = hashlib.sha256()
  for leaf in jax.tree.leaves(tree):
    array = np.asarray(leaf)
    found.update(f"{array.dtype} {array.shape} ".encode())
    found.update(leaf.encode() if isinstance(leaf, str) else array.tobytes())
  return found.hexdigest()


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


def _digest_of(saved: Mapping[str, Any], arrays: Mapping[str, Any]) -> str:
  """Of a checkpoint: what is known about its arrays, and their bytes."""
  return digest([json.dumps(saved, sort_keys=True), dict(arrays)])


class Checkpoints:
  """The states of an experiment; without a workdir none are kept.

  A save is a rename, so a process that is killed leaves all of it or none,
  and what is saved is on disk before the experiment goes on.  Two are kept,
  each with a digest of all that it holds: if the later one is damaged, the
  earlier one is resumed.
  """

  def __init__(
    self,
    workdir: pathlib.Path | None,
    config: Any,
    local: Sequence[str] = (),
    data: Any = (),
  ):
    """A run is bound to its settings and its data.

    Args:
      workdir: of `folder`.
      config: the settings, a dataclass.
      local: settings that may differ between a run and its resumption.
      data: a pytree of arrays and texts that it depends on besides.
    """
    self.workdir, self.config, self.local = workdir, config, local
    self.manager = None
    if workdir is not None:
      self.data = digest(data)
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
    arrays = {
      str(i): leaf for i, leaf in enumerate(jax.tree.leaves(tree)) if leaf.size
    }
    # As JSON gives it back, so that its digest is that of what is read.
    saved = json.loads(
      json.dumps(
        {
          "config": dataclasses.asdict(self.config),
          "data": self.data,
          "fingerprint": revmom.fingerprint()._asdict(),
          "shapes": {
            name: [leaf.shape, str(leaf.dtype)] for name, leaf in arrays.items()
          },
          "about": about,
        }
      )
    )
    saved["digest"] = _digest_of(saved, arrays)
    self.manager.save(
      number,
      args=ocp.args.Composite(
        arrays=ocp.args.StandardSave(arrays), about=ocp.args.JsonSave(saved)
      ),
    )

  def latest(
    self, check: Callable[[int, Any], None] = lambda number, about: None
  ) -> tuple[int, dict[str, Any]] | None:
    """The latest number, and its `config`, `fingerprint` and `about`.

    Warns if it was made where bits may differ from those made here, or if a
    later one was damaged.  What is damaged, and the result of an earlier run,
    are removed once it is known that this run goes on.

    Raises:
      ValueError: it belongs to other flags or data, or all are damaged.
    """
    if self.manager is None or self.workdir is None:
      return None
    damaged: list[int] = []
    for number in sorted(self.manager.all_steps(), reverse=True):
      try:
        saved, _ = self._read(number)
        break
      except Exception as error:  # whatever the reader makes of damage
        logging.debug("checkpoint %d: %r", number, error)
        damaged.append(number)
    else:
      if damaged:
        raise ValueError(
          f"the checkpoints in {self.workdir / 'checkpoint'} are damaged or "
          "of another version; remove that folder to begin anew, or give "
          "another --workdir."
        )
      (self.workdir / "result.json").unlink(missing_ok=True)
      return None
    self._check(saved)
    check(number, saved["about"])
    for later in damaged:
      logging.warning(
        "checkpoint %d in %s is damaged; going on from %d.",
        later,
        self.workdir,
        number,
      )
      self.manager.delete(later)
    (self.workdir / "result.json").unlink(missing_ok=True)
    return number, saved

  def _read(self, number: int) -> tuple[dict[str, Any], dict[str, Any]]:
    """A checkpoint, of which every bit is as it was saved."""
    assert self.manager is not None
    saved = self.manager.restore(
      number, args=ocp.args.Composite(about=ocp.args.JsonRestore())
    )["about"]
    abstract = {
      name: jax.ShapeDtypeStruct(tuple(shape), jnp.dtype(dtype))
      for name, (shape, dtype) in saved["shapes"].items()
    }
    arrays = self.manager.restore(
      number,
      args=ocp.args.Composite(arrays=ocp.args.StandardRestore(abstract)),
    )["arrays"]
    if saved.pop("digest") != _digest_of(saved, arrays):
      raise ValueError("the digest differs.")
    return saved, arrays

  def _check(self, saved: dict[str, Any]) -> None:
    """That what was saved belongs to this run.

    Raises:
      ValueError: it does not.
    """
    now = json.loads(json.dumps(dataclasses.asdict(self.config)))
    changed = [
      f"--{name}={saved['config'].get(name)} there, --{name}={value} now"
      for name, value in now.items()
      if name not in self.local and saved["config"].get(name) != value
    ]
    if changed:
      raise ValueError(
        f"{self.workdir} holds a run with other flags ({'; '.join(changed)}); "
        "give the same ones, or another --workdir."
      )
    if saved["data"] != self.data:
      raise ValueError(
        f"{self.workdir} holds a run of other data: files that it read have "
        "changed; give the same ones, or another --workdir."
      )
    here = revmom.fingerprint()._asdict()
    if saved["fingerprint"] != json.loads(json.dumps(here)):
      logging.warning(
        "%s was begun in another environment (%s), so its bits may not be "
        "those of an uninterrupted run.",
        self.workdir,
        saved["fingerprint"],
      )

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
    latest = self.latest(check)
    if latest is None:
      return start, None
    number, saved = latest
    return self.restore(number, start), saved["about"]

  def restore(self, number: int, like: Any) -> Any:
    """A saved tree, in the structure, shapes and types of `like`.

    Raises:
      RuntimeError: there is no workdir, so nothing was saved.
      ValueError: what was saved has other shapes or types.
    """
    if self.manager is None:
      raise RuntimeError("nothing was saved: there is no workdir.")
    structure: Any
    leaves, structure = jax.tree.flatten(like)
    saved, arrays = self._read(number)
    expected = {
      str(i): [list(leaf.shape), str(leaf.dtype)]
      for i, leaf in enumerate(leaves)
      if leaf.size
    }
    if saved["shapes"] != expected:
      raise ValueError(
        f"{self.workdir} holds a run with arrays of other shapes or types; "
        "give another --workdir."
      )
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
