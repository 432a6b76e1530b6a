"""revmom: learning dynamics as bijections."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from revmom.optimizers import (
  Grid,
  ReversibleOptimizer,
  State,
  adagrad,
  adam,
  adamw,
  as_optax,
  averaged,
  clipped,
  muon,
  partition,
  preprocessed,
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
  from_state_dict,
  plans,
  rewind,
  to_state_dict,
  train,
  train_jvp,
)

# What takes long to import is so when it is first used.
if TYPE_CHECKING:
  from revmom import analysis, cells, depth, jacobian, models
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

__version__ = "0.1.0"

__all__ = [
  "Grid",
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
  "adamw",
  "analysis",
  "as_optax",
  "averaged",
  "clipped",
  "depth",
  "cells",
  "check_bijection",
  "custom_inverse",
  "custom_log_det",
  "explain",
  "fingerprint",
  "from_state_dict",
  "inverse",
  "inverse_and_log_det",
  "jacobian",
  "ledger",
  "log_det",
  "models",
  "muon",
  "partition",
  "plans",
  "preprocessed",
  "rewind",
  "rmsprop",
  "sgd",
  "signum",
  "to_state_dict",
  "train",
  "train_jvp",
]

_ROOMS = ("analysis", "cells", "depth", "jacobian", "models")
# Optimizers without an inverse, which say so when they are called.
_IRREVERSIBLE = ("adamax", "amsgrad", "lamb", "lars", "lion", "nesterov")


def __getattr__(name: str) -> Any:
  """A room of the house, the ledger, or a name of `revmom.jacobian`."""
  if name in _IRREVERSIBLE:
    return getattr(import_module("revmom.optimizers.irreversible"), name)
  if name not in __all__:
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
  if name in _ROOMS:
    return import_module(f"revmom.{name}")
  if name == "ledger":
    return import_module("revmom.training.ledger")
  return getattr(import_module("revmom.jacobian"), name)


def __dir__() -> list[str]:
  return sorted({*globals(), *__all__})
