"""Checkpoints: what a program resumes, bit for bit, after it was killed."""

import dataclasses
import hashlib
import json
import pathlib
from collections.abc import Callable, Mapping
from typing import Any, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp
from absl import logging

import revmom

T = TypeVar("T")


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
    data: Any = (),
  ):
    """A run is bound to its settings and its data.

    Args:
      workdir: of `folder`.
      config: the settings; a resumed run has the same, but for those that
        `flag` lets change.
      data: a pytree of arrays and texts that it depends on besides.
    """
    self.workdir, self.config = workdir, config
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
    then = saved["config"]
    changed = [
      f"--{name}={then.get(name)} there, --{name}={now[name]} now"
      for name in (
        field.name
        for field in dataclasses.fields(self.config)
        if not field.metadata.get("may_change")
      )
      if then.get(name) != now[name]
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
