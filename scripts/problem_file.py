"""A user's Python file as the problem that scripts/tune.py tunes."""

import hashlib
import importlib.util
import pathlib
import sys
import traceback
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

import revmom

EXAMPLE = pathlib.Path(__file__).with_name("example_problem.py")
_NEEDED = {
  "init": "init(key) -> params",
  "batches": "batches(key, step) -> batch",
  "loss_fn": "loss_fn(params, batch) -> scalar",
}
_VALIDATION = "validation_loss(params) -> scalar, or a validation_batch"


class Problem(NamedTuple):
  """What a file defines, checked."""

  name: str  # of the file
  digest: str  # of its text
  init: Callable  # key -> params
  batches: Callable  # (key, step) -> batch
  loss_fn: Callable  # (params, batch) -> scalar
  validation_loss: Callable  # params -> scalar
  test_loss: Callable | None  # likewise
  optimizer: Any
  params: Any  # shapes and dtypes
  arrays: list[str]  # names of the parameter arrays


def pose(path: pathlib.Path) -> Problem:
  """Loads a problem file, and traces each of its functions once.

  Raises:
    FileNotFoundError: there is no such file.
    ValueError: it does not run, or does not define what a problem needs.
  """
  if not path.is_file():
    raise FileNotFoundError(f"--problem={path} is not a file.")
  names = _load(path)
  missing = [text for name, text in _NEEDED.items() if name not in names]
  if not {"validation_loss", "validation_batch"} & set(names):
    missing.append(_VALIDATION)
  if missing:
    raise ValueError(f"--problem={path} does not define {'; '.join(missing)}.")

  def loss_of_validation_batch(params):
    return names["loss_fn"](params, names["validation_batch"])

  defaults: dict[str, Any] = {
    "validation_loss": loss_of_validation_batch,
    "test_loss": None,
    "optimizer": lambda: revmom.sgd(0.01, 0.9),
  }
  functions: dict[str, Any] = {
    name: names.get(name, defaults.get(name)) for name in (*_NEEDED, *defaults)
  }
  for name, function in functions.items():
    if function is not None and not callable(function):
      raise ValueError(f"{name} of --problem={path} is not a function.")

  def shapes(name, *args):
    with _blamed(f"{name} of --problem={path}", path):
      return jax.eval_shape(functions[name], *args)

  key = jax.eval_shape(lambda: jax.random.key(0))
  params = shapes("init", key)
  batch = shapes("batches", key, jax.ShapeDtypeStruct((), jnp.int32))
  _check_scalar("loss_fn", path, shapes("loss_fn", params, batch))
  for name in ("validation_loss", "test_loss"):
    if functions[name] is not None:
      _check_scalar(name, path, shapes(name, params))
  with _blamed(f"optimizer of --problem={path}", path):
    optimizer = functions.pop("optimizer")()
  if not isinstance(optimizer, revmom.ReversibleOptimizer):
    raise ValueError(
      f"optimizer of --problem={path} returned {type(optimizer).__name__}; it "
      "must return an optimizer of revmom, such as revmom.sgd(0.01, 0.9)."
    )
  return Problem(
    name=path.stem,
    digest=hashlib.sha256(path.read_bytes()).hexdigest(),
    **functions,
    optimizer=optimizer,
    params=params,
    arrays=[
      jax.tree_util.keystr(where)
      for where, _ in jax.tree.leaves_with_path(params)
    ],
  )


def _load(path: pathlib.Path) -> dict[str, Any]:
  """The names that a Python file defines; it can import its neighbours."""
  spec = importlib.util.spec_from_file_location("tuned_problem", path)
  if spec is None or spec.loader is None:
    raise ValueError(f"--problem={path} is not a Python file (.py).")
  module = importlib.util.module_from_spec(spec)
  sys.modules[spec.name] = module  # where dataclasses look for themselves
  sys.path.insert(0, str(path.absolute().parent))
  with _blamed(f"--problem={path}", path):
    spec.loader.exec_module(module)
  return vars(module)


class _blamed:
  """Any error within becomes a ValueError of one line that names its place."""

  def __init__(self, what: str, path: pathlib.Path):
    self.what, self.path = what, path

  def __enter__(self) -> None:
    pass

  def __exit__(self, kind, error, trace) -> None:
    if not isinstance(error, Exception):
      return
    lines = [
      frame.lineno
      for frame in traceback.extract_tb(trace)
      if frame.filename == str(self.path)
    ]
    where = f" in line {lines[-1]}" if lines else ""
    text = str(error).strip().split("\n", 1)[0]
    raise ValueError(
      f"{self.what} raised {type(error).__name__}{where}: {text}"
    ) from error


def _check_scalar(name: str, path: pathlib.Path, result: Any) -> None:
  if getattr(result, "shape", None) != () or not jnp.issubdtype(
    result.dtype, jnp.floating
  ):
    raise ValueError(
      f"{name} of --problem={path} returned {result}; it must return one "
      "floating-point number."
    )
