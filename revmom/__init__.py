"""revmom: learning dynamics as bijections."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from revmom.optimizers import (
  ReversibleOptimizer,
  State,
  adagrad,
  adam,
  adamax,
  adamw,
  amsgrad,
  as_optax,
  averaged,
  lamb,
  lars,
  lion,
  muon,
  nesterov,
  partition,
  rmsprop,
  sgd,
  signum,
)
from revmom.training import (
  Outcome,
  Receipt,
  Run,
  Stepper,
  accumulated,
  explain,
  fingerprint,
  rewind,
  train,
  train_jvp,
)

# What takes long to import is so when it is first used.
if TYPE_CHECKING:
  from revmom import analysis, cells, jacobian, models
  from revmom.jacobian import (
    LogDet,
    NotInvertible,
    check_bijection,
    custom_inverse,
    custom_log_det,
    inverse,
    inverse_and_log_det,
    log_det,
  )
  from revmom.training import ledger

__all__ = [
  "LogDet",
  "NotInvertible",
  "Outcome",
  "Receipt",
  "ReversibleOptimizer",
  "Run",
  "State",
  "Stepper",
  "accumulated",
  "adagrad",
  "adam",
  "adamax",
  "adamw",
  "amsgrad",
  "analysis",
  "as_optax",
  "averaged",
  "cells",
  "check_bijection",
  "custom_inverse",
  "custom_log_det",
  "explain",
  "fingerprint",
  "inverse",
  "inverse_and_log_det",
  "jacobian",
  "ledger",
  "lamb",
  "lars",
  "lion",
  "log_det",
  "models",
  "muon",
  "nesterov",
  "partition",
  "rewind",
  "rmsprop",
  "sgd",
  "signum",
  "train",
  "train_jvp",
]

_ROOMS = ("analysis", "cells", "jacobian", "models")


def __getattr__(name: str) -> Any:
  """A room of the house, the ledger, or a name of `revmom.jacobian`."""
  if name not in __all__:
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
  if name in _ROOMS:
    return import_module(f"revmom.{name}")
  if name == "ledger":
    return import_module("revmom.training.ledger")
  return getattr(import_module("revmom.jacobian"), name)


def __dir__() -> list[str]:
  return sorted({*globals(), *__all__})
