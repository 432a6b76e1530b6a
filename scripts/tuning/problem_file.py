"""A user's Python file as the problem that scripts/tune.py tunes."""

import inspect
import pathlib
import sys
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

import revmom
from shared import user_files

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
  digest: str  # of its text and that of its neighbours
  init: Callable  # key -> params
  batches: Callable  # (key, step) -> batch
  loss_fn: Callable  # (params, batch, **loss_hyperparameters) -> scalar
  loss_hyperparameters: dict[str, float]  # its keywords, with defaults
  validation_loss: Callable  # params -> scalar
  validates_by_loss: bool  # whether that is loss_fn of the validation_batch
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
  before = set(sys.modules)
  names = vars(user_files.load("tuned_problem", path, f"--problem={path}"))
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
    with user_files.blamed(f"{name} of --problem={path}", path):
      return jax.eval_shape(functions[name], *args)

  key = jax.eval_shape(lambda: jax.random.key(0))
  params = shapes("init", key)
  batch = shapes("batches", key, jax.ShapeDtypeStruct((), jnp.int32))
  _check_scalar("loss_fn", path, shapes("loss_fn", params, batch))
  for name in ("validation_loss", "test_loss"):
    if functions[name] is not None:
      _check_scalar(name, path, shapes(name, params))
  with user_files.blamed(f"optimizer of --problem={path}", path):
    optimizer = functions.pop("optimizer")()
  if not isinstance(optimizer, revmom.ReversibleOptimizer):
    raise ValueError(
      f"optimizer of --problem={path} returned {type(optimizer).__name__}; it "
      "must return an optimizer of revmom, such as revmom.sgd(0.01, 0.9)."
    )
  return Problem(
    name=path.stem,
    digest=user_files.digest(path, before),
    **functions,
    loss_hyperparameters=_keywords(functions["loss_fn"]),
    validates_by_loss="validation_loss" not in names,
    optimizer=optimizer,
    params=params,
    arrays=[
      jax.tree_util.keystr(where)
      for where, _ in jax.tree.leaves_with_path(params)
    ],
  )


def _keywords(loss_fn: Callable) -> dict[str, float]:
  """The arguments of a loss that are numbers by default."""
  return {
    name: float(parameter.default)
    for name, parameter in inspect.signature(loss_fn).parameters.items()
    if isinstance(parameter.default, float)
  }


def _check_scalar(name: str, path: pathlib.Path, result: Any) -> None:
  if getattr(result, "shape", None) != () or not jnp.issubdtype(
    result.dtype, jnp.floating
  ):
    raise ValueError(
      f"{name} of --problem={path} returned {result}; it must return one "
      "floating-point number."
    )
