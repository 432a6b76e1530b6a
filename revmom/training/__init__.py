"""Whole training runs as bijections, and the gradients through them."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from revmom.training import plans
from revmom.training.microbatches import accumulated
from revmom.training.receipt import Fingerprint, Receipt, explain, fingerprint
from revmom.training.rewind import Rewound, rewind
from revmom.training.stepper import Stepper
from revmom.training.tangent import Outcome, train_jvp
from revmom.training.train import Run, RunState, train

if TYPE_CHECKING:
  from revmom.training import ledger
  from revmom.training.ledger import (
    Ledger,
    gaussian_entropy,
    parabola_bound,
    sgd_curvature,
  )

__all__ = [
  "Fingerprint",
  "Ledger",
  "Receipt",
  "Outcome",
  "Rewound",
  "Run",
  "RunState",
  "Stepper",
  "accumulated",
  "explain",
  "fingerprint",
  "gaussian_entropy",
  "ledger",
  "parabola_bound",
  "plans",
  "rewind",
  "sgd_curvature",
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
