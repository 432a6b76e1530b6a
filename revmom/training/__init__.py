"""Whole training runs as bijections, and the gradients through them."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from revmom.training import plans
from revmom.training.environment import Fingerprint, fingerprint
from revmom.training.microbatches import accumulated
from revmom.training.one_step import Cotangents
from revmom.training.receipt import Receipt, explain
from revmom.training.rewind import Rewound, rewind
from revmom.training.run_state import RunState
from revmom.training.state_dict import from_state_dict, to_state_dict
from revmom.training.stepper import Gradients, Stepper
from revmom.training.stepper_state import StepperState
from revmom.training.tangent import Outcome, train_jvp
from revmom.training.train import Run, train

if TYPE_CHECKING:
  from revmom.training import ledger
  from revmom.training.ledger import (
    Ledger,
    gaussian_entropy,
    parabola_bound,
    sgd_curvature,
  )

__all__ = [
  "Cotangents",
  "Fingerprint",
  "Gradients",
  "Ledger",
  "Receipt",
  "Outcome",
  "Rewound",
  "Run",
  "RunState",
  "Stepper",
  "StepperState",
  "accumulated",
  "explain",
  "fingerprint",
  "from_state_dict",
  "gaussian_entropy",
  "ledger",
  "parabola_bound",
  "plans",
  "rewind",
  "sgd_curvature",
  "to_state_dict",
  "train",
  "train_jvp",
]


def __getattr__(name: str) -> Any:
  """The ledger, which needs the log-determinants, when it is first used."""
  if name not in __all__:
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
  module = import_module("revmom.training.ledger")
  return module if name == "ledger" else getattr(module, name)


def __dir__() -> list[str]:
  return sorted({*globals(), *__all__})
